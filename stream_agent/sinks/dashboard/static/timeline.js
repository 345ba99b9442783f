// The clips of the case as buttons on a line of time; one can be selected and judged.

import { clockTime, percent } from "./words.js";

const LEAST_SPAN_S = 30;

export class Timeline {
  /** `judge(start_s, action)` sends a verdict; `style(action)` is its code and colour. */
  constructor(root, parts, { judge, style }) {
    Object.assign(this, { root, parts, style });
    this.clips = { closed: [], open: null, earlier: 0 };
    this.verdicts = new Map();
    this.enabled = false;
    this.selected = null;
    parts.accept.onclick = () => this.clip && judge(this.clip.start_pts_s, this.clip.action);
    parts.reject.onclick = () => this.clip && judge(this.clip.start_pts_s, "");
    parts.correct.onchange = () => {
      if (this.clip && parts.correct.value) judge(this.clip.start_pts_s, parts.correct.value);
      parts.correct.value = "";
    };
  }

  get clip() {
    return this.clips.closed.find((clip) => clip.start_pts_s === this.selected) ?? null;
  }

  setActions(names) {
    const first = new Option("it was …", "");
    this.parts.correct.replaceChildren(first, ...names.map((name) => new Option(name, name)));
  }

  setVerdicts(verdicts) {
    this.verdicts = new Map(verdicts.map((verdict) => [verdict.start_s.toFixed(1), verdict]));
    this.draw();
  }

  setClips(clips) {
    this.clips = clips ?? { closed: [], open: null, earlier: 0 };
    this.draw();
  }

  /** Select the next (1) or the last (-1) closed clip. */
  move(step) {
    const { closed } = this.clips;
    if (!closed.length) return;
    const at = closed.findIndex((clip) => clip.start_pts_s === this.selected);
    const next = at < 0 ? closed.length - 1 : Math.min(closed.length - 1, Math.max(0, at + step));
    this.selected = closed[next].start_pts_s;
    this.draw();
  }

  draw() {
    const { closed, open } = this.clips;
    const shown = open ? [...closed, open] : closed;
    const from = shown.length ? shown[0].start_pts_s : 0;
    const to = Math.max(from + LEAST_SPAN_S, ...shown.map((clip) => clip.end_pts_s));
    const hadFocus = this.root.contains(document.activeElement);
    this.root.replaceChildren(...shown.map((clip) => this.button(clip, clip === open, from, to)));
    if (hadFocus) this.root.querySelector("[aria-selected=true]")?.focus();
    this.drawSelection();
  }

  button(clip, isOpen, from, to) {
    const button = document.createElement("button");
    const { code, colour } = this.style(clip.action);
    const verdict = this.verdicts.get(clip.start_pts_s.toFixed(1));
    const seconds = clip.end_pts_s - clip.start_pts_s;
    button.style.left = `${(100 * (clip.start_pts_s - from)) / (to - from)}%`;
    button.style.width = `calc(${(100 * seconds) / (to - from)}% - 1px)`;
    button.style.background = colour;
    button.textContent = verdict ? `${verdict.action ? "✓" : "✗"}${code}` : code;
    button.title = `${clip.action}, ${clockTime(clip.start_pts_s)} to ${isOpen ? "now" : clockTime(clip.end_pts_s)}`;
    button.setAttribute("role", "option");
    button.setAttribute("aria-label", button.title);
    button.classList.toggle("open", isOpen);
    button.classList.toggle("rejected", Boolean(verdict) && !verdict.action);
    button.setAttribute("aria-selected", String(!isOpen && clip.start_pts_s === this.selected));
    button.tabIndex = -1;
    if (isOpen) button.disabled = true;
    else
      button.onclick = () => {
        this.selected = clip.start_pts_s;
        this.draw();
      };
    return button;
  }

  drawSelection() {
    const { clip, parts } = this;
    const may = Boolean(clip) && this.enabled;
    for (const part of [parts.accept, parts.reject, parts.correct]) part.disabled = !may;
    if (!clip) {
      const { closed, earlier } = this.clips;
      const count = closed.length + earlier;
      parts.selected.textContent = `${count} closed ${count === 1 ? "label" : "labels"}; ← → to select one`;
      return;
    }
    const verdict = this.verdicts.get(clip.start_pts_s.toFixed(1));
    const told = !verdict ? "" : !verdict.action ? " · rejected" : ` · judged ${verdict.action}`;
    const sure = `${percent(clip.confidence)} sure`;
    const kept = this.enabled ? "" : " · verdicts are not kept (sinks.dashboard.verdicts)";
    parts.selected.textContent =
      `${clip.action}, ${clockTime(clip.start_pts_s)} to ${clockTime(clip.end_pts_s)}, ${sure}${told}${kept}`;
  }
}

// The page: sections come from the server whole, as they change; ages and expiry are counted here.

import { REASON_COLOURS, drawDrops, drawLatency } from "./charts.js";
import { ServerClock } from "./clock.js";
import { Link } from "./link.js";
import { Timeline } from "./timeline.js";
import { abstention, age, clockTime, percent, span } from "./words.js";

// Okabe and Ito's, the same as the console's.
const PALETTE = ["#e69f00", "#56b4e9", "#2fbf93", "#f0e442", "#d55e00", "#cc79a7", "#4c9be0", "#b8b8b8"];
const TICK_MS = 100;
const SILENCE_MS = 1500;
const LOCKSTEP_SILENCE_MS = 5000;
const OLD_PICTURE_MS = 1000;
const NOTICE_MS = 30_000;
const ANSWER_MS = 6000;

const $ = (id) => document.getElementById(id);
const seen = { hello: null, plan: null, health: null, session: null, heardMs: null, sessionMs: 0, picture: null };
let open = false;
let answeredMs = -Infinity;
const clock = new ServerClock();
const link = new Link({ take, show, changed });
const timeline = new Timeline(
  $("timeline"),
  { selected: $("selected"), accept: $("accept"), reject: $("reject"), correct: $("correct") },
  { judge: (start_s, action) => command({ type: "judge", start_s, action }), style },
);

// ------------------------------------------------------------------------------------------------ what comes

function take(batch) {
  clock.hear(batch.now_ms);
  seen.heardMs = batch.heard_ms;
  seen.sessionMs = batch.session_ms;
  for (const [name, section] of Object.entries(batch.sections)) sections[name]?.(section);
  tick();
}

function changed(isOpen) {
  open = isOpen;
  if (isOpen) clock.forget();
  tick();
}

function show(bitmap, head) {
  const canvas = $("picture");
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
  }
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  seen.picture = head;
  $("no-picture").hidden = true;
  tick();
}

const sections = {
  hello(hello) {
    seen.hello = hello;
    document.title = hello.title;
    $("title").textContent = hello.title;
    timeline.enabled = hello.verdicts;
    timeline.setActions(hello.actions.map((action) => action.name));
  },
  plan(plan) {
    seen.plan = plan;
    drawPlan(plan);
  },
  words({ why, streams, problem }) {
    $("why").textContent = why || (problem && `No explanation: ${problem}`) || "–";
    $("streams").textContent = streams ? "· being written" : "";
  },
  clips(clips) {
    seen.open = clips.open;
    timeline.setClips(clips);
  },
  verdicts: (verdicts) => timeline.setVerdicts(verdicts),
  health(health) {
    seen.health = health;
    if (health) {
      const restarts = health.restarts ?? {};
      const lines = Object.entries(health.parts).map(([part, state]) => {
        const again = restarts[part] ? `, restarted ${restarts[part]} ×` : "";
        return item(`${part}${state === "ok" ? "" : `: ${state}`}${again}`, state === "ok" ? "" : "bad");
      });
      $("health").replaceChildren(...lines);
    }
  },
  counters() {
    $("latency-legend").replaceChildren(mark("median", "#56b4e9"), mark("max", "#e69f00"));
  },
  charts(charts) {
    drawLatency($("latency"), charts);
    drawDrops($("drops"), charts);
    const reasons = Object.keys(charts.dropped);
    $("drops-legend").replaceChildren(
      ...reasons.map((reason, i) => mark(reason.replaceAll("_", " "), REASON_COLOURS[i % REASON_COLOURS.length])),
    );
    if (!reasons.length) $("drops-legend").textContent = "none";
  },
  notices(notices) {
    seen.notices = notices;
  },
  session(session) {
    seen.session = session;
    if (!session) return;
    $("case").textContent = session.case_id;
    if (document.activeElement !== $("goal")) $("goal").value = session.goal;
    $("pause").setAttribute("aria-pressed", String(session.paused));
    $("pause").firstChild.data = session.paused ? "Go on planning " : "Pause planning ";
  },
  memory(memory) {
    seen.memory = memory;
    drawInspector();
  },
  prompt(prompt) {
    seen.prompt = prompt;
    drawInspector();
  },
  picture({ pixels }) {
    if (!pixels) {
      $("no-picture").textContent = "This source has no pictures";
      $("no-picture").hidden = false;
    }
  },
  answer({ text }) {
    $("answer").textContent = text;
    answeredMs = performance.now();
  },
};

// ------------------------------------------------------------------------------------------------ the plan

function style(action) {
  const actions = seen.hello?.actions ?? [];
  const at = actions.findIndex((known) => known.name === action);
  return at < 0
    ? { code: action.slice(0, 3).toUpperCase(), colour: PALETTE[7] }
    : { code: actions[at].code, colour: PALETTE[at % PALETTE.length] };
}

function drawPlan(plan) {
  const rows = [...$("ranked").children];
  rows.forEach((row, i) => {
    const ranked = plan?.ranked[i];
    row.querySelector(".action").textContent = ranked ? ranked.action : "";
    row.querySelector(".chance").textContent = ranked ? percent(ranked.probability) : "";
    const bar = row.querySelector("i");
    bar.style.width = ranked ? `${100 * ranked.probability}%` : "0";
    bar.style.background = ranked ? style(ranked.action).colour : "";
    row.title = ranked?.rationale ?? "";
    row.style.visibility = ranked ? "visible" : "hidden";
  });
  const current = plan?.current_action;
  $("now-action").textContent = current ?? (plan ? "No action recognised yet" : "Waiting for the first plan");
  $("overlay-now").textContent = current ?? "";
  $("overlay-now").style.borderColor = current ? style(current).colour : "";
  $("onset").replaceChildren(...onset(plan));
  $("rung").textContent = plan ? (plan.abstained ? "–" : plan.source) : "–";
  $("rung").title = plan ? plan.rungs.map((report) => `${report.rung}: ${report.reason}`).join("\n") : "";
  $("progress").textContent = plan?.progress ?? "";
  const cautions = plan?.safety ?? [];
  $("cautions").replaceChildren(
    ...(cautions.length ? cautions.map((text) => item(text)) : [item("nothing in particular", "none")]),
  );
  drawInspector();
}

function onset(plan) {
  if (plan?.expected_onset_s == null) return ["–"];
  const range = plan.expected_onset_interval_s;
  if (!range) return [`in ${span(plan.expected_onset_s)}`];
  const small = document.createElement("small");
  small.textContent = ` ${span(range[0])} to ${span(range[1])}`;
  return [`in ${span(plan.expected_onset_s)}`, small];
}

/** Everything that changes by itself as time goes by. */
function tick() {
  const { plan } = seen;
  const now = seen.hello?.lockstep ? seen.sessionMs : clock.now();
  const silentMs = seen.heardMs === null || !clock.known ? 0 : clock.now() - seen.heardMs;
  const silent = silentMs > (seen.hello?.lockstep ? LOCKSTEP_SILENCE_MS : SILENCE_MS);
  drawStatus(silent ? silentMs : 0);
  const leftMs = plan ? plan.valid_until_ns / 1e6 - now : 0;
  const expired = Boolean(plan) && clock.known && leftMs < 0;
  for (const id of ["advice", "reasons"]) $(id).classList.toggle("expired", expired);
  $("overlay-now").hidden = expired; // the picture may well be live when the word for it is not
  const line = $("verdict-line");
  line.dataset.kind = expired ? "expired" : "abstained";
  line.textContent = expired
    ? `EXPIRED ${age(-leftMs)} ago: not to be used`
    : plan?.abstained
      ? `NO PLAN: ${abstention(plan)}`
      : "";
  if (plan && clock.known) {
    const ageMs = Math.max(0, now - plan.captured_ns / 1e6);
    $("age").textContent = age(ageMs);
    $("expiry-label").textContent = expired ? "Expired" : "Valid for";
    $("expiry").textContent = plan.abstained && !expired ? "–" : expired ? `${age(-leftMs)} ago` : age(leftMs);
    const whole = (plan.valid_until_ns - plan.captured_ns) / 1e6;
    $("remaining").firstElementChild.style.width = plan.abstained || expired ? "0" : `${(100 * leftMs) / whole}%`;
    $("time").textContent = clockTime(plan.pts_s);
    drawNowDetail(plan);
  }
  drawFrame(now);
  const notice = seen.notices?.at(-1);
  $("notice").textContent = notice && clock.known && clock.now() - notice[0] < NOTICE_MS ? notice[1] : "";
  if (performance.now() - answeredMs > ANSWER_MS) $("answer").textContent = "";
}

function drawNowDetail(plan) {
  const lasts = seen.open && seen.open.action === plan.current_action ? plan.pts_s - seen.open.start_pts_s : null;
  const sure = plan.current_action ? `${percent(plan.current_confidence)} sure` : "";
  $("now-detail").textContent = lasts === null ? sure : `${clockTime(lasts)}  ·  ${sure}`;
}

function drawFrame(now) {
  const head = seen.picture;
  if (!head) return;
  const ageMs = Math.max(0, now - head.capturedMs);
  const old = ageMs > OLD_PICTURE_MS || !open;
  $("scene").classList.toggle("old", old);
  $("overlay-frame").textContent = `${old ? "OLD PICTURE · " : ""}frame ${head.seq} · ${clockTime(head.ptsS)} · ${age(ageMs)} old`;
}

function drawStatus(silentMs) {
  const status = $("status");
  const [state, text] = !open
    ? ["lost", "NO CONNECTION"]
    : silentMs
      ? ["lost", `NO WORD FROM THE AGENT FOR ${age(silentMs)}`]
      : seen.session?.paused
        ? ["paused", "PAUSED"]
        : seen.health?.state === "degraded"
          ? ["degraded", "DEGRADED"]
          : seen.plan
            ? ["ok", "RUNNING"]
            : ["waiting", "STARTING"];
  status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
}

// ------------------------------------------------------------------------------------------------ the inspector

function drawInspector() {
  if ($("inspector").hidden) return;
  const { plan, memory, prompt, hello } = seen;
  const facts = [];
  if (plan) {
    facts.push(["Frame of the plan", `${plan.seq} at ${clockTime(plan.pts_s)}, session ${plan.session_id}`]);
    facts.push(["Answered by", `${plan.planner} (${plan.source}), request ${plan.request_id || "none"}, revision ${plan.revision}`]);
    for (const report of plan.rungs) facts.push([`Rung ${report.rung}`, report.reason]);
    const spans = Object.entries(plan.spans_ms).map(([stage, ms]) => `${stage} ${ms.toFixed(2)}`);
    facts.push(["Spans, ms", spans.join(", ") || "–"]);
    if (plan.chain.length) facts.push(["Chain", plan.chain.map((step) => step.action).join(" → ")]);
    if (plan.caption) facts.push(["Caption", `${plan.caption} (${plan.caption_age_s?.toFixed(1)} s older)`]);
    for (const note of plan.notes) facts.push(["Note", note]);
    if (plan.contradiction) facts.push(["Contradiction", plan.contradiction]);
    for (const [what, hash] of Object.entries(plan.hashes)) facts.push([`Hash of ${what}`, hash || "none"]);
  }
  if (memory) {
    const { near } = memory;
    if (near) facts.push(["Newest frame in memory", `${near.seq} at ${clockTime(near.pts_s)}, ${near.width}×${near.height}`]);
    const seenTools = memory.instruments.length
      ? hello.instruments.map((name, i) => `${name} ${percent(memory.instruments[i])}`).join(", ")
      : "not observed";
    facts.push(["Instruments now", seenTools]);
    const folded = memory.folded.map((total) => `${total.action} ${total.count}×`).join(", ");
    facts.push(["Folded clips", folded ? `${folded}; ${memory.evictions} evictions` : "none"]);
    $("labels").replaceChildren(
      ...memory.labels.map((label) => {
        const one = item(label);
        one.style.background = style(label).colour;
        return one;
      }),
    );
  }
  $("facts").replaceChildren(
    ...facts.flatMap(([name, value]) => {
      const term = document.createElement("dt"), definition = document.createElement("dd");
      term.textContent = name;
      definition.textContent = value;
      return [term, definition];
    }),
  );
  $("prompt").hidden = !prompt;
  $("prompt").textContent = prompt ? prompt.parts.join("\n\n────────\n\n") : "";
  const pictures = prompt?.pictures.map((one) => `${one.width}×${one.height}`).join(", ");
  $("prompt-facts").textContent = prompt
    ? `Request ${prompt.request_id}, frame ${prompt.seq}: ${prompt.characters} characters, about ${Math.round(prompt.characters / 4)} tokens of text; pictures: ${pictures || "none"}`
    : hello?.asks_a_model
      ? "No model was asked yet."
      : "No language model is asked (planner.kind): the plan comes from labels, durations and instruments alone.";
}

// ------------------------------------------------------------------------------------------------ controls

function command(message) {
  if (!link.send(message)) sections.answer({ text: "Not sent: no connection" });
}

function focus(input) {
  input.focus();
  input.select?.();
}

function toggleInspector() {
  const hidden = !$("inspector").hidden;
  $("inspector").hidden = hidden;
  $("inspect").setAttribute("aria-expanded", String(!hidden));
  drawInspector();
}

$("goal-form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("goal").value.trim();
  if (text) command({ type: "goal", text });
  $("goal").blur();
};
$("case-form").onsubmit = (event) => {
  event.preventDefault();
  const case_id = $("new-case").value.trim();
  if (case_id && confirm(`Begin the new case ${case_id}? Everything about this one is forgotten.`)) {
    command({ type: "new_case", case_id });
    $("new-case").value = "";
  }
  $("new-case").blur();
};
$("pause").onclick = () => command({ type: "pause", paused: !seen.session?.paused });
$("inspect").onclick = toggleInspector;

const keys = {
  g: () => focus($("goal")),
  n: () => focus($("new-case")),
  p: () => $("pause").click(),
  m: toggleInspector,
  a: () => $("accept").click(),
  r: () => {
    $("reject").click();
    if (!$("correct").disabled) $("correct").focus();
  },
  ArrowLeft: () => timeline.move(-1),
  ArrowRight: () => timeline.move(1),
  Escape: () => $("inspector").hidden || toggleInspector(),
};
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
  if (typing && event.key === "Escape") document.activeElement.blur();
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

// ------------------------------------------------------------------------------------------------ small things

function item(text, kind = "") {
  const line = document.createElement("li");
  line.textContent = text;
  if (kind) line.className = kind;
  return line;
}

function mark(text, colour) {
  const word = document.createElement("b");
  word.textContent = ` ■ ${text}`;
  word.style.color = colour;
  return word;
}

setInterval(tick, TICK_MS);

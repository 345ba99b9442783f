// How times and reasons are written.

const GATES = {
  black: "the picture is black",
  frozen: "the picture is frozen",
  blurred: "the picture is blurred",
  out_of_body: "the camera is outside the body",
};

/** `0:07`, `12:34`, `1:02:03`. */
export function clockTime(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  return minutes < 60
    ? `${minutes}:${two(whole % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}

/** `132 ms` under a second, `3.2 s` above. */
export function age(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : clockTime(ms / 1000);
}

/** `24 s`, `2:35 min`. */
export function span(seconds) {
  return seconds < 60 ? `${Math.round(seconds)} s` : `${clockTime(seconds)} min`;
}

export function percent(value) {
  return value > 0 && value < 0.01 ? "<1 %" : `${Math.round(value * 100)} %`;
}

/** Why there is no advice. */
export function abstention(plan) {
  const reason = plan.abstain_reason.replace(/^gate: /, "");
  return GATES[reason] ?? (reason || "no reason given");
}

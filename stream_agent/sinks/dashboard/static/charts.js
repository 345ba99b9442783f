// Two small charts on canvas: lines over the last two minutes, and stacked bars by reason.

const SPAN_S = 120;
const SOFT = "#a9b4bc";
const LINE = "#2b343b";
export const REASON_COLOURS = ["#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#2fbf93", "#d55e00"];

export function drawLatency(canvas, charts) {
  const points = charts.max_ms.concat(charts.p50_ms).filter((value) => value !== null);
  const plot = begin(canvas, ceiling(Math.max(10, ...points)));
  if (!plot || charts.end_s === null) return;
  line(plot, charts, charts.max_ms, "#e69f00", 1.5);
  line(plot, charts, charts.p50_ms, "#56b4e9", 2.5);
}

export function drawDrops(canvas, charts) {
  const reasons = Object.keys(charts.dropped);
  const totals = charts.at_s.map((_, i) => reasons.reduce((sum, reason) => sum + charts.dropped[reason][i], 0));
  const plot = begin(canvas, ceiling(Math.max(5, ...totals)));
  if (!plot || charts.end_s === null) return;
  const width = Math.max(1, plot.width / SPAN_S - 0.5);
  charts.at_s.forEach((at, i) => {
    let base = 0;
    reasons.forEach((reason, number) => {
      const value = charts.dropped[reason][i];
      const top = plot.y(base + value);
      plot.context.fillStyle = REASON_COLOURS[number % REASON_COLOURS.length];
      plot.context.fillRect(plot.x(at - charts.end_s), top, width, plot.y(base) - top);
      base += value;
    });
  });
}

function begin(canvas, most) {
  const ratio = devicePixelRatio || 1;
  const { clientWidth, clientHeight } = canvas;
  if (!clientWidth || !clientHeight) return null;
  if (canvas.width !== Math.round(clientWidth * ratio)) canvas.width = Math.round(clientWidth * ratio);
  if (canvas.height !== Math.round(clientHeight * ratio)) canvas.height = Math.round(clientHeight * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, clientWidth, clientHeight);
  const left = 44, bottom = 20, top = 8;
  const width = clientWidth - left - 6, height = clientHeight - bottom - top;
  const plot = {
    context, width,
    x: (behindS) => left + width * (1 + behindS / SPAN_S),
    y: (value) => top + height * (1 - value / most),
  };
  context.font = "13px system-ui, sans-serif";
  context.fillStyle = SOFT;
  context.strokeStyle = LINE;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of [0, most / 2, most]) {
    context.beginPath();
    context.moveTo(left, plot.y(value));
    context.lineTo(left + width, plot.y(value));
    context.stroke();
    context.fillText(String(value), left - 6, plot.y(value));
  }
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  context.fillText("2 min ago", left, clientHeight - 4);
  context.textAlign = "right";
  context.fillText("now", left + width, clientHeight - 4);
  return plot;
}

function line(plot, charts, values, colour, width) {
  const { context } = plot;
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  let pen = false;
  values.forEach((value, i) => {
    if (value === null) {
      pen = false;
      return;
    }
    const x = plot.x(charts.at_s[i] - charts.end_s), y = plot.y(value);
    pen ? context.lineTo(x, y) : context.moveTo(x, y);
    pen = true;
  });
  context.stroke();
  context.lineWidth = 1;
}

/** The next of 1, 2, 5 times a power of ten. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

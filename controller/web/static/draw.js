"use strict";
// Traces on a canvas: the least and the greatest value of each column, for the live sweep and for sessions of before.

const EMG = 0, FORCE = 1, EVIDENCE = 2;
const MARKS = { pulse: "--pulse", spasm: "--spasm", over: "--over", refused: "--refused", "held back": "--soft" };

function traceList(scene, n) {
  const list = (kind, names, colour, unit) => names.map((name, i) => ({ kind, i, name, colour, unit, least: new Float32Array(n).fill(NaN), most: new Float32Array(n).fill(NaN) }));
  return [...list(EMG, scene.emg, "--emg", "µV"), ...list(FORCE, scene.force, "--force", scene.force_unit), ...list(EVIDENCE, scene.rules, "--evidence", "")];
}
function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(name).trim();
}
function clean(canvas, pen, nRows, colour) {
  const ratio = devicePixelRatio || 1, w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  pen.fillStyle = colour("--paper"); pen.fillRect(0, 0, w, h);
  const rowHeight = h / Math.max(1, nRows);
  pen.font = `${ratio * Math.max(12, Math.min((rowHeight / ratio) * 0.2, 26))}px system-ui`;
  return { ratio, w, h, rowHeight };
}
function write(pen, text, x, y, ink, paper) {    // readable on whatever is drawn there
  const size = parseFloat(pen.font);
  pen.globalAlpha = 0.8; pen.fillStyle = paper; pen.fillRect(x - 3, y - size, pen.measureText(text).width + 6, size * 1.3);
  pen.globalAlpha = 1; pen.fillStyle = ink; pen.fillText(text, x, y);
  return pen.measureText(text).width;
}
function scaleOf(trace, n, hushed) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < n; i++) {                  // a pulse's own picture in the EMG does not set the scale
    if (trace.kind === EMG && hushed[i]) continue;
    if (trace.least[i] < low) low = trace.least[i];
    if (trace.most[i] > high) high = trace.most[i];
  }
  if (trace.kind === EVIDENCE) { low = 0; high = Math.max(high, 1.2); }
  if (!(high > low)) { high = low + 1; if (!Number.isFinite(low)) { low = 0; high = 1; } }
  return { low, high };
}
// A row of the picture: where it is, and what its values are.
function rowOf(pen, trace, y0, height, w, colour, n) {
  const { low, high } = trace.scale, pad = height * 0.08, above = Math.min(parseFloat(pen.font) * 1.5, height / 2);   // the name has a line of its own
  return { trace, y0, height, w, n, colour, y: (v) => y0 + height - pad - ((v - low) / (high - low)) * (height - pad - above) };
}
function drawColumns(pen, row, first, last) {    // columns of the sweep from first to last
  const { trace, y0, height, w, n, colour, y } = row, step = w / n, left = Math.floor(first * step), right = Math.floor((last + 1) * step);
  pen.fillStyle = colour("--line"); pen.fillRect(left, y0 + height - 1, right - left, 1);
  if (trace.kind === EVIDENCE) {
    pen.fillStyle = colour("--spasm");
    for (let x = Math.floor(left / 12) * 12; x < right; x += 12) pen.fillRect(Math.max(left, x), Math.round(y(1)), Math.min(x + 6, right) - Math.max(left, x), 1);
  }
  pen.fillStyle = colour(trace.colour);
  for (let i = first; i <= last; i++) {
    if (Number.isNaN(trace.least[i])) continue;
    let least = trace.least[i], most = trace.most[i];
    if (i && trace.least[i - 1] > most) most = trace.least[i - 1];   // a line, not dots
    if (i && trace.most[i - 1] < least) least = trace.most[i - 1];
    const x = Math.floor(i * step), top = Math.round(Math.max(y0, y(most))), bottom = Math.round(Math.min(y0 + height, y(least)));
    pen.fillRect(x, top, Math.max(1, Math.floor((i + 1) * step) - x), Math.max(1, bottom - top));   // whole pixels: sharp, and quick
  }
}
function drawName(pen, row) {
  const { trace, y0, colour } = row, { low, high } = trace.scale;
  const range = trace.kind === EVIDENCE ? "evidence, dashed: enough" : `${trim(low)} to ${trim(high)} ${trace.unit}`;
  row.nameWidth = 12 + write(pen, `${trace.name}   ${range}`, 8, y0 + parseFloat(pen.font) * 1.1, colour("--ink"), colour("--paper"));
}
function trim(x) { return Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(2); }

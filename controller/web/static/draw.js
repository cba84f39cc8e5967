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
}
function drawRow(pen, trace, y0, height, w, colour, n, hushed) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < n; i++) {                  // a pulse's own picture in the EMG does not set the scale
    if (trace.kind === EMG && hushed[i]) continue;
    if (trace.least[i] < low) low = trace.least[i];
    if (trace.most[i] > high) high = trace.most[i];
  }
  if (trace.kind === EVIDENCE) { low = 0; high = Math.max(high, 1.2); }
  if (!(high > low)) { high = low + 1; if (!Number.isFinite(low)) { low = 0; high = 1; } }
  const pad = height * 0.08, above = Math.min(parseFloat(pen.font) * 1.5, height / 2);   // the name has a line of its own
  const y = (v) => y0 + height - pad - ((v - low) / (high - low)) * (height - pad - above);
  pen.strokeStyle = colour("--line"); pen.lineWidth = 1; pen.beginPath(); pen.moveTo(0, y0 + height); pen.lineTo(w, y0 + height); pen.stroke();
  if (trace.kind === EVIDENCE) { pen.strokeStyle = colour("--spasm"); pen.setLineDash([6, 6]); pen.beginPath(); pen.moveTo(0, y(1)); pen.lineTo(w, y(1)); pen.stroke(); pen.setLineDash([]); }
  pen.fillStyle = colour(trace.colour);
  const step = w / n;
  for (let i = 0; i < n; i++) {
    if (Number.isNaN(trace.least[i])) continue;
    let least = trace.least[i], most = trace.most[i];
    if (i && trace.least[i - 1] > most) most = trace.least[i - 1];   // a line, not dots
    if (i && trace.most[i - 1] < least) least = trace.most[i - 1];
    const x = Math.floor(i * step), top = Math.round(Math.max(y0, y(most))), bottom = Math.round(Math.min(y0 + height, y(least)));
    pen.fillRect(x, top, Math.max(1, Math.floor((i + 1) * step) - x), Math.max(1, bottom - top));   // whole pixels: sharp, and quick
  }
  const range = trace.kind === EVIDENCE ? "evidence, dashed: enough" : `${trim(low)} to ${trim(high)} ${trace.unit}`;
  write(pen, `${trace.name}   ${range}`, 8, y0 + parseFloat(pen.font) * 1.1, colour("--ink"), colour("--paper"));
}
function trim(x) { return Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(2); }

"use strict";
// Sessions of before: the whole, any part from near, spasm by spasm.

const AGAIN_MS = 2000, ANSWER_MS = 3000;         // a page's process that ends may never answer
const past = { name: "", of: null, from: 0, to: 1, asked: 0, dragged: null };
const pastCanvas = $("session-canvas"), pastPen = pastCanvas.getContext("2d", { alpha: false });

opened.sessions = async () => {
  const answer = await fetch("/sessions", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) }).then((r) => r.json()).catch(() => null);
  if (!answer) {                                // a new session begins, and the page's process with it
    set("session-told", "no answer, asked again");
    setTimeout(() => { if (document.body.dataset.view === "sessions") opened.sessions(); }, AGAIN_MS);
    return;
  }
  if (!answer.ok) { set("session-told", answer.reasons.join("; ")); return; }
  if ($("session-told").textContent.startsWith("no answer")) set("session-told", "");
  const options = answer.sessions.map((row) => { const option = item("option", `${row.name}  (${(row.bytes / 1e6).toFixed(1)} MB)`); option.value = row.name; return option; });
  $("session-list").replaceChildren(Object.assign(item("option", answer.sessions.length ? "choose one" : "there are none"), { value: "" }), ...options);
  $("session-list").value = past.name;
  if (past.of) drawPart();
};

$("session-list").addEventListener("change", async () => {
  const name = $("session-list").value;
  past.name = name; past.of = null;
  $("session").hidden = true;
  if (!name) return;
  set("session-told", "Being read...");
  const answer = await fetch(`/sessions/${encodeURIComponent(name)}`).then((r) => r.json()).catch(() => ({ ok: false, reasons: ["no answer"] }));
  if (past.name !== name) return;
  if (answer.ok === false) { set("session-told", answer.reasons.join("; ")); return; }
  past.of = answer;
  const s = answer, seen = s.n_spasms, units = [...new Set(s.spasms.map((spasm) => spasm.unit))];
  set("session-told", `${clock(s.length_s)} long, ${seen} ${seen === 1 ? "spasm" : "spasms"}, ${s.trains.length} trains, ${s.given.pulses} pulses, ${s.given.charge_mc.toFixed(2)} mC. Prescription version ${s.prescription.version}, ${s.prescription.author}. ${s.end ? `Ended: ${s.end}.` : "It goes on, or was cut."}`);
  for (const [id, text] of [["before", "1 s before"], ["during", "until stimulated"], ["after", "1 s after"]]) set(`session-${id}`, `RMS ${text}${units.length ? `, ${units.join(" or ")}` : ""}`);
  const names = [...$("session-spasms").parentElement.querySelectorAll("th")].map((th) => th.textContent);
  const cell = (text) => item("td", text), loud = (x, unit) => (x === null ? "-" : x.toPrecision(3) + (units.length > 1 ? ` ${unit}` : ""));
  $("session-spasms").replaceChildren(...s.spasms.map((spasm) => {
    const line = document.createElement("tr"), at = document.createElement("td"), go = item("button", clock(spasm.onset_s));
    go.addEventListener("click", () => part(spasm.onset_s - 2, Math.max(spasm.offset_s, spasm.onset_s + 1) + 2));
    at.append(go);
    line.append(at, cell(spasm.n_rules > 1 ? `${spasm.rule} (one spasm, ${spasm.n_rules} rules)` : spasm.rule), cell(spasm.clonus_hz ? `clonus ${spasm.clonus_hz.toFixed(1)} Hz` : spasm.kind), cell((spasm.offset_s - spasm.onset_s).toFixed(2)), cell(String(spasm.pulses)), cell(loud(spasm.rms.before, spasm.unit)), cell(spasm.pulses ? loud(spasm.rms.during, spasm.unit) : ""), cell(loud(spasm.rms.after, spasm.unit)));
    [...line.children].forEach((one, i) => { one.dataset.name = names[i]; });
    return line;
  }));
  $("session-events").replaceChildren(...s.events.map((event) => item("li", `${clock(event.at_s)}  ${event.state}  ${plain(event.words)}${event.n > 1 ? `  (${event.n} times, until ${clock(event.until_s)})` : ""}`)));
  $("session").hidden = false;
  part(0, s.length_s);
});

const clock = (s) => { const tenths = Math.round(s * 10); return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`; };

async function part(from, to) {
  const length = past.of.length_s, wide = Math.min(Math.max(to - from, 0.05), length);
  past.from = Math.min(Math.max(0, from), length - wide); past.to = past.from + wide;
  await drawPart();
}
async function drawPart() {
  const asked = ++past.asked, n = Math.min(2000, Math.max(200, Math.round(pastCanvas.clientWidth)));
  const { name, from, to, of } = past;
  const answer = await fetch(`/sessions/${encodeURIComponent(name)}?from=${from}&to=${to}&n=${n}`);
  if (asked !== past.asked) return;
  if (!answer.ok) { set("session-told", ((await answer.json()).reasons || []).join("; ")); return; }
  const data = await answer.arrayBuffer(), list = traceList(of, n);
  for (let at = 0; at < data.byteLength; ) {
    const [what, , count, width] = new Uint32Array(data, at, 4), x = new Float32Array(data, at + 16, 2 * count * width);
    for (let k = 0; k < count; k++) for (let i = 0; i < width; i++) {
      const trace = list.find((one) => one.kind === what && one.i === i);
      if (trace) { trace.least[k] = x[2 * (k * width + i)]; trace.most[k] = x[2 * (k * width + i) + 1]; }
    }
    at += 16 + 8 * count * width;
  }
  const colour = colours(), { ratio, w, h, rowHeight } = clean(pastCanvas, pastPen, list.length, colour), x = (s) => ((s - from) / (to - from)) * w;
  const hushed = new Uint8Array(n);
  for (const train of of.trains) {
    const first = Math.max(0, Math.floor(((train.at_s - 0.02 - from) / (to - from)) * n)), last = Math.min(n - 1, ((train.at_s + train.length_s + 0.05 - from) / (to - from)) * n);
    for (let i = first; i <= last; i++) hushed[i] = 1;
  }
  list.forEach((trace, i) => {
    trace.scale = scaleOf(trace, n, hushed);
    const row = rowOf(pastPen, trace, i * rowHeight, rowHeight, w, colour, n);
    drawColumns(pastPen, row, 0, n - 1);
    drawName(pastPen, row);
  });
  const mark = (s, what, wide) => { pastPen.fillStyle = colour(MARKS[what]); pastPen.fillRect(x(s), 0, wide || Math.max(1, ratio), what === "pulse" ? h * 0.03 : h); };
  for (const train of of.trains) if (train.at_s < to && train.at_s + train.length_s > from) mark(train.at_s, "pulse", Math.max(2, x(train.at_s + train.length_s) - x(train.at_s)));
  for (const spasm of of.spasms) { if (spasm.onset_s >= from && spasm.onset_s < to) mark(spasm.onset_s, "spasm"); if (spasm.offset_s >= from && spasm.offset_s < to) mark(spasm.offset_s, "over"); }
  set("session-part", `${clock(from)} to ${clock(to)}`);
}

const ZOOMS = { all: () => [0, past.of.length_s], in: (m, half) => [m - half / 2, m + half / 2], out: (m, half) => [m - 2 * half, m + 2 * half], back: (m, half) => [m - 2 * half, m], on: (m, half) => [m, m + 2 * half] };
document.querySelector(".zoom").addEventListener("click", (event) => {
  const zoom = ZOOMS[event.target.dataset.zoom];
  if (zoom && past.of) part(...zoom((past.from + past.to) / 2, (past.to - past.from) / 2));
});
const where = (event) => past.from + ((event.clientX - pastCanvas.getBoundingClientRect().left) / pastCanvas.clientWidth) * (past.to - past.from);
pastCanvas.addEventListener("pointerdown", (event) => { if (past.of) { past.dragged = where(event); pastCanvas.setPointerCapture(event.pointerId); } });
pastCanvas.addEventListener("pointerup", (event) => {
  const other = where(event), begun = past.dragged;
  past.dragged = null;
  if (begun !== null && Math.abs(other - begun) > 0.01 * (past.to - past.from)) part(Math.min(begun, other), Math.max(begun, other));
});

"use strict";
// The bedside page. What is shown comes from the daemon's feed alone; what is older than a second is unknown.
// A press is sent once, with a number of its own, and only while the connection is open: nothing is ever sent later.

const $ = (id) => document.getElementById(id);
const STALE_MS = 1000, SWEEP_S = 10, SILENCE_MS = 120000, RETRY_MS = 500;
const RENEW_MS = 20000;                         // what a new session may take to begin after a change that a person made
const TOLD_MS = 10000, SETTLE_MS = 1500;        // how long a message stays; within how long the state that it brings is there
const ASK_MS = 2000, TAKE_MS = 6000;            // how often we ask whether we hold control; how long a first press waits for its second

const bed = { status: null, mode: "", alarms: [], guard: null, heardMs: -Infinity, guardMs: -Infinity, ageMs: 0 };
const traces = new Map();                       // "what/i" -> {least, most: Float32Array, newest}
let marks = [], scene = null, newest = -1, socket = null, number = 0, offered = null, silentUntil = 0;
let renewUntilMs = -Infinity, lastPulseS = -Infinity, holds = false, takeUntilMs = -Infinity;
const waiting = new Map();

// --- the connection -----------------------------------------------------------------------------------------------------------------
function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => say({ do: "status" }).then((answer) => { holds = Boolean(answer.holds); know(answer.you || null); });
  socket.onmessage = (event) => (typeof event.data === "string" ? hear(JSON.parse(event.data)) : columns(event.data));
  socket.onclose = () => {
    silentUntil = 0;                            // a lost link ends every silence
    for (const settle of waiting.values()) settle({ ok: false, reasons: ["the connection to the bed is gone: it is not known whether this was done"] });
    waiting.clear();
    setTimeout(connect, RETRY_MS);
  };
}

function say(command) {
  if (!socket || socket.readyState !== WebSocket.OPEN || (socket.bufferedAmount > 0 && command.do !== "stop"))
    return Promise.resolve({ ok: false, reasons: ["not sent: there is no connection to the bed"] });
  const nr = ++number;
  socket.send(JSON.stringify({ ...command, nr }));
  return new Promise((settle) => waiting.set(nr, settle));
}

function hear(message) {
  if (message.status !== undefined) {
    if (message.age_ms !== null) {
      bed.status = message.status; bed.mode = message.mode; bed.alarms = message.alarms; bed.ageMs = message.age_ms; bed.heardMs = performance.now();
      if (message.status.renewing) renewUntilMs = performance.now() + RENEW_MS;
      else if (message.status.loop !== "starting") renewUntilMs = -Infinity;
      if (message.status.scene) lay(message.status.scene);
    }
  } else if (message.guard) {
    bed.guard = message.guard; bed.guardMs = performance.now();
  } else if (message.mark) {
    const { at, what, text } = message.mark, off = what === "refused" && text.includes("automatic mode is off");
    if (!off) { marks.push(message.mark); marks = marks.slice(-200); }   // what an unarmed loop would have done is no event on the picture
    if (what === "pulse") { hush(at); lastPulseS = scene ? at / scene.column_hz : lastPulseS; }
    else if (off) log("Spasm, not answered: automatic mode is off", true);
    else log(`${WORDS[what] || ""} ${plain(text)}`, what === "refused" || what === "held back");
  } else if (message.answer) {
    const settle = waiting.get(message.nr);
    waiting.delete(message.nr);
    if (settle) settle(message.answer);
    return;
  }
  show();
}

// --- STOP: by mouse, by key, by form; the websocket first, the form where there is none ---------------------------------------------
async function stop() {
  const answer = await Promise.race([say({ do: "stop" }), new Promise((r) => setTimeout(() => r({ ok: false }), 300))]);
  const said = answer.ok ? answer : await fetch("/stop", { method: "POST" }).then((r) => r.json()).catch(() => null);
  unanswered = !(said && said.ok);
  told(unanswered ? "The stop was not answered." : "Stopped.", null);
  show();
}
// a finger that comes down stops, wherever and whenever it is lifted; the click that follows is the same act
let unanswered = false, pressedMs = -Infinity;
$("stop").addEventListener("pointerdown", () => { pressedMs = performance.now(); stop(); });
$("stop-form").addEventListener("submit", (event) => { event.preventDefault(); if (performance.now() - pressedMs > 1000) stop(); });
addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.repeat) { event.preventDefault(); stop(); } });

// --- words of people ----------------------------------------------------------------------------------------------------------------
let toldMs = -Infinity, toldState = "";
function told(text, by = document.activeElement) {   // beside what was pressed, or at the top
  const home = by && by.closest("#act, .clinician, aside > section");
  if (home && by.parentElement === home) by.after($("told")); else if (home) home.append($("told")); else document.querySelector("aside").prepend($("told"));
  $("told").textContent = text;
  toldMs = performance.now();
  log(text);
}
function fade(state) {                          // a message goes when the state is another one than it was said of, or after a while
  const ageMs = performance.now() - toldMs;
  if (ageMs < SETTLE_MS) toldState = state;
  else if (ageMs > TOLD_MS || state !== toldState) set("told", "");
}
async function act(command, done) {
  const by = document.activeElement, answer = await say(command), words = answer.ok ? done : (answer.reasons || ["no answer"]).join("; ");
  told(forPatient() ? words.replace(/ \[[A-Z]\d+[^\]]*\]/g, "") : words, by);
  return answer;
}
const forPatient = () => document.body.dataset.role === "patient";
function whyNot() {                             // why nothing can be asked for now; empty = it can
  const nurse = forPatient() ? ": ask the nurse" : "", { state, scene } = bed.status || {};
  if (!known()) return `The bed is not heard${nurse}.`;
  if (state === "STIMULATING") return "It stimulates now.";
  if (state === "FAULT") return `Something is wrong with the stimulator${nurse}.`;
  if (state === "LOCKOUT") return `No more for now${nurse}.`;
  if (state !== "ARMED") return `Not armed${nurse}.`;
  const nowS = bed.status.written_ns * 1e-9 + (bed.ageMs + performance.now() - bed.heardMs) / 1000;
  const restS = scene ? lastPulseS + PERIOD_S + scene.refractory_s - nowS : 0;
  return restS > 0 ? `Rest after a train: ${Math.ceil(restS)} s.` : "";
}
const PERIOD_S = 0.02;                          // a train lasts until its last period is over
$("trigger").addEventListener("keydown", (event) => { if (event.repeat) event.preventDefault(); });   // a key that is held is one press
$("trigger").addEventListener("click", (event) => {
  if (event.detail > 1) return;                 // a double click is one press
  if (whyNot()) { told(`Not sent. ${whyNot()}`); return; }
  const id = Number(crypto.getRandomValues(new BigUint64Array(1))[0] >> 12n) + 1;
  act({ do: "trigger", id }, forPatient() ? "Yes: one stimulation." : "One train asked for.");
});
const other = () => (bed.guard && bed.guard.holder && !holds ? bed.guard.holder : "");   // who else holds control
async function ask() {
  const answer = await say({ do: "status" });
  if (answer.ok) holds = Boolean(answer.holds);
  show();
}
setInterval(() => { if (document.body.dataset.role === "clinician") ask(); }, ASK_MS);
$("take").addEventListener("click", async () => {
  if (other() && performance.now() > takeUntilMs) { takeUntilMs = performance.now() + TAKE_MS; show(); return; }
  takeUntilMs = -Infinity;
  await act({ do: "take" }, "You hold control.");
  ask();
});
$("disarm").addEventListener("click", () => act({ do: "disarm" }, "Disarmed."));
$("offer").addEventListener("click", async () => {
  const answer = await act({ do: "offer" }, "Look at what would be armed, then at the patient.");
  offered = answer.ok ? answer : null;
  $("offered").hidden = !offered;
  ask();
  if (!offered) return;
  $("checked").checked = false;
  $("arm").disabled = true;
  $("prescription").replaceChildren(...[`Stimulator ${offered.stimulator_identity}`, ...offered.prescription].map((text) => item("li", text)));
  $("offered").focus({ preventScroll: true });
  $("offered").scrollIntoView({ block: "end" });
});
$("checked").addEventListener("change", () => { $("arm").disabled = !$("checked").checked; });
$("arm").addEventListener("click", async () => {
  const named = { offer: offered.offer, prescription_id: offered.prescription_id, electrodes_checked: $("checked").checked };
  await act({ do: "arm", ...named, automatic: $("automatic").checked }, "Armed.");
  $("offered").hidden = true;
});
$("invite-form").addEventListener("submit", async (event) => {   // its code stands nowhere else, not in the log either
  event.preventDefault();
  const name = $("invite-name").value, answer = await say({ do: "invite", role: $("invite-role").value, name });
  set("invite-code", answer.ok ? `${answer.code} lets ${name} in, once, within two minutes.` : (answer.reasons || ["no answer"]).join("; "));
});
$("clear-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ((await act({ do: "clear", reason: $("why").value }, "Fault cleared.")).ok) $("why").value = "";
});
$("pair-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/pair", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ code: $("code").value }) })
    .then((r) => r.json()).catch(() => ({ ok: false, reasons: ["no answer"] }));
  $("code").value = "";
  told(answer.ok ? `Paired as ${answer.name}, ${answer.role}.` : answer.reasons.join("; "));
  if (answer.ok) scrollTo(0, 0), socket.close();                // a new connection carries the token
});
$("leave").addEventListener("click", async () => { await act({ do: "leave" }, "You have left."); know(null); socket.close(); });

function know(you) {
  document.body.dataset.role = you ? you.role : "";
  if (!you) holds = false;
  set("trigger", forPatient() ? "Calm my spasm" : "Give one train");
  $("you").textContent = you ? `You are ${you.name}, ${you.role}.` : "You have not paired: you can read, and stop.";
  $("pair-form").hidden = Boolean(you) && you.role !== "clinician";
  set("pair-why", you ? "To arm or prescribe more than 5 minutes after pairing, prove again who you are: a new code" : "Code");
  $("leave").hidden = !you;
  if (!you || !READERS.includes(you.role)) look("live");
}

// --- what is looked at: the signals now, the prescription, sessions of before; state, alarms and STOP stay -----------------------------
const READERS = ["viewer", "clinician"], opened = {};   // what each view does when it is opened; and what a new session means to them
let inSession = "";
function look(view) {
  document.body.dataset.view = view;
  for (const button of $("views").children) button.ariaPressed = String(button.dataset.view === view);
  if (opened[view]) opened[view]();
}
$("views").addEventListener("click", (event) => { if (event.target.dataset.view) look(event.target.dataset.view); });

// --- what is shown ------------------------------------------------------------------------------------------------------------------
const WORDS = { spasm: "Spasm:", over: "Over:", "held back": "Held back," };
const item = (tag, text) => { const node = document.createElement(tag); node.textContent = text; return node; };

const CAUSES = { emg: "a spasm in the EMG", force: "a spasm in the force", manual: "a person asked" };
const plain = (text) => text.replace(/\b(emg|force|manual): train (?=\S)/g, (_, cause) => `${CAUSES[cause]}: train `);

function known() { return bed.status && bed.ageMs + performance.now() - bed.heardMs < STALE_MS; }

function show() {
  const fresh = known(), s = bed.status, g = performance.now() - bed.guardMs < 3 * STALE_MS ? bed.guard : null;
  const renewing = performance.now() < renewUntilMs, begins = renewing && (!fresh || s.renewing);
  const state = begins ? "new session" : fresh ? s.state : "unknown", why = g && fresh && g.state === s.state ? g.reason : fresh ? s.reason || "" : "";  // of the state; the report's is of whatever came last
  document.body.dataset.state = state;
  set("state", state);
  set("mode", fresh && !begins ? bed.mode : "");
  set("reason", begins ? "A new session begins with the new prescription; nothing is armed." : fresh ? plain(why) : "nothing was heard from the bed for more than a second");
  document.title = `${state} - calmloop`;
  const not = whyNot();
  $("trigger").ariaDisabled = String(Boolean(not));
  set("why-not", not);
  fade(state);
  alarms(fresh, renewing, begins);
  control();
  if (!fresh || !s.dose) {                        // not heard, or over a network and not paired: nothing old stands for how it is
    rows("health", [fresh ? ["more", "pair to see it"] : ["bed", "unknown"]]);
    rows("dose", [["dose", fresh ? "pair to see it" : "unknown"]]);
    set("signals", "");
    if (fresh) forget();
    return;
  }
  const given = s.dose.session || {}, day = s.dose.day || {};
  rows("dose", [
    ["this session", `${fix(given.on_time_s, 1)} s, ${given.pulses ?? "?"} pulses, ${fix(given.charge_mc, 2)} mC`],
    ["last 24 h", `${fix(day.on_time_s, 1)} s, ${day.pulses ?? "?"} pulses, ${fix(day.charge_mc, 2)} mC`],
    ...(g && g.dose ? [["of the session's limit", percent(g.dose.session)], ["of the day's limit", percent(g.dose["24h"])]] : []),
  ]);
  const faults = Object.entries(s.streams || {}).filter(([, what]) => what !== "fine").map(([name, what]) => `${name} ${what}`);
  const last = s.last_trigger, box = g ? g.stimulator : null;
  rows("health", [
    ["stimulator", g ? (box === "absent" ? "absent" : `${box.model || ""} at ${box.port || "?"}`) : "unknown"],
    ["signals", s.data_ok ? `fresh, ${fix(s.sample_age_ms, 1)} ms old` : ["NO DATA", ...faults].join(", ")],
    ["loop", s.loop],
    [`${last && last.pulled_ms === undefined ? "press" : "sample"} to pulse, last`, last && last.sum_ms !== undefined ? `${fix(last.sum_ms, 2)} ms` : "none yet"],
    ["recorded", `${fix(s.recording_bytes / 1e6, 1)} MB, ${fix(s.disk_free_bytes / 1e9, 0)} GB free`],
    ["trains", `${s.trains}, ${s.pulses} pulses, ${s.refusals} refused`],
    ["session", s.session.split("/").pop()],
  ]);
  if (inSession !== s.session && opened.session) opened.session(s.session);
  set("signals", Object.entries(s.rules).map(([name, r]) => `${name}: ${!s.data_ok ? "unknown" : r.active ? "SPASM" : "at rest"}${r.veto ? `, held back: ${r.veto}` : ""}${r.quality === "ok" ? "" : `, ${r.quality}`}`).join("; "));
}
function control() {                            // who may arm and prescribe: one at a time
  const g = performance.now() - bed.guardMs < 3 * STALE_MS ? bed.guard : null, they = other();
  set("holder", holds ? `You hold control${g && g.holder ? `, ${g.holder}` : ""}.` : !g ? "" : they ? `${they} holds control.` : "Nobody holds control.");
  $("take").hidden = holds;
  set("take", they && performance.now() < takeUntilMs ? `Press again to take control from ${they}` : "Take control");
  $("offer").disabled = Boolean(they);
  if (opened.control) opened.control(they);
}
function set(id, text) { if ($(id).textContent !== text) $(id).textContent = text; }
function fix(x, digits) { return typeof x === "number" ? x.toFixed(digits) : "?"; }
function percent(d) { return d ? `${((100 * d.on_ns) / d.max_on_ns).toFixed(1)} %` : "?"; }
function rows(id, pairs) {
  const text = JSON.stringify(pairs);
  if ($(id).dataset.text === text) return;
  $(id).dataset.text = text;
  $(id).replaceChildren(...pairs.flatMap(([name, value]) => [item("dt", name), item("dd", String(value))]));
}
const SAME = 8;                                 // so far back a row that may repeat is looked for
function log(text, repeats = false) {           // what repeats is one row with a count, whatever its figures
  const kind = text.replace(/[\d.]+/g, "#");
  const before = [...$("log").children].slice(0, repeats ? SAME : 1).find((row) => row.dataset.kind === kind);
  const count = before ? Number(before.dataset.count) + 1 : 1;
  if (before) before.remove();
  const node = item("li", `${new Date().toLocaleTimeString()}  ${text}${count > 1 ? `  (${count} times)` : ""}`);
  Object.assign(node.dataset, { kind, count });
  $("log").prepend(node);
  while ($("log").children.length > 100) $("log").lastChild.remove();
}

// --- alarms -------------------------------------------------------------------------------------------------------------------------
function alarms(fresh, renewing, begins) {
  const all = begins ? [] : fresh ? [...bed.alarms] : [["high", "Nothing is known of the bed: look at the patient."]];
  if (unanswered) all.unshift(["high", "The stop was not answered: SWITCH THE STIMULATOR OFF BY HAND."]);
  const text = JSON.stringify(all);
  if ($("alarms").dataset.text !== text) {
    $("alarms").dataset.text = text;
    $("alarms").replaceChildren(...all.map(([level, words]) => { const p = item("p", words); p.className = `alarm ${level}`; return p; }));
  }
  const kinds = text.replace(/\d+|, output is off/g, "");   // a figure that changes is nothing new, nor that a stop was confirmed
  if ($("alarms").dataset.kinds !== kinds) {
    $("alarms").dataset.kinds = kinds;
    if (all.length) log(`Alarm: ${all[0][1]}`);
    silentUntil = 0;                            // what is new is heard
  }
  const level = all.length ? all[0][0] : "", left = silentUntil - performance.now();
  $("silence").hidden = level !== "high" && level !== "medium";
  set("silence", left > 0 ? `Sound is off for ${Math.ceil(left / 1000)} s` : "Silence for 2 minutes");
  if (!renewing || level === "high") sound(level);   // that a new session's loop is still starting was to be expected
}
$("silence").addEventListener("click", () => { silentUntil = performance.now() + SILENCE_MS; show(); });
let audio = null, nextBeepMs = 0;
addEventListener("pointerdown", () => { audio = audio || new AudioContext(); }, { once: true });
function sound(level) {
  const now = performance.now(), pulses = { high: 5, medium: 3 }[level] || 0;
  if (!audio || !pulses || now < nextBeepMs || now < silentUntil) return;
  nextBeepMs = now + (level === "high" ? 5000 : 10000);
  for (let i = 0; i < pulses; i++) {
    const at = audio.currentTime + i * (level === "high" ? 0.25 : 0.4), tone = audio.createOscillator(), loud = audio.createGain();
    tone.frequency.value = level === "high" ? 880 : 660;
    loud.gain.setValueAtTime(0, at); loud.gain.linearRampToValueAtTime(0.3, at + 0.02); loud.gain.setValueAtTime(0.3, at + 0.13); loud.gain.linearRampToValueAtTime(0, at + 0.16);
    tone.connect(loud).connect(audio.destination); tone.start(at); tone.stop(at + 0.2);
  }
}

// --- traces: a sweep of SWEEP_S, drawn anew where something new has come --------------------------------------------------------------
let n = 1, hushed = new Uint8Array(1);          // columns of the sweep; those in which a pulse was given, or just before
function hush(at) { for (let i = -1; i < 4; i++) hushed[(Math.floor(at) + i + n) % n] = 1; }
function lay(what) {
  const text = JSON.stringify(what);
  if (scene && scene.text === text) return;
  scene = { ...what, text };
  n = what.column_hz * SWEEP_S;
  hushed = new Uint8Array(n);
  traces.clear();
  for (const trace of traceList(what, n)) traces.set(`${trace.kind}/${trace.i}`, trace);
}
function forget() {                              // the signals of somebody who has paired are not for who comes after
  if (!scene) return;
  scene = null; picture = null; marks = []; traces.clear();
  canvas.width = canvas.height = 1;
}
function columns(data) {
  if (!scene) return;
  const head = new Uint32Array(data, 0, 4), x = new Float32Array(data, 16), [what, first, count, width] = head;
  for (let k = 0; k < count; k++) {
    const at = (first + k) % n;
    for (let i = 0; i < width; i++) {
      const trace = traces.get(`${what}/${i}`);
      if (!trace) continue;
      trace.least[at] = x[2 * (k * width + i)]; trace.most[at] = x[2 * (k * width + i) + 1];
    }
  }
  if (what !== EVIDENCE || newest < 0) {
    const last = first + count - 1;
    for (let at = Math.max(newest + 1, last - n + 1); at <= last + n * 0.02; at++)   // wipe a little ahead of the pen
      if (at > last) { for (const trace of traces.values()) trace.least[at % n] = trace.most[at % n] = NaN; hushed[at % n] = 0; }
    newest = Math.max(newest, last);
  }
}

// Mostly only what is new is drawn: the columns since the last frame. All of it anew where sizes, colours or a trace's range change, which is
// looked at twice a second, and when the sweep begins again at the left.
const canvas = $("canvas"), pen = canvas.getContext("2d", { alpha: false }), RANGE_MS = 500, RANGE_TOLERANCE = 0.05;
let frames = 0, framesFrom = performance.now(), drawnAt = -1, picture = null, rangesMs = 0, wrote = [];
function ranges() {                              // whether one has changed enough to be seen
  let changed = false;
  for (const trace of traces.values()) {
    const is = trace.scale, now = scaleOf(trace, n, hushed), room = is ? RANGE_TOLERANCE * (is.high - is.low) : 0;
    if (is && Math.abs(now.low - is.low) <= room && Math.abs(now.high - is.high) <= room) continue;
    trace.scale = now;
    changed = true;
  }
  return changed;
}
function drawMark(mark) {
  const ago = newest - mark.at, { w, h, ratio, colour } = picture;
  if (!(mark.what in MARKS) || ago < 0 || ago >= n * 0.97) return;
  mark.drawn = true;
  const x = ((mark.at % n) / n) * w;
  pen.fillStyle = colour(MARKS[mark.what]);
  pen.fillRect(x, 0, Math.max(1, ratio), mark.what === "pulse" ? h * 0.03 : h);
  if (mark.what === "pulse") return;
  const wide = pen.measureText(mark.what).width + 6, left = Math.min(x + 4, w - wide);
  wrote = wrote.filter((one) => one.mark !== mark && newest - one.mark.at < n * 0.97);   // those that the pen has wiped are gone
  if (wrote.some((one) => left < one.left + one.wide && one.left < left + wide)) return;   // one over the other could not be read
  wrote.push({ mark, left, wide });
  write(pen, mark.what, left, h - 6, pen.fillStyle, colour("--paper"));
}
function drawAll() {
  const colour = colours(), { ratio, w, h, rowHeight } = clean(canvas, pen, traces.size, colour);
  picture = { colour, ratio, w, h, scene, scheme: colour("--paper"), rows: [...traces.values()].map((trace, i) => rowOf(pen, trace, i * rowHeight, rowHeight, w, colour, n)) };
  for (const row of picture.rows) { drawColumns(pen, row, 0, n - 1); drawName(pen, row); }
  wrote = [];
  marks.forEach(drawMark);
}
function drawNew() {
  const { colour, w, h, rows } = picture, step = w / n, from = drawnAt % n, to = newest % n, left = Math.floor(from * step);
  const right = Math.floor(Math.min(n, to + 1 + n * 0.02) * step);
  pen.fillStyle = colour("--paper"); pen.fillRect(left, 0, right - left, h);
  for (const row of rows) {
    drawColumns(pen, row, from, to);
    if (left < row.nameWidth) drawName(pen, row);
  }
  for (const mark of marks) if (!mark.drawn || newest - mark.at <= newest - drawnAt + 2) drawMark(mark);
}
function draw() {
  requestAnimationFrame(draw);
  if (!scene || newest === drawnAt || document.body.dataset.view !== "live" || !canvas.clientWidth) return;
  const now = performance.now(), ratio = devicePixelRatio || 1;
  let all = !picture || picture.scene !== scene || newest % n < drawnAt % n || newest - drawnAt > n / 2
    || canvas.width !== Math.round(canvas.clientWidth * ratio) || canvas.height !== Math.round(canvas.clientHeight * ratio);
  if (all || now - rangesMs > RANGE_MS) {
    rangesMs = now;
    all = ranges() || all || picture.scheme !== picture.colour("--paper");
  }
  if (all) drawAll(); else drawNew();
  drawnAt = newest;
  frames++;
  pen.fillStyle = picture.colour("--soft"); pen.fillRect(Math.floor(((newest % n) / n) * picture.w), 0, Math.max(1, ratio), picture.h);
  if (now - framesFrom > 1000) { set("rate", `${Math.round((1000 * frames) / (now - framesFrom))} frames a second, ${SWEEP_S} s`); frames = 0; framesFrom = now; }
}

addEventListener("DOMContentLoaded", () => {    // when the other scripts are there
  setInterval(show, 200);
  requestAnimationFrame(draw);
  connect();
});

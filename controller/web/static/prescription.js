"use strict";
// The prescription: a form of the settings' own fields. What follows from a change is worked out by the bed, from the same rules as a file.

const rx = { form: null, controls: new Map(), timer: 0, good: null };   // good: whether the bed says that what is written can be put into force; null = it was not answered yet

const beside = document.querySelector(".beside");
opened.prescription = async () => {
  if (rx.form && Object.keys(changes()).length) return;     // what is being written is not thrown away
  const form = await fetch("/prescription").then((r) => r.json()).catch(() => ({ ok: false, reasons: ["no answer"] }));
  if (!form.ok) { told(form.reasons.join("; ")); return; }
  rx.form = form;
  rx.controls.clear();
  // what is given first, and of that what is changed most; the limits after
  const first = ["current_ma", "phase_width_us"], rank = (field) => (field.table === "prescription" ? 3 : first.includes(field.key) ? 1 : 2);
  form.fields.sort((a, b) => rank(a) - rank(b));
  const tables = [...new Set(form.fields.map((field) => field.table))];
  const sets = tables.map((table) => {
    const set = document.createElement("fieldset");
    set.append(item("legend", table === "prescription" ? "Limits of this prescription" : `Train ${table.slice(7)}`), ...form.fields.filter((field) => field.table === table).map(fieldRow));
    return set;
  });
  sets.splice(-1, 0, beside);                     // what follows stands below what is typed, above the limits
  $("rx-fields").replaceChildren(...sets);
  set("version", `version ${form.version}, ${form.author}${form.reason ? `: ${form.reason}` : ""}`);
  $("rx-versions").replaceChildren(...(form.versions.length ? form.versions : [{ version: form.version, author: form.author, reason: form.reason, kept: "", changes: [] }])
    .map((v) => item("li", `${v.version}  ${v.kept}  ${v.author}${v.reason ? `: ${v.reason}` : ""}${v.changes.length ? `; ${v.changes.join("; ")}` : ""}`)));
  follows(form);
};

function fieldRow(field) {
  const row = document.createElement("div"), id = `rx-${field.table}-${field.key}`, label = item("label", words(field.key, field.unit));
  let control;
  if (field.kind === "choice") {
    control = document.createElement("select");
    control.append(...field.choices.map((choice) => { const option = item("option", choice || "none"); option.value = choice; return option; }));
  } else {
    control = document.createElement("input");
    control.type = field.kind === "text" ? "text" : "number";
    if (control.type === "number") control.step = field.kind === "whole" ? 1 : field.step || "any";
  }
  control.value = String(field.value);
  control.id = label.htmlFor = id;
  control.disabled = document.body.dataset.role !== "clinician";
  const about = item("small", "");
  about.id = `${id}-about`;
  control.setAttribute("aria-describedby", about.id);
  row.className = "field";
  row.append(label, control, about);
  rx.controls.set(`${field.table}/${field.key}`, { field, control, about });
  return row;
}
const words = (key, unit) => `${key.replace(/_(ma|us|ms|s|hz|uc|mc|cm2|percent|min)(?=_|$)/, "").replaceAll("_", " ")}${unit ? `, ${unit}` : ""}`;

// What is wrong, in the words of the form: a mistake names the file's tables and keys.
function inWords(reason) {
  let text = reason.replace(/^this(, line \d+)?: /, "").replace(/ = /, ": ");
  for (const { field } of rx.controls.values()) {
    const label = words(field.key, ""), where = field.table === "prescription" ? "" : `train ${field.table.slice(7)}, `;
    text = text.replaceAll(`[${field.table}] ${field.key}`, (_, at, all) => (/\w/.test(all[at + _.length] || "") ? _ : `${where}${label}`));
    text = text.replace(new RegExp(`\\b${field.key}\\b`, "g"), label);
  }
  return text;
}

function limits(field) {
  const said = field.limits.map(({ least, most, layer }) => (least === null ? `at most ${most}` : most === null ? `at least ${least}` : `${least} to ${most}`) + ` (${layer})`);
  if (field.step) said.push(`in steps of ${field.step} (stimulator)`);
  return [field.about, ...said].join("; ");
}

function changes() {
  const out = {};
  for (const { field, control } of rx.controls.values()) {
    const value = field.kind === "number" || field.kind === "whole" ? (control.value === "" ? null : Number(control.value)) : control.value;
    if (value !== field.value) (out[field.table] = out[field.table] || {})[field.key] = value;
  }
  return out;
}

function follows(form) {
  for (const field of form.fields) {
    const row = rx.controls.get(`${field.table}/${field.key}`);
    if (row) row.about.textContent = limits(field);
  }
  for (const { field, control } of rx.controls.values()) {
    const wrong = form.reasons.some((reason) => reason.includes(`[${field.table}] ${field.key} `));
    control.toggleAttribute("aria-invalid", wrong);
    if (wrong) control.setAttribute("aria-invalid", "true");
    control.closest(".field").classList.toggle("changed", String(field.value) !== control.value);
  }
  $("rx-problems").replaceChildren(...form.reasons.map((reason) => item("li", inWords(reason))));
  $("rx-figures").replaceChildren(...Object.entries(form.trains).flatMap(([name, train]) => [
    item("h3", `Train ${name}: ${train.pulses} pulses`),
    ...train.figures.map((figure) => {
      const line = document.createElement("p"), meter = document.createElement("meter");
      line.className = figure.value > figure.limit ? "exceeded" : "";
      meter.max = figure.limit; meter.value = figure.value; meter.high = 0.9 * figure.limit;
      meter.setAttribute("aria-label", figure.name);
      line.append(item("span", `${figure.name} ${Number(figure.value.toPrecision(3))} of ${figure.limit} ${figure.unit} (${figure.source})`), meter);
      return line;
    }),
  ]), ...form.notes.map((note) => item("p", note)));
  $("rx-montage").hidden = !form.montage;
  if (form.montage) {
    const source = `/montages/${encodeURIComponent(form.montage)}.svg?side=${form.side}`;
    if ($("rx-montage").getAttribute("src") !== source) $("rx-montage").src = source;
    $("rx-montage").alt = `Where the pads go: montage ${form.montage}, ${form.side} side`;
  }
  rx.good = form.ok;
  $("rx-reset").hidden = !Object.keys(changes()).length;
  puttable();
}

function puttable() {                               // and why not
  const they = other(), any = rx.form && Object.keys(changes()).length > 0;
  $("rx-put").disabled = !any || !rx.good || Boolean(they);
  set("rx-why", they ? `${they} holds control: take it first (Arm).` : any && rx.good === false ? "Something above is not right." : "");
}
opened.control = puttable;

$("rx-form").addEventListener("input", (event) => {
  if (event.target === $("rx-reason")) return;
  clearTimeout(rx.timer);
  rx.good = null; puttable();                     // until the bed has said what follows
  rx.timer = setTimeout(async () => {
    const asked = JSON.stringify(changes());
    const form = await fetch("/prescription", { method: "POST", headers: { "Content-Type": "application/json" }, body: asked }).then((r) => r.json()).catch(() => null);
    if (JSON.stringify(changes()) !== asked) return;
    if (!form || !form.fields) { told(form ? form.reasons.join("; ") : "no answer"); return; }
    follows(form);
  }, 150);
});
$("rx-reset").addEventListener("click", () => { rx.form = null; rx.controls.clear(); opened.prescription(); });
$("rx-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ($("rx-put").disabled) return;
  if (!$("rx-reason").value.trim()) { told("Why is it changed? Write it down first."); $("rx-reason").focus(); return; }
  rx.good = null; puttable();
  const answer = await act({ do: "prescribe", based_on: rx.form.version, changes: changes(), reason: $("rx-reason").value }, "In force: a new session begins, nothing is armed.");
  if (!answer.ok) { $("rx-problems").replaceChildren(...(answer.reasons || []).map((reason) => item("li", inWords(reason)))); rx.good = true; puttable(); return; }
  $("rx-reason").value = "";
  rx.form = null; rx.controls.clear();
});
opened.session = (name) => {
  if (document.body.dataset.view === "sessions") opened.sessions();
  // another session: another prescription may be in force
  if (inSession && name !== inSession && document.body.dataset.view === "prescription") {
    if (rx.form && Object.keys(changes()).length) told("A new session has begun: what you write may change an older prescription than the one in force.");
    else { rx.form = null; opened.prescription(); }
  }
  inSession = name;
};

// A run out of a form that the recipe's own declaration makes, with the YAML that it says beside it.

import { address, asked, calmly, copy, faultBox, get, h, page, post, put, remember, t, working } from "./dom.js";
import { fieldOf } from "./form.js";

const yaml = h("textarea", { class: "code", rows: 18, spellcheck: "false", "aria-label": t("start.yaml") }), said = h("div", { "aria-live": "polite" }), form = h("div");
const replace = h("input", { type: "checkbox" }), aside = h("label", { class: "inline field", hidden: true }, replace, t("start.aside"));
let typed = readTyped(), kind = asked().get("kind") || "sft", offered = null, isOwn = false, latest = 0, find = "";

function readTyped() {
  try {
    const found = JSON.parse(asked().get("typed") || "{}");
    return Object.fromEntries(Object.entries(found).filter(([, value]) => typeof value === "string"));
  } catch { return {}; }
}

const body = () => (isOwn ? { text: yaml.value, replace: replace.checked } : { kind, typed, replace: replace.checked });

async function check() {
  remember({ kind: kind === "sft" ? "" : kind, typed: Object.keys(typed).length ? JSON.stringify(typed) : "" });
  const mine = (latest += 1);
  try {
    const found = await post("start/check", body());
    if (mine !== latest) return;
    if (!isOwn) yaml.value = found.yaml;
    aside.hidden = !found.exists;
    put(said, h("p", { class: "tone better" }, t("start.whole", { name: found.name })));
  } catch (error) {
    if (mine === latest) { put(said, faultBox(error)); point(error.seen || ""); }
  }
}
const soon = calmly(check, 250);

/** Mark the fields that a message names. */
function point(message) {
  for (const one of form.querySelectorAll(".field")) one.classList.toggle("wrong", message.includes(one.id.replace("field-", "")));
}

async function begin() {
  offered = await working(page, () => get(`start?kind=${kind}`));
  if (!offered) return;
  const button = h("button", { class: "main", disabled: !offered.allowed, onclick: start }, t("start.start"));
  const kinds = h("select", { onchange: async () => { kind = kinds.value; typed = {}; isOwn = false; await begin(); } }, offered.kinds.map((one) => h("option", { value: one, selected: one === kind }, one)));
  const from = h("select", { onchange: async () => { if (from.value) await take(from.value); } }, h("option", { value: "" }, "–"), offered.templates.map((one) => h("option", { value: one }, one)));
  const filter = h("input", { type: "search", value: find, placeholder: t("start.find"), "aria-label": t("start.find"), oninput: () => { find = filter.value; draw(); } });
  const copied = h("button", { onclick: () => copy(yaml.value, copied) }, t("start.copy"));
  yaml.oninput = () => { isOwn = true; soon(); };
  put(page, !offered.allowed && h("div", { class: "fault" }, t("start.off")),
    h("div", { class: "bar" }, h("label", { class: "inline" }, t("start.kind"), kinds), h("label", { class: "inline" }, t("start.from"), from), filter),
    h("div", { class: "two start" }, form, h("div", { class: "card sticky" }, h("h2", {}, t("start.yaml")), yaml, h("p", { class: "soft" }, t("start.yaml_help", { runs: offered.runs })), said, aside, h("p", { class: "bar" }, button, copied))));
  draw();
  check();
}

async function take(name) {
  const found = await get(`start/template?name=${encodeURIComponent(name)}`);
  typed = Object.fromEntries(Object.entries(found).filter(([key]) => key !== "kind"));
  isOwn = false;
  if (found.kind && found.kind !== kind) { kind = found.kind; await begin(); return; }
  draw();
  check();
}

const matches = (field) => !find || `${field.name} ${field.meaning}`.toLowerCase().includes(find.toLowerCase());

function some(fields) {
  return fields.map((field) => {
    if (field.kind !== "section") return matches(field) || field.name in typed ? fieldOf(field, typed[field.name], changed) : null;
    const inner = some(field.fields).filter(Boolean);
    if (!inner.length) return null;
    const isOpen = Boolean(find) || field.name === "data" || Object.keys(typed).some((name) => name.startsWith(`${field.name}.`));
    const off = h("input", { type: "checkbox", checked: typed[field.name] === "null" || (field.is_out && !Object.keys(typed).some((name) => name.startsWith(`${field.name}.`)) && typed[field.name] !== "{}"), onchange: () => { for (const name of Object.keys(typed)) if (name.startsWith(`${field.name}.`)) delete typed[name]; if (off.checked === Boolean(field.is_out)) delete typed[field.name]; else typed[field.name] = off.checked ? "null" : "{}"; isOwn = false; draw(); check(); } });
    return h("details", { class: "group", open: isOpen }, h("summary", {}, field.name), field.meaning && h("p", { class: "soft" }, field.meaning),
      OPTIONAL.has(field.name) && h("label", { class: "inline field" }, off, t("start.without")), h("div", { class: "fields" }, inner));
  });
}
const OPTIONAL = new Set(["lora", "prove", "merge", "data.replay"]);

function changed(name, text) {
  if (text === undefined) delete typed[name]; else typed[name] = text;
  for (let at = name.lastIndexOf("."); at > 0; at = name.lastIndexOf(".", at - 1)) delete typed[name.slice(0, at)];
  isOwn = false;
  soon();
}

const draw = () => put(form, h("div", { class: "card fields" }, some(offered.fields)));

async function start() {
  await working(said, async () => {
    const { run } = await post("start", body());
    put(said, h("p", { role: "status" }, t("start.begun", { run })), h("pre", { id: "printed" }));
    await watch(run);
  });
}

/** What the run prints until its directory is there; then it is looked at like any other. */
async function watch(run) {
  for (let times = 0; times < 600; times += 1) {
    const { text, is_there: isThere } = await get(`start/printed?name=${encodeURIComponent(run)}`);
    const place = document.getElementById("printed");
    if (!place) return;
    place.textContent = text;
    if (isThere && !/error:|错误/.test(text)) { location.assign(address("runs", { run })); return; }
    if (/error:|错误/.test(text)) return;
    await new Promise((done) => setTimeout(done, 700));
  }
}

begin();

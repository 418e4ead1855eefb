// Memory by part, which moves as batch and length are dragged; what fits; rank, rate and bits with their sources.

import { asked, bytes, calmly, count, get, h, number, page, post, put, remember, t, table, working } from "./dom.js";
import { partsBar } from "./chart.js";

const DEFAULTS = { model: "Qwen2.5-7B", gpu: "24GB", method: "lora", batch: "1", length: "2048", r: "16", checkpointing: "", optim: "adamw_torch", dtype: "bfloat16", bits: "", training: "sft", tokens: "", loss: "0.02" };
const values = { ...DEFAULTS };
for (const name of Object.keys(values)) if (asked().has(name)) values[name] = asked().get(name);
const out = h("div", { "aria-live": "polite" });
let latest = 0;

async function ask() {
  remember(Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value === DEFAULTS[name] ? "" : value])));
  const mine = (latest += 1);
  await working(out, async () => {
    const body = { ...values, checkpointing: values.checkpointing === "1" };
    for (const name of ["batch", "length", "r", "loss"]) body[name] = Number(values[name]);
    body.tokens = values.tokens ? Number(values.tokens) : null;
    const plan = await post("plan", body);
    if (mine === latest) show(plan);
  });
}
const soon = calmly(ask, 60);

function show(plan) {
  const { memory } = plan, isOver = memory.total > plan.room;
  const parts = memory.parts.map((part) => ({ ...part, shown: bytes(part.bytes) }));
  const words = `${bytes(memory.total)}: ${parts.map((part) => `${part.name} ${part.shown}`).join(", ")}`;
  put(out,
    h("section", { class: "card" },
      h("h2", {}, plan.model, " ", h("span", { class: "soft" }, t("plan.weights", { all: count(plan.parameters) }), plan.active ? ` · ${t("plan.active", { active: count(plan.active) })}` : "")),
      h("p", { id: "verdict", class: `tone ${isOver ? "worse" : "better"}` }, t(isOver ? "plan.over" : "plan.fits", { need: bytes(memory.total), room: bytes(plan.room) })),
      partsBar(parts, memory.total, plan.room, words),
      h("p", { class: "keys" }, parts.map((part, at) => h("span", { class: `key c${at % 8}` }, `${part.name} ${part.shown}`))),
      h("p", { class: "soft" }, memory.moment, " · ", t("plan.longest", { tokens: count(plan.longest) }), " · ", t("plan.rule", { size: bytes(plan.rule) }),
        values.method === "lora" || values.method === "qlora" ? ` · ${t("plan.trained", { trained: count(plan.lora.trained), share: `${(100 * plan.lora.share).toFixed(2)}%` })}` : ""),
      h("details", { class: "twin" }, h("summary", {}, t("plan.how")),
        table([t("plan.part"), `#${t("plan.memory")}`, t("plan.counted")], [...parts.map((part) => [part.name, part.shown, part.why]), [t("plan.all"), bytes(memory.total), memory.moment]], { name: t("plan.how") }))),
    h("section", {}, h("h2", {}, t("plan.what")),
      table([t("plan.way"), `#${t("plan.memory")}`, t("plan.fits_head"), `#${t("plan.most")}`],
        plan.ways.map((way) => [way.name, bytes(way.bytes), h("span", { class: `tone ${way.fits ? "better" : "worse"}` }, t(way.fits ? "yes" : "no")), way.most ? count(way.most) : "–"]), { name: t("plan.what") })),
    h("section", {}, h("h2", {}, t("plan.advice")),
      table([t("plan.option"), t("plan.value"), t("plan.why"), t("plan.source"), t("plan.notes")],
        plan.advice.map((one) => [h("code", {}, one.option), h("b", {}, one.value), one.reason, one.source, one.notes]), { name: t("plan.advice") })),
    h("section", {}, h("h2", {}, t("plan.bits_head")),
      h("p", {}, t("plan.bits_notes", { bits: plan.bits.notes, loss: `${(100 * Number(values.loss)).toFixed(1)}%` })),
      table([t("plan.family"), t("plan.form"), "#bit", `#${t("plan.loss_head")}`, t("plan.measure"), t("plan.source")],
        plan.bits.figures.map((one) => [h("span", { class: one.chosen ? "tone better" : "" }, one.family, one.chosen ? ` ${t("plan.chosen")}` : ""), one.form, String(one.bits), `${(100 * one.loss).toFixed(2)}%`, one.measure, one.source]), { name: t("plan.bits_head") })));
}

const field = (name, input) => h("label", { class: "field" }, h("span", { class: "name" }, t(`plan.${name}`)), input);

function select(name, choices) {
  const one = h("select", { onchange: () => { values[name] = one.value; ask(); } }, choices.map(([value, text]) => h("option", { value, selected: values[name] === value }, text)));
  return field(name, one);
}

function text(name, list, choices) {
  const one = h("input", { type: "text", value: values[name], list, spellcheck: "false", oninput: () => { values[name] = one.value; calm(); } });
  return [field(name, one), h("datalist", { id: list }, choices.map((value) => h("option", { value })))];
}
const calm = calmly(ask, 400);

/** A slider of powers: what is dragged is the exponent. */
function powers(name, low, high) {
  const said = h("input", { type: "number", min: 2 ** low, max: 2 ** high, value: values[name], oninput: () => { if (Number(said.value) >= 1) { values[name] = said.value; slider.value = Math.log2(said.value); soon(); } } });
  const slider = h("input", { type: "range", min: low, max: high, step: 0.5, value: Math.log2(values[name]), "aria-label": `${t(`plan.${name}`)}, ${t("form.slider")}`, oninput: () => { values[name] = said.value = String(Math.round(2 ** slider.value)); soon(); } });
  return h("div", { class: "field" }, h("label", { class: "name" }, t(`plan.${name}`), said), slider);
}

async function begin() {
  const choices = await working(page, () => get("plan"));
  if (!choices) return;
  const check = h("input", { type: "checkbox", checked: values.checkpointing === "1", onchange: () => { values.checkpointing = check.checked ? "1" : ""; ask(); } });
  const form = h("form", { class: "card sticky", onsubmit: (event) => event.preventDefault() },
    text("model", "models", choices.models), text("gpu", "cards", ["", ...Object.keys(choices.cards)]), h("p", { class: "soft" }, t("plan.gpu_help")),
    select("method", ["full", "lora", "qlora", "inference"].map((one) => [one, t(`method.${one}`)])),
    powers("batch", 0, 8), powers("length", 5, 17), powers("r", 0, 10),
    h("label", { class: "inline field" }, check, t("plan.checkpointing")),
    select("optim", ["adamw_torch", "adamw_bf16", "adamw_8bit", "sgd"].map((one) => [one, one])), select("dtype", ["bfloat16", "float16", "float32"].map((one) => [one, one])),
    select("bits", [["", t("plan.as_dtype")], ["int8", "int8"], ["int4", "int4"]]),
    select("training", ["pretrain", "sft", "reward", "dpo", "ppo"].map((one) => [one, one])),
    field("tokens", numberInput("tokens")), field("loss", numberInput("loss")));
  put(page, h("div", { class: "two" }, form, out));
  ask();
}

function numberInput(name) {
  const one = h("input", { type: "number", min: 0, step: "any", value: values[name], oninput: () => { values[name] = one.value; calm(); } });
  return one;
}

begin();

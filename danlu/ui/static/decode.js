// Decoding: what each token was chosen from, before and after every knob. Click another candidate to go on from there.

import { asked, calmly, copy, count, duration, faultBox, get, h, number, page, percent, post, put, remember, s, t, working } from "./dom.js";
import { fieldOf } from "./form.js";
import { joined, shownInLine, visible } from "./tokens.js";
import { treeOf } from "./tree.js";

const SIDES = ["a", "b"];
const query = asked();
const knobs = Object.fromEntries(SIDES.map((side) => [side, readKnobs(query.get(side))]));
const begin = Object.fromEntries(SIDES.map((side) => [side, (query.get(`begin_${side}`) || "").split(",").filter(Boolean).map(Number)]));
let sides = query.has("b") ? 2 : 1, active = "a", form = null;
const running = {};

function readKnobs(text) {
  try {
    const found = JSON.parse(text || "{}");
    return Object.fromEntries(Object.entries(found).filter(([, value]) => typeof value === "string"));
  } catch { return {}; }
}

const prompt = h("textarea", { id: "prompt", rows: 2, value: query.get("prompt") || t("decode.example") });
const system = h("input", { type: "text", id: "system", value: query.get("system") || "" });
const raw = h("input", { type: "checkbox", checked: query.get("raw") === "1" });
const results = { a: h("section", { class: "side", "aria-live": "polite" }), b: h("section", { class: "side", "aria-live": "polite" }) };
const knobPlace = h("div"), tabs = h("div", { class: "bar", role: "group", "aria-label": t("decode.which") });

function keep(isStep = false) {
  const text = (side) => (Object.keys(knobs[side]).length ? JSON.stringify(knobs[side]) : side === "b" && sides === 2 ? "{}" : "");
  remember({ prompt: prompt.value, system: system.value, raw: raw.checked ? "1" : "", a: text("a"), b: sides === 2 ? text("b") : "",
    begin_a: begin.a.join(","), begin_b: sides === 2 ? begin.b.join(",") : "" }, isStep);
}

async function run(side, isStep = false) {
  keep(isStep);
  running[side]?.abort();
  const mine = (running[side] = new AbortController());
  await working(results[side], async () => {
    const answer = await post("decode", { prompt: prompt.value, system: system.value, raw: raw.checked, begin: begin[side], knobs: knobs[side] }, mine.signal);
    if (running[side] === mine) show(side, answer);
  });
}

function runAll() {
  for (const side of SIDES.slice(0, sides)) { begin[side] = []; run(side, true); }
}

function goOn(side, ids) {
  begin[side] = ids;
  run(side, true);
}

// -- an answer ---------------------------------------------------------------------------------------------

function show(side, answer) {
  const { trace } = answer;
  const heading = `${trace.strategy.replaceAll("_", " ")}${Object.keys(answer.knobs).length ? `: ${Object.entries(answer.knobs).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ")}` : ""}`;
  put(results[side],
    h("p", { class: "soft" }, sides === 2 && h("b", {}, `${side.toUpperCase()}  `), heading, trace.seed !== null && !("seed" in answer.knobs) && ` · seed ${trace.seed}`, ` · ${duration(answer.seconds)}`),
    trace.has_beams && treeOf(trace, answer.forced),
    trace.answers.map((_, at) => oneAnswer(side, answer, at)),
    copies(answer));
}

function oneAnswer(side, answer, at) {
  const { trace } = answer, made = trace.answers[at];
  const choices = made.path.map((row, step) => trace.steps[step]?.choices.find((choice) => choice.row === row)).slice(0, made.tokens.length);
  const forced = new Set(answer.forced[at].flatMap(([start, end]) => [...Array(end - start).keys()].map((one) => one + start)));
  const below = h("div");
  const kept = shownInLine(answer.begin.map((token) => token.text));
  const shown = shownInLine(made.tokens.map((token) => token.text));
  const buttons = made.tokens.map((token, place) => h("button", { class: `${sureness(choices[place], token)} ${forced.has(place) ? "forced" : ""}`, "aria-pressed": "false",
    title: tokenWords(choices[place], token), onclick: () => open(place) }, visible(shown[place]) || "∅"));
  const open = (place) => {
    buttons.forEach((button, one) => button.setAttribute("aria-pressed", String(one === place)));
    const before = [...answer.begin.map((token) => token.id), ...made.tokens.slice(0, place).map((token) => token.id)];
    put(below, choices[place] ? candidates(choices[place], made.tokens[place], place, (id) => goOn(side, [...before, id])) : h("p", { class: "soft" }, t("decode.no_choice")));
  };
  const tokens = h("div", { class: "tokens", dir: "auto" },
    kept.map((text, one) => h("button", { class: "kept", title: t("decode.cut"), onclick: () => goOn(side, begin[side].slice(0, one)) }, visible(text))), buttons);
  tokens.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const all = [...tokens.children], next = all[all.indexOf(document.activeElement) + step];
    if (!step || !next) return;
    next.focus();
    if (!next.classList.contains("kept")) next.click();
    event.preventDefault();
  });
  if (buttons.length && at === 0) queueMicrotask(() => open(firstInteresting(choices, made.tokens)));
  const score = made.score === null ? "" : ` · ${t("decode.score", { score: number(made.score) })}`;
  return h("article", { class: "card" },
    h("h3", {}, t("decode.answer_head", { number: at + 1, tokens: count(made.tokens.length), reason: made.finish_reason }), score,
      forced.size ? h("span", { class: "soft" }, ` · ${t("decode.forced")}`) : ""),
    tokens, below);
}

const pOf = (choice, token) => choice?.candidates.find((one) => one.token.id === token.id);

/** The first token that was not simply the likeliest, or that a knob had a say in. */
function firstInteresting(choices, tokens) {
  const found = choices.findIndex((choice, at) => { const one = pOf(choice, tokens[at]); return one && (one.rank > 1 || choice.candidates.some((other) => other.dropped_by)); });
  return Math.max(0, found);
}

function sureness(choice, token) {
  const p = pOf(choice, token)?.p ?? 1;
  return p >= 0.5 ? "sure" : p >= 0.1 ? "unsure" : "odd";
}

const tokenWords = (choice, token) => { const one = pOf(choice, token); return one ? `p ${percent(one.p)} · ${t("decode.rank", { rank: one.rank })} · id ${token.id}` : `id ${token.id}`; };

const bar = (p) => s("svg", { class: "bar-of", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
  s("rect", { class: "back", width: 100, height: 10 }), s("rect", { width: Math.max(0, 100 * p), height: 10 }));

/** A table of candidates: before any knob, after each that changed something, and what took out what. */
function candidates(choice, token, place, take) {
  const shown = choice.candidates.filter((one) => one.is_chosen || one.p >= 0.0005 || one.after.some((after) => after.p >= 0.0005));
  const stages = choice.stages.map((stage, at) => ({ ...stage, at })).filter((stage) => stage.has_changed || stage.dropped);
  const isAnyOut = shown.some((one) => one.dropped_by);
  const cell = (one, stage) => {
    const after = one.after[stage.at];
    if (after.score === null) return h("td", {}, one.dropped_by === stage.knob ? t("decode.out") : "");
    return h("td", { class: "number" }, percent(after.p), bar(after.p));
  };
  const rows = shown.map((one) => h("tr", { class: one.token.id === token.id ? "chosen" : one.dropped_by ? "dropped" : null },
    h("td", { class: "number" }, String(one.rank)),
    h("th", { scope: "row" }, h("button", { title: t("decode.go_on"), onclick: () => take(one.token.id) }, visible(one.token.text) || "∅"), one.token.id === token.id && ` ${t("decode.taken")}`),
    h("td", { class: "number" }, percent(one.p), bar(one.p)), stages.map((stage) => cell(one, stage)),
    isAnyOut && h("td", {}, one.dropped_by ? h("code", {}, one.dropped_by) : "")));
  const heads = [`#`, t("decode.candidate"), t("decode.model_p"), ...stages.map((stage) => stage.knob), ...(isAnyOut ? [t("decode.dropped_by")] : [])];
  const also = stages.filter((stage) => stage.dropped).map((stage) => h("p", { class: "soft" }, t("decode.dropped", { knob: stage.knob, dropped: count(stage.dropped), left: count(stage.left) }), " ",
    stage.likeliest_dropped.length ? t("decode.likeliest", { tokens: stage.likeliest_dropped.map((one) => `“${visible(one.token.text)}” ${percent(one.p)}`).join(", ") }) : ""));
  return [h("p", { class: "soft" }, t("decode.token_at", { place: place + 1 }), choice.u !== null && ` · u ${choice.u.toFixed(4)}`, ` · ${t("decode.click")}`),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("decode.candidates") }, h("table", { class: "candidates" },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows))), also];
}

// -- as programs write it ----------------------------------------------------------------------------------

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function copies(answer) {
  const asking = answer.messages ? { messages: answer.messages } : { prompt: prompt.value };
  const { max_new_tokens: most, ...others } = answer.knobs;
  const body = JSON.stringify({ model: answer.model, ...asking, max_tokens: most, ...others }, null, 1);
  const curl = `curl http://127.0.0.1:8000/v1/${answer.messages ? "chat/" : ""}completions -H 'Content-Type: application/json' -d ${shell(body)}`;
  const given = Object.entries(answer.knobs).map(([name, value]) => `${name}=${pythonOf(value)}`).join(", ");
  const code = `from danlu import Engine, GenerationParams\n\nengine = Engine(${pythonOf(answer.model)})\nprompt = ${pythonOf(answer.messages || prompt.value)}\nanswer = engine.generate([prompt], GenerationParams(${given}))[0].sequences[0]\nprint(answer.text)\n`;
  const yaml = Object.entries(answer.knobs).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join("\n") + "\n";
  const button = (word, text) => { const one = h("button", { "data-copy": text, onclick: () => copy(text, one) }, t(word)); return one; };
  return h("div", { class: "bar" }, h("span", { class: "soft" }, t("decode.copy")), button("decode.curl", curl), button("decode.python", code), button("decode.yaml", yaml));
}

/** JSON as Python has it; words inside of strings stay. */
function pythonOf(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonOf).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${pythonOf(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

// -- the form ----------------------------------------------------------------------------------------------

const again = calmly((side) => run(side), 350);

function drawForm() {
  put(tabs, sides === 2
    ? [SIDES.map((side) => h("button", { "aria-pressed": String(side === active), class: side === active ? "main" : "", onclick: () => { active = side; drawForm(); } }, t("decode.setting", { name: side.toUpperCase() }))),
      h("button", { onclick: () => { sides = 1; active = "a"; layout(); keep(); } }, t("decode.one"))]
    : h("button", { onclick: () => { sides = 2; active = "b"; knobs.b = { ...knobs.a }; begin.b = [...begin.a]; layout(); run("b"); } }, t("decode.two")),
  h("button", { onclick: () => { knobs[active] = {}; drawForm(); run(active); } }, t("decode.reset")));
  const open = new Set([...knobPlace.querySelectorAll("details[open]")].map((one) => one.dataset.group));
  put(knobPlace, form.groups.map((group) => {
    const isOpen = open.size ? open.has(group.name) : group.name === "drawing" || group.fields.some((field) => field.name in knobs[active]);
    return h("details", { class: "group", open: isOpen, "data-group": group.name }, h("summary", {}, t(`group.${group.name}`)),
      group.fields.map((field) => fieldOf(field, knobs[active][field.name], (name, text) => {
        if (text === undefined) delete knobs[active][name]; else knobs[active][name] = text;
        again(active);
      })));
  }));
}

const out = h("div");

function layout() {
  drawForm();
  put(out, h("div", { class: sides === 2 ? "grid" : null }, SIDES.slice(0, sides).map((side) => results[side])));
}

async function start() {
  const ready = async () => {
    form = await get("decode");
    if (form.state === "loading") { put(page, h("p", { role: "status" }, t("decode.loading", { model: form.model }))); setTimeout(() => ready().catch((error) => put(page, faultBox(error))), 700); return; }
    if (form.state === "absent") { put(page, h("div", { class: "empty" }, h("p", {}, t("decode.absent")), h("pre", {}, "danlu ui --model smollm2-135m"))); return; }
    if (form.state === "failed") { put(page, faultBox(new Error(form.fault))); return; }
    const ask = h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); runAll(); } },
      h("label", { class: "field" }, h("span", { class: "name" }, t("decode.prompt")), prompt),
      h("details", { open: Boolean(system.value || raw.checked) }, h("summary", {}, t("decode.more")),
        h("label", { class: "field" }, h("span", { class: "name" }, t("decode.system")), system), h("label", { class: "inline" }, raw, t("decode.raw"))),
      h("p", { class: "bar" }, h("button", { class: "main" }, t("decode.run")), h("span", { class: "soft" }, t("decode.model", { model: form.model, kind: form.kind }))));
    prompt.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) runAll(); });
    put(page, ask, h("div", { class: "two decode" }, h("div", { class: "card sticky" }, tabs, knobPlace), out));
    layout();
    for (const side of SIDES.slice(0, sides)) if (query.has("prompt")) run(side); else put(results[side], h("p", { class: "soft" }, t("decode.hint")));
  };
  await working(page, ready);
}

window.addEventListener("popstate", () => location.reload());
start();

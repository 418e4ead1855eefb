// A data file: how it is read, what is faulty and where, how long, what repeats, and what the model will see of it.

import { asked, bytes, count, dropZone, faultBox, get, h, number, page, percent, post, put, remember, s, send, t, table, working } from "./dom.js";

const out = h("div", { "aria-live": "polite" });
let listed = null;

async function open(place) {
  remember({ place, first: "" }, true);
  await show();
}

async function show() {
  const place = asked().get("place");
  if (!place) { put(out); return; }
  put(out, h("p", { role: "status" }, t("data.reading")));
  await working(out, async () => {
    const limit = Number(asked().get("max_length")) || null;
    const report = await post("data", { place, max_length: limit });
    put(out, summary(report), lengths(report), faults(report), repeats(report), h("section", { id: "examples" }));
    await examples(place);
  });
}

const tile = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function summary(report) {
  const shapes = Object.entries(report.shapes), unread = Object.entries(report.unread), notes = Object.entries(report.notes);
  return h("section", {}, h("h2", {}, report.path),
    h("dl", { class: "tiles" }, tile(t("data.format"), report.format), tile(t("data.records"), count(report.records)), tile(t("data.faults"), count(report.faults_total)),
      tile(t("data.duplicates"), count(report.duplicates)), tile(t("data.near"), report.near ? count(report.near.count) : "–"), tile(t("data.learnt"), percent(report.learnt_share)),
      report.turns_mean !== null && tile(t("data.turns"), number(report.turns_mean))),
    shapes.length > 0 && h("p", { class: "soft" }, t("data.read_as"), " ", shapes.map(([shape, rows]) => `${shape} (${count(rows)})`).join("; ")),
    unread.length > 0 && h("p", { class: "soft" }, t("data.unread"), " ", unread.map(([name, rows]) => `${name} (${count(rows)})`).join(", ")),
    notes.length > 0 && h("p", { class: "soft" }, t("data.notes"), " ", notes.map(([name, rows]) => `${name} (${count(rows)})`).join("; ")));
}

function lengths(report) {
  const { lengths: found } = report, unit = t(`data.${found.unit}`);
  const most = Math.max(...found.counts, 1), size = 1000 / found.counts.length;
  const name = (at) => `${count(found.edges[at])} – ${count(found.edges[at + 1])}`;
  const words = `${t("data.lengths")}: ${found.counts.map((one, at) => `${name(at)}: ${count(one)}`).join("; ")}`;
  const svg = s("svg", { class: "curve", viewBox: "0 0 1000 170", role: "img", "aria-label": words }, found.counts.map((one, at) => [
    s("rect", { class: "fill c1", x: at * size + 4, y: 140 - (130 * one) / most, width: size - 8, height: Math.max(one ? 1 : 0, (130 * one) / most) }, s("title", {}, `${name(at)}: ${count(one)}`)),
    s("text", { class: "tick", x: at * size + 4, y: 158 }, count(found.edges[at]))]));
  const input = h("input", { type: "number", min: 1, value: asked().get("max_length") || "", placeholder: String(found.p99), onchange: () => { remember({ max_length: input.value }); show(); } });
  return h("figure", {}, h("figcaption", {}, h("b", {}, t("data.lengths")), " ", h("span", {}, t("data.length_words", { unit, p50: count(found.p50), p90: count(found.p90), p99: count(found.p99), max: count(found.max) }))),
    svg, report.has_limit ? h("p", { class: "bar" }, h("label", { class: "inline" }, t("data.limit"), input),
      report.too_long && h("span", {}, t("data.too_long", { examples: count(report.too_long.examples), tokens: count(report.too_long.tokens_cut) }))) : h("p", { class: "soft" }, t("data.no_model")),
    h("details", { class: "twin" }, h("summary", {}, t("chart.table")), table([unit, `#${t("data.records")}`], found.counts.map((one, at) => [name(at), count(one)]), { name: t("data.lengths") })));
}

function faults(report) {
  if (!report.faults_total) return null;
  return h("section", {}, h("h2", {}, t("data.faults_head", { count: count(report.faults_total) })),
    table([t("data.where"), t("data.why"), t("fault.next")], report.faults.map((one) => [h("code", {}, one.place), one.reason, one.fix]), { name: t("data.faults") }),
    report.faults_total > report.faults.length && h("p", { class: "soft" }, t("data.first", { count: report.faults.length })));
}

function repeats(report) {
  if (!report.near?.pairs.length) return null;
  return h("section", {}, h("h2", {}, t("data.near_head")),
    table([t("data.where"), t("data.like"), `#${t("data.alike")}`], report.near.pairs.map(([one, other, share]) => [h("code", {}, one), h("code", {}, other), percent(share)]), { name: t("data.near_head") }));
}

async function examples(place) {
  const first = Number(asked().get("first")) || 0, part = document.getElementById("examples");
  const found = await post("data/examples", { place, first });
  const turn = (to) => { remember({ first: to || "" }); examples(place).catch((error) => put(part, faultBox(error))); };
  put(part, h("h2", {}, t("data.examples")), h("p", { class: "soft" }, h("span", { class: "spans" }, h("span", { class: "learnt" }, t("data.learnt_key"))), " · ", t("data.context_key")),
    found.map((one) => h("article", { class: "card" }, h("h3", {}, one.place), one.answers.map((spans, at) => h("div", { class: "spans", dir: "auto" },
      one.answers.length > 1 && h("h3", {}, t(at ? "data.rejected" : "data.chosen")),
      spans.map((span) => h("span", { class: span.kind === "left out" ? "left" : span.kind }, span.kind === "left out" ? ` … ${span.text} … ` : span.text)))))),
    h("p", { class: "bar" }, h("button", { disabled: first === 0, onclick: () => turn(Math.max(0, first - 5)) }, t("data.before")), h("button", { disabled: found.length < 5, onclick: () => turn(first + 5) }, t("data.after"))));
}

async function begin() {
  listed = await working(page, () => get("data"));
  if (!listed) return;
  const zone = dropZone(t("data.drop", { endings: listed.endings.join(" ") }), listed.endings, (file) => {
    if (file.size > listed.most) { put(out, faultBox(new Error(t("data.too_large", { most: bytes(listed.most) })))); return; }
    put(out, h("p", { role: "status" }, t("data.sending")));
    working(out, async () => open(await send("data/drop", file)));
  });
  const choose = listed.files.length > 0 && h("label", { class: "field" }, h("span", { class: "name" }, t("data.choose")),
    h("select", { onchange: (event) => event.target.value && open(event.target.value) }, h("option", { value: "" }, "–"),
      listed.files.map((one) => h("option", { value: one.place, selected: one.place === asked().get("place") }, `${one.name} (${bytes(one.bytes)})`))));
  put(page, zone, choose, out);
  await show();
}

window.addEventListener("popstate", show);
begin();

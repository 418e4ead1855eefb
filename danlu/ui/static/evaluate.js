// Evaluations: the table, a row's judgement with its distribution, and the judge beside people.

import { address, asked, count, dropZone, faultBox, get, h, number, page, post, put, remember, s, send, t, table, working } from "./dom.js";
import { spread } from "./chart.js";

const out = h("div", { "aria-live": "polite" });

async function show() {
  const query = asked(), name = query.get("name");
  await working(out, async () => {
    const found = await post("evaluate", { name, measure: query.get("measure") || "", first: Number(query.get("first")) || 0 });
    put(out, measures(found), rows(found), people(found));
  });
}

function measures({ name, summary, measure }) {
  const lines = Object.entries(summary.measures).map(([key, one]) => {
    const total = one.scores.reduce((a, b) => a + b, 0) || 1;
    return [h("button", { "aria-pressed": String(key === measure), class: key === measure ? "main" : "", onclick: () => { remember({ measure: key, first: "" }, true); show(); } }, key),
      number(one.mean?.value), ends(one.mean), count(one.n), h("span", { class: one.failed ? "tone worse" : "" }, count(one.failed)),
      spread(one.scale[0], one.scores.map((score) => score / total), key), Object.entries(one.reasons).map(([why, times]) => h("div", { class: "why" }, `${times} × ${why}`))];
  });
  const overlaps = Object.entries(summary.overlaps || {}).map(([key, one]) => [key, number(one.mean.value), ends(one.mean), count(one.n), "", "", ""]);
  return h("section", {}, h("h2", {}, name), summary.judge && h("p", { class: "soft" }, t("evaluate.judge", { judge: summary.judge, rows: count(summary.rows) })),
    table([t("evaluate.measure"), `#${t("evaluate.mean")}`, `#${t("evaluate.interval")}`, `#${t("evaluate.rows")}`, `#${t("evaluate.failed")}`, t("evaluate.scores"), t("evaluate.why")], [...lines, ...overlaps], { name: t("evaluate.measures"), caption: t("evaluate.baseline") }));
}

const ends = (mean) => (mean && mean.low !== null && mean.low !== undefined ? `${number(mean.low)} – ${number(mean.high)}` : "–");

function rows({ rows: some, measure, summary, all }) {
  if (!measure) return null;
  const first = Number(asked().get("first")) || 0, low = summary.measures[measure].scale[0];
  const line = (row) => {
    const one = row.measures[measure];
    const texts = ["question", "context", "truth"].filter((name) => row[name]).map((name) => h("div", {}, h("h3", {}, t(`evaluate.${name}`)), h("div", { class: "text", dir: "auto" }, row[name])));
    return [row.id, one.failed ? h("span", { class: "why" }, one.failed) : h("b", {}, String(one.score)), one.failed ? "" : number(one.expectation), one.failed ? "" : number(one.deviation),
      one.failed ? "" : spread(low, one.distribution, row.id), h("div", {}, h("div", { class: "text", dir: "auto" }, row.answer ?? "–"), texts.length > 0 && h("details", { class: "twin" }, h("summary", {}, t("evaluate.more")), texts))];
  };
  const turn = (to) => { remember({ first: to || "" }, true); show(); };
  return h("section", {}, h("h2", {}, t("evaluate.row_by_row", { measure })), h("p", { class: "soft" }, t("evaluate.order", { shown: count(some.length), all: count(all) })),
    table([t("evaluate.row"), `#${t("evaluate.score")}`, `#${t("evaluate.expectation")}`, `#${t("evaluate.doubt")}`, t("evaluate.distribution"), t("evaluate.answer")], some.map(line), { name: t("evaluate.row_by_row", { measure }) }),
    h("p", { class: "bar" }, h("button", { disabled: first === 0, onclick: () => turn(Math.max(0, first - 50)) }, t("data.before")), h("button", { disabled: first + some.length >= all, onclick: () => turn(first + 50) }, t("data.after"))));
}

function people({ name, measure }) {
  if (!measure) return null;
  const answer = h("div", { "aria-live": "polite" }), column = h("input", { type: "text", placeholder: measure, "aria-label": t("evaluate.column") });
  return h("section", {}, h("h2", {}, t("evaluate.people")),
    h("label", { class: "field inline" }, t("evaluate.column"), column),
    dropZone(t("evaluate.drop"), [".jsonl", ".json", ".csv", ".parquet"], (file) => working(answer, async () => {
      const place = await send("evaluate/drop", file);
      put(answer, beside(await post("evaluate/people", { name, measure, place, rating: column.value })));
    })), answer);
}

function beside(found) {
  const [low, high] = found.scale, at = (value) => 30 + (260 * (value - low)) / (high - low || 1);
  const words = t("evaluate.beside_words", { rows: count(found.rows) });
  const dots = s("svg", { class: "curve", viewBox: "0 0 320 320", role: "img", "aria-label": words }, s("line", { class: "grid-line", x1: 30, y1: 290, x2: 290, y2: 30 }),
    found.points.map((one) => s("circle", { class: "dot c0 pale", cx: at(one.people), cy: 320 - at(one.judge), r: 4 }, s("title", {}, `${one.id}: ${number(one.people)} / ${number(one.judge)}`))),
    s("text", { x: 160, y: 314, "text-anchor": "middle" }, t("evaluate.of_people")), s("text", { x: -160, y: 14, transform: "rotate(-90)", "text-anchor": "middle" }, t("evaluate.of_judge")));
  const interval = (one) => `${number(one.value)} (${number(one.low)} – ${number(one.high)})`;
  return h("div", { class: "grid" }, h("figure", {}, h("figcaption", {}, words), dots,
    h("details", { class: "twin" }, h("summary", {}, t("chart.table")), table([t("evaluate.row"), `#${t("evaluate.of_people")}`, `#${t("evaluate.of_judge")}`], found.points.slice(0, 200).map((one) => [one.id, number(one.people), number(one.judge)]), { name: words }))),
  table([t("evaluate.correlation"), t("evaluate.of_judge"), t("evaluate.of_baseline", { name: found.baseline }), t("evaluate.difference")],
    Object.entries(found.compared).map(([name, one]) => [name, interval(one.judge), interval(one.baseline), h("span", { class: `tone ${one.difference.low > 0 ? "better" : one.difference.high < 0 ? "worse" : "open"}` }, interval(one.difference))]), { caption: t("evaluate.left_out", { count: count(found.left_out) }) }));
}

async function begin() {
  const names = await working(page, () => get("evaluate"));
  if (!names) return;
  if (!names.length) { put(page, h("div", { class: "empty" }, h("p", {}, t("evaluate.none")), h("pre", {}, "danlu evaluate answers.jsonl --out runs/judged"))); return; }
  const name = asked().get("name") || names[0];
  remember({ name });
  put(page, h("label", { class: "field" }, h("span", { class: "name" }, t("evaluate.which")), h("select", { onchange: (event) => location.assign(address("evaluate", { name: event.target.value })) }, names.map((one) => h("option", { value: one, selected: one === name }, one)))), out);
  await show();
}

window.addEventListener("popstate", show);
begin();

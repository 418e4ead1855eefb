// Collections: a where-clause that counts as it is typed, who qualifies, and which channels found what, how fast.

import { asked, calmly, count, duration, facts, faultBox, get, h, number, page, percent, post, put, remember, s, t, table, working } from "./dom.js";
import { partsBar } from "./chart.js";

const WORDS = ["AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "IS NULL", "IS NOT NULL"];
const counted = h("p", { id: "counted", role: "status" }), out = h("div", { "aria-live": "polite" }), list = h("ul", { class: "suggest", role: "listbox", id: "offers", hidden: true });
const where = h("textarea", { id: "where", rows: 3, class: "code", spellcheck: "false", value: asked().get("where") || "", role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": "offers", "aria-describedby": "counted" });
const like = h("input", { type: "search", value: asked().get("like") || "" });
let card = null, offers = [], picked = -1, latest = 0, last = "";

const body = () => ({ collection: asked().get("collection") || facts.collections[0], where: where.value, like: like.value });

// -- completion --------------------------------------------------------------------------------------------

/** What may stand where the cursor is: values behind a column and a comparison, else columns and words. */
function offered() {
  const before = where.value.slice(0, where.selectionStart);
  const typed = before.match(/('[^']*|[\p{L}\p{N}_]*)$/u)[0], rest = before.slice(0, before.length - typed.length);
  const named = rest.match(/([\p{L}_][\p{L}\p{N}_]*)\s*(?:=|!=|<>|\bIN\s*\((?:[^()]*,)?|\bcontains\s*\(|,)\s*$/iu);
  const column = named && card.columns.find((one) => one.name === named[1]);
  const inList = rest.match(/([\p{L}_][\p{L}\p{N}_]*)\s+IN\s*\([^()]*$/iu);
  const of = column || (inList && card.columns.find((one) => one.name === inList[1]));
  const found = of ? of.values : [...card.columns.filter((one) => !["text", "vector"].includes(one.kind)).map((one) => one.name), ...card.audiences.map((name) => `audience('${name}')`), ...(rest.trim() ? WORDS : ["NOT"])];
  const wanted = typed.toLowerCase();
  return { typed, found: found.filter((one) => one.toLowerCase().startsWith(wanted) && one !== typed && (wanted || of)).slice(0, 30) };
}

function offer() {
  const { typed, found } = offered();
  offers = found;
  picked = -1;
  put(list, found.map((one, at) => h("li", { role: "option", id: `offer-${at}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); take(at); } }, one)));
  list.dataset.typed = typed;
  close(!found.length);
}

function close(isClosed = true) {
  list.hidden = isClosed;
  where.setAttribute("aria-expanded", String(!isClosed));
  if (isClosed) where.removeAttribute("aria-activedescendant");
}

function take(at) {
  const end = where.selectionStart, start = end - list.dataset.typed.length;
  where.setRangeText(offers[at], start, end, "end");
  close();
  where.focus();
  changed();
}

where.addEventListener("keydown", (event) => {
  if (list.hidden) { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); search(); } return; }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    picked = (picked + step + offers.length) % offers.length;
    [...list.children].forEach((one, at) => one.setAttribute("aria-selected", String(at === picked)));
    list.children[picked].scrollIntoView({ block: "nearest" });
    where.setAttribute("aria-activedescendant", `offer-${picked}`);
    event.preventDefault();
  } else if ((event.key === "Enter" || event.key === "Tab") && picked >= 0) { event.preventDefault(); take(picked); }
  else if (event.key === "Escape") close();
  else if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); close(); search(); }
});
where.addEventListener("input", () => { offer(); changed(); });
where.addEventListener("blur", () => setTimeout(close, 150));

// -- how many, who, which ----------------------------------------------------------------------------------

const changed = calmly(async () => {
  const mine = (latest += 1);
  try {
    const found = await post("recall/count", body());
    if (mine === latest) put(counted, h("b", {}, count(found.count)), ` ${t("recall.of", { all: count(found.of), share: percent(found.of ? found.count / found.of : 0) })} · ${duration(found.seconds)}`);
  } catch (error) { if (mine === latest) put(counted, faultBox(error)); }
}, 120);

async function search() {
  remember({ where: where.value, like: like.value }, true);
  last = "rows";
  await working(out, async () => rows(await post("recall", body())));
}

async function profile() {
  remember({ where: where.value, like: like.value, show: "profile" });
  last = "profile";
  await working(out, async () => who(await post("recall/profile", body())));
}

function rows(found) {
  const timed = Object.entries(found.seconds).filter(([name]) => name !== "whole");
  const parts = timed.map(([name, seconds]) => ({ name, bytes: seconds, shown: duration(seconds) }));
  const rest = found.seconds.whole - timed.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (rest > 0) parts.push({ name: t("recall.rest"), bytes: rest, shown: duration(rest) });
  const ranked = found.rows.some((row) => row.score !== null);
  put(out, h("section", { class: "card" }, h("h2", {}, t("recall.took", { time: duration(found.seconds.whole) })),
    partsBar(parts, found.seconds.whole, 0, parts.map((part) => `${part.name} ${part.shown}`).join(", ")),
    h("p", { class: "keys" }, parts.map((part, at) => h("span", { class: `key c${at % 8}` }, `${part.name} ${part.shown}`)))),
  h("section", {}, h("h2", {}, t("recall.rows", { shown: count(found.rows.length), all: count(found.among) })),
    table(["id", ...(ranked ? [`#${t("recall.score")}`, t("recall.found_by")] : []), ...found.columns],
      found.rows.map((row) => [String(row.id), ...(ranked ? [number(row.score), Object.entries(row.found_by).map(([name, at]) => h("span", { class: "channel" }, `${name} #${at.rank}`))] : []),
        ...found.columns.map((name) => cell(row.row[name]))]), { name: t("nav.recall") })));
}

const cell = (value) => (value === null || value === undefined ? h("span", { class: "soft" }, "–") : Array.isArray(value) ? value.join(", ") : String(value));

function who(found) {
  put(out, h("section", {}, h("h2", {}, t("recall.who", { count: count(found.count), time: duration(found.seconds) })), h("p", { class: "soft" }, t("recall.tgi_help")),
    h("div", { class: "grid" }, found.attributes.map((one) => h("section", { class: "card" }, h("h2", {}, one.name, " ", h("span", { class: "soft" }, one.kind)),
      h("div", { role: "table", "aria-label": one.name },
        h("div", { class: "share soft", role: "row" }, ["recall.value", "recall.share", "recall.percent", "recall.tgi"].map((key) => h("span", { role: "columnheader", class: key === "recall.value" || key === "recall.share" ? null : "number" }, t(key)))),
        one.shares.map((share) => h("div", { class: "share", role: "row" }, h("span", { role: "cell" }, share.value), h("span", { role: "cell" }, both(share)),
          h("span", { role: "cell", class: "number" }, percent(share.share)), h("span", { role: "cell", class: `number tone ${share.tgi > 110 ? "better" : share.tgi < 90 ? "worse" : ""}` }, share.tgi === null ? "–" : Math.round(share.tgi))))),
      one.more > 0 && h("p", { class: "soft" }, t("recall.more", { count: count(one.more) })))))));
}

/** A share among those that qualify over the share among all. */
const both = (share) => s("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", role: "img", "aria-label": `${percent(share.share)}, ${t("recall.all")} ${percent(share.of_all)}` },
  s("rect", { class: "fill c0", width: 100 * share.share, height: 9 }), s("rect", { class: "fill c7", y: 10, width: 100 * share.of_all, height: 5 }));

async function open() {
  const name = asked().get("collection") || facts.collections[0];
  card = await working(out, () => get(`recall?collection=${encodeURIComponent(name)}`));
  if (!card) return;
  const columns = h("p", { class: "soft" }, t("recall.columns"), " ", card.columns.map((one) => `${one.name} (${one.kind})`).join(", "), " · ", t("recall.channels"), " ", card.channels.join(", ") || "–");
  put(page, facts.collections.length > 1 && h("label", { class: "field" }, h("span", { class: "name" }, t("recall.collection")), h("select", { onchange: (event) => { remember({ collection: event.target.value, where: "", like: "" }, true); location.reload(); } }, facts.collections.map((one) => h("option", { value: one, selected: one === name }, one)))),
    h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); search(); } },
      h("label", { class: "field" }, h("span", { class: "name" }, t("recall.where")), where), list, counted,
      h("label", { class: "field" }, h("span", { class: "name" }, t("recall.like")), like),
      h("p", { class: "bar" }, h("button", { class: "main" }, t("recall.search")), h("button", { type: "button", onclick: profile }, t("recall.profile"))), columns), out);
  changed();
  if (asked().get("show") === "profile") profile(); else search();
}

if (facts.collections.length) { put(page, out); open(); }
else put(page, h("div", { class: "empty" }, h("p", {}, t("recall.none")), h("pre", {}, "danlu ui --collection people=people.danlu")));

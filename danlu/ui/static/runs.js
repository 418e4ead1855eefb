// Runs: a list, or some of them over each other as they go. What is shown is in the address; what is known, on the server.

import { address, ago, asked, clock, duration, facts, faultBox, get, h, number, page, post, put, remember, t, table, count, working } from "./dom.js";
import { figure, thinned, MOST } from "./chart.js";

const STATES = { running: "running", done: "done", stopped: "stopped", "broken off": "broken", gone: "gone" };
const TONES = { stopped: "bad", interrupted: "bad", nonfinite: "bad", damaged: "bad", resumed: "note", begun: "note", "held out": "note" };

const EVENTS = 500; // of a run that are held

const state = (card) => h("span", { class: `state ${STATES[card.state] || "gone"}` }, t(`state.${STATES[card.state] || "gone"}`));

// -- the list ----------------------------------------------------------------------------------------------

async function list() {
  const place = h("div"), filter = h("input", { type: "search", placeholder: t("runs.filter"), "aria-label": t("runs.filter") });
  const over = h("button", { class: "main", disabled: true }, t("runs.over"));
  const chosen = new Set();
  let cards = [];
  const draw = () => {
    const wanted = filter.value.toLowerCase();
    const shown = cards.filter((card) => `${card.run} ${card.model} ${card.kind}`.toLowerCase().includes(wanted));
    if (!cards.length) return put(place, h("div", { class: "empty" }, h("p", {}, t("runs.none")), h("pre", {}, "danlu run quickstart")));
    return put(place, table(
      [t("runs.run"), t("runs.state"), t("runs.kind"), t("runs.model"), `#${t("runs.steps")}`, `#${t("runs.loss")}`, t("runs.verdict"), t("runs.told")],
      shown.map((card) => [
        h("span", { class: "pick" },
          h("input", { type: "checkbox", "aria-label": t("runs.choose", { run: card.run }), checked: chosen.has(card.run), onchange: (event) => {
            chosen[event.target.checked ? "add" : "delete"](card.run);
            over.disabled = chosen.size < 2;
          } }),
          h("a", { href: address("runs", { run: card.run }) }, card.run)),
        [state(card), card.reason && h("div", { class: "why" }, card.reason)],
        card.kind, card.model,
        card.steps ? `${count(card.step)} / ${count(card.steps)}` : card.step ? count(card.step) : "",
        card.loss === undefined || card.loss === null ? "" : number(card.loss),
        card.has_verdict ? h("span", { class: `verdict tone ${card.tone}` }, card.verdict) : "",
        h("time", { title: clock(card.told) }, ago(card.told))]),
      { name: t("nav.runs") }));
  };
  filter.addEventListener("input", draw);
  over.addEventListener("click", () => location.assign(address("runs", { run: [...chosen] })));
  put(page, h("div", { class: "bar" }, filter, over), place);
  const load = async () => {
    const before = JSON.stringify(cards);
    try { cards = await get("runs"); } catch (error) { put(place, faultBox(error)); return; }
    if (before !== JSON.stringify(cards) && !place.contains(document.activeElement)) draw();
  };
  cards = (await working(place, () => get("runs"))) || [];
  draw();
  setInterval(load, 3000);
}

// -- one run, or several -----------------------------------------------------------------------------------

class Live {
  constructor(names, charts) {
    this.names = names;
    this.charts = charts;
    this.series = new Map(names.map((name) => [name, {}]));
    this.faulty = new Map(names.map((name) => [name, {}]));
    this.events = new Map(names.map((name) => [name, []]));
    this.heads = h("div", { class: "heads" });
    this.figures = h("div", { class: "figures" });
    this.decided = h("div");
    this.cards = new Map();
    this.known = new Set();
    this.isDue = false;
  }

  /** Hear what comes. A page that nobody sees hears nothing: a browser has six connections to a server for all its tabs. */
  follow() {
    let source = null;
    const turn = () => {
      if (document.hidden) { source?.close(); source = null; } else source ||= this.hear();
    };
    document.addEventListener("visibilitychange", turn);
    window.addEventListener("pagehide", () => source?.close());
    turn();
  }

  hear() {
    const query = new URLSearchParams(this.names.map((name) => ["run", name]));
    query.set("lang", document.documentElement.lang.slice(0, 2));
    if (this.last) query.set("after", this.last);
    const source = new EventSource(`/ui/api/runs/stream?${query}`);
    const on = (kind, take) => source.addEventListener(kind, (event) => {
      if (event.lastEventId) this.last = event.lastEventId;
      take(JSON.parse(event.data));
      this.due();
    });
    on("whole", ({ run, series, faulty, events }) => { this.known.add(run); this.series.set(run, series); this.faulty.set(run, faulty); this.events.set(run, events); });
    on("rows", ({ run, rows, faulty }) => {
      this.add(run, rows);
      for (const [name, steps] of Object.entries(faulty)) this.faulty.get(run)[name] = [...(this.faulty.get(run)[name] || []), ...steps].slice(-EVENTS);
    });
    on("events", ({ run, events }) => this.events.set(run, [...this.events.get(run), ...events].slice(-EVENTS)));
    on("card", (card) => {
      const before = this.cards.get(card.run);
      this.cards.set(card.run, card);
      if (before?.state !== card.state) this.stands?.(card);
      if (before?.state === "running" && card.state !== "running") this.ended();
    });
    source.addEventListener("open", () => document.body.classList.remove("away"));
    // A stream ends by itself where no run goes on; the browser asks again after a while.
    let isOver = false;
    source.addEventListener("ended", () => { isOver = true; });
    source.addEventListener("error", () => {
      if (!isOver) document.body.classList.add("away");
      isOver = false;
    });
    return source;
  }

  add(run, { step, ...columns }) {
    const all = this.series.get(run);
    for (const [name, values] of Object.entries(columns)) {
      const one = (all[name] ||= { x: [], y: [] });
      values.forEach((value, at) => { if (value !== null) { one.x.push(step[at]); one.y.push(value); } });
      if (one.x.length > 2 * MOST) all[name] = thinned(one);
    }
  }

  /** Drawn once for all that came together; curves wait while somebody reads one or its twin. */
  due(wait = 60) {
    if (this.isDue) return;
    this.isDue = true;
    setTimeout(() => { this.isDue = false; this.draw(); }, wait);
  }

  draw() {
    put(this.heads, this.names.map((name, at) => head(this.cards.get(name) || { run: name }, at, this.names.length > 1)));
    if (this.figures.querySelector("details[open], svg:hover")) this.due(1000);
    else {
      const drawn = this.charts.map((chart) => figure(chart, this.curves(chart), this.marks(chart)));
      const wide = drawn.filter((one) => one?.classList.contains("wide")), small = drawn.filter((one) => one && !one.classList.contains("wide"));
      put(this.figures, wide.length + small.length ? [wide, h("div", { class: "grid" }, small)] : h("p", { class: "soft", role: "status" }, t(this.known.size < this.names.length ? "runs.reading" : "runs.no_steps")));
    }
    put(this.decided, this.told());
  }

  curves(chart) {
    const scale = chart.scale || 1;
    return this.names.flatMap((run, of) => chart.columns.map((column, at) => {
      const one = this.series.get(run)[column];
      if (!one || (this.names.length > 1 && at > 0 && column !== "eval_loss")) return null;
      const own = chart.names?.[at] || chart.title;
      return {
        name: this.names.length > 1 ? (chart.columns.length > 1 ? `${run} · ${own}` : run) : own,
        colour: this.names.length > 1 ? of : at, x: one.x, y: scale === 1 ? one.y : one.y.map((y) => y * scale),
        dots: column === "eval_loss", pale: this.names.length > 1 && column === "eval_loss",
      };
    })).filter(Boolean);
  }

  /** Steps in which a column was no number, and, on the loss of a run alone, what was decided. */
  marks(chart) {
    const faulty = this.names.flatMap((run) => chart.columns.flatMap((column) => (this.faulty.get(run)[column] || []).map((x) => ({ x, text: t("chart.none", { name: run }), tone: "bad" }))));
    if (this.names.length > 1 || !chart.wide) return faulty;
    return [...faulty, ...this.events.get(this.names[0]).filter((one) => Number.isFinite(one.step) && one.step > 0)
      .map((one) => ({ x: one.step, text: `${one.kind}: ${one.reason}`, tone: tone(one) }))];
  }

  told() {
    const rows = this.names.flatMap((run) => this.events.get(run).map((one) => ({ run, ...one })));
    if (!rows.length) return null;
    rows.sort((a, b) => (a.time || 0) - (b.time || 0));
    const several = this.names.length > 1;
    return h("section", {}, h("h2", {}, t("runs.decided")),
      table([t("runs.when"), ...(several ? [t("runs.run")] : []), `#${t("chart.step")}`, t("runs.event"), t("runs.reason"), t("runs.evidence")],
        rows.map(({ run, time, kind, reason, step, ...more }) => [
          h("time", { class: "when" }, clock(time)), ...(several ? [run] : []), typeof step === "number" ? count(step) : "",
          h("b", { class: `event ${tone({ kind, ...more })}` }, String(kind)), String(reason ?? ""), evidence(more)]),
        { name: t("runs.decided") }));
  }
}

const tone = (event) => TONES[event.kind] || (event.by === "doctor" ? "doctor" : "note");

/** A value of an event as a reader wants it. */
function plain(value) {
  if (Number.isInteger(value)) return count(value);
  if (typeof value === "number") return number(value);
  if (typeof value === "string") return value;
  const inner = value && typeof value === "object" && !Array.isArray(value) && Object.values(value).every((one) => typeof one !== "object");
  return inner ? Object.entries(value).map(([name, one]) => `${name} ${plain(one)}`).join(", ") : JSON.stringify(value);
}

function evidence(values) {
  return Object.entries(values).filter(([name]) => name !== "by").map(([name, value]) =>
    h("span", { class: "fact" }, h("code", {}, name), " ", plain(value)));
}

function head(card, at, several) {
  const share = card.steps ? Math.min(1, (card.step || 0) / card.steps) : null;
  return h("section", { class: "card run-head" },
    h("h2", {}, several && h("span", { class: `swatch c${at}` }), several ? h("a", { href: address("runs", { run: card.run }) }, card.run) : card.run, " ", card.state && state(card)),
    card.reason && h("p", { class: "why" }, h("b", {}, t("runs.why")), " ", card.reason),
    card.has_verdict && h("p", { class: `tone ${card.tone}` }, card.verdict),
    share !== null && h("progress", { max: 1, value: share, "aria-label": t("runs.progress") }),
    h("p", { class: "soft" },
      card.steps ? t("runs.step_of", { step: count(card.step), steps: count(card.steps) }) : card.step ? t("runs.step", { step: count(card.step) }) : "",
      card.seconds_left ? ` · ${t("runs.left", { time: duration(card.seconds_left) })}` : "",
      card.seconds ? ` · ${t("runs.took", { time: duration(card.seconds) })}` : "",
      card.model ? ` · ${card.model}` : ""));
}

/** What can be done with a run; what it can be depends on how it stands, which `live` tells. */
function actions(detail, live) {
  const out = h("span", { role: "status" });
  const act = (path) => h("button", { disabled: true, onclick: () => working(out, async () => { await post(`start/${path}`, { run: detail.run }); put(out, t(`runs.${path}_said`)); }) }, t(`runs.${path}`));
  const stop = act("stop"), resume = act("resume");
  live.stands = ({ state: now }) => {
    stop.disabled = now !== "running";
    resume.disabled = !["stopped", "broken off"].includes(now);
    put(out);
  };
  return h("div", { class: "bar" },
    h("a", { class: "button", href: address("runs") }, t("runs.back")),
    detail.has_report && h("a", { class: "button", href: `/ui/report/${detail.run}/report.html` }, t("runs.report")),
    facts.canStart && [stop, resume], out);
}

const side = (title, text) => h("div", {}, h("h3", {}, title), h("div", { class: "text", dir: "auto" }, text ?? "–"));

function samples(details) {
  const first = details[0], others = details.slice(1);
  if (!first.examples.length) return null;
  return h("section", {}, h("h2", {}, t("runs.samples")), first.examples.map((one) => h("article", { class: "example card" },
    side(t("runs.prompt"), one.prompt),
    h("div", { class: "sides" }, side(t("runs.reference"), one.reference), side(t("runs.before"), one.before),
      side(others.length ? t("runs.after_of", { run: first.run }) : t("runs.after"), one.after),
      others.map((other) => side(t("runs.after_of", { run: other.run }), other.examples.find((its) => its.prompt === one.prompt)?.after))))));
}

async function runs(names) {
  document.title = `${names.join(", ")} · Danlu`;
  const place = h("div");
  put(page, place);
  const found = await working(place, () => Promise.all([get("runs/charts"), ...names.map((name) => get(`runs/detail?run=${encodeURIComponent(name)}`))]));
  if (!found) return;
  const [charts, ...details] = found;
  const live = new Live(names, charts), answers = h("div");
  const steps = details.flatMap((one) => one.chain);
  put(page, names.length === 1 ? actions(details[0], live) : h("div", { class: "bar" }, h("a", { class: "button", href: address("runs") }, t("runs.back"))),
    h("p", { class: "away-note", role: "status" }, t("fault.away")),
    live.heads,
    steps.length ? h("nav", { class: "bar", "aria-label": t("runs.chain") }, h("span", {}, t("runs.chain")), steps.map((one) => h("a", { class: "button", href: address("runs", { run: one }) }, one.split("/")[1]))) : null,
    live.figures, live.decided, answers,
    details.map((one) => h("details", { class: "card" }, h("summary", {}, `${t("runs.recipe")}${names.length > 1 ? ` · ${one.run}` : ""}`), h("pre", {}, one.recipe))));
  put(answers, samples(details));
  live.ended = async () => put(answers, samples(await Promise.all(names.map((name) => get(`runs/detail?run=${encodeURIComponent(name)}`)))));
  live.follow();
}

const names = asked().getAll("run");
remember({});
if (names.length) runs(names.slice(0, 8));
else list();

// Curves as SVG: several series over each other, marks of events, a pointer that reads values, and a twin as a table.
// Series are bucketed by the server; what comes later is added here, and thinned again when it has grown too long.

import { h, number, s, table, t } from "./dom.js";

export const MOST = 1000;
const COLOURS = 8;
const TOP = 8, BOTTOM = 22, LEFT = 52, RIGHT = 16;

/** At most `most` points: the lowest and the highest of each stretch. */
export function thinned({ x, y }, most = MOST) {
  if (y.length <= most) return { x, y };
  const stretches = Math.max(1, Math.floor((most - 2) / 2));
  const kept = new Set([0, y.length - 1]);
  for (let at = 0; at < stretches; at += 1) {
    const start = Math.floor((at * y.length) / stretches), end = Math.floor(((at + 1) * y.length) / stretches);
    let low = start, high = start;
    for (let i = start + 1; i < end; i += 1) {
      if (y[i] < y[low]) low = i;
      if (y[i] > y[high]) high = i;
    }
    kept.add(low).add(high);
  }
  const places = [...kept].sort((a, b) => a - b);
  return { x: places.map((i) => x[i]), y: places.map((i) => y[i]) };
}

/** Round numbers that divide a range. */
export function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough) || 10 * power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

/**
 * A figure.
 * @param chart {title, unit, zero, wide}
 * @param curves [{name, colour: 0…7, x, y, dots, pale}]
 * @param marks [{x, text, tone}]: events at a step
 */
export function figure(chart, curves, marks = []) {
  const drawn = curves.filter((curve) => curve.x.length);
  if (!drawn.length) return null;
  const width = chart.wide ? 900 : 440, height = chart.wide ? 260 : 180;
  const xs = [...drawn.flatMap((curve) => [curve.x[0], curve.x[curve.x.length - 1]]), ...marks.map((mark) => mark.x)];
  let left = Math.min(...xs), right = Math.max(...xs);
  if (left === right) { left -= 1; right += 1; }
  let low = Infinity, high = -Infinity;
  for (const curve of drawn) for (const y of curve.y) { low = Math.min(low, y); high = Math.max(high, y); }
  if (chart.zero && low > 0) low = 0;
  if (low === high) { low -= Math.abs(low) / 2 || 1; high += Math.abs(high) / 2 || 1; }
  const air = 0.04 * (high - low);
  if (!(chart.zero && low === 0)) low -= air;
  high += air;
  const px = (x) => LEFT + ((x - left) / (right - left)) * (width - LEFT - RIGHT);
  const py = (y) => height - BOTTOM - ((y - low) / (high - low)) * (height - TOP - BOTTOM);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve", role: "img", "aria-label": inWords(chart, drawn) });
  for (const y of ticks(low, high, chart.wide ? 6 : 4)) {
    svg.append(s("line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: py(y), y2: py(y) }),
      s("text", { class: "tick", x: LEFT - 6, y: py(y) + 3.5, "text-anchor": "end" }, number(Number(y.toPrecision(10)))));
  }
  for (const x of ticks(left, right, chart.wide ? 9 : 4).filter(Number.isInteger)) {
    svg.append(s("text", { class: "tick", x: px(x), y: height - 6, "text-anchor": "middle" }, number(x)));
  }
  for (const mark of marks.filter((one) => one.x >= left && one.x <= right)) {
    svg.append(s("g", { class: `mark ${mark.tone}` },
      s("line", { x1: px(mark.x), x2: px(mark.x), y1: TOP, y2: height - BOTTOM }),
      s("path", { d: `M${px(mark.x) - 5} ${TOP - 6}h10l-5 8z` }), s("title", {}, mark.text)));
  }
  for (const curve of drawn) {
    const points = curve.x.map((x, at) => `${px(x).toFixed(1)},${py(curve.y[at]).toFixed(1)}`);
    const look = `c${curve.colour % COLOURS}${curve.pale ? " pale" : ""}`;
    svg.append(s("polyline", { class: `line ${look}`, points: points.join(" ") }));
    if (curve.dots || points.length < 3) {
      for (const point of points) svg.append(s("circle", { class: `dot ${look}`, cx: point.split(",")[0], cy: point.split(",")[1], r: 3 }));
    }
  }
  const read = reader(svg, drawn, { width, height, px, left, right });
  return h("figure", { class: chart.wide ? "wide" : null },
    h("figcaption", {}, h("b", {}, chart.title), " ", h("span", {}, chart.unit || ""), legend(drawn)),
    svg, read,
    h("details", { class: "twin" }, h("summary", {}, t("chart.table")), lazily(() => twin(chart, drawn))));
}

const legend = (drawn) => (drawn.length < 2 ? null
  : h("span", { class: "legend" }, drawn.map((curve) => h("span", { class: `key c${curve.colour % COLOURS}${curve.pale ? " pale" : ""}` }, curve.name))));

/** Built when it is opened. */
function lazily(make) {
  const place = h("div");
  queueMicrotask(() => place.parentElement?.addEventListener("toggle", () => place.childElementCount || place.append(make()), { once: true }));
  return place;
}

function twin(chart, drawn) {
  const steps = [...new Set(drawn.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const every = Math.max(1, Math.ceil(steps.length / 100));
  const shown = steps.filter((_, at) => at % every === 0 || at === steps.length - 1);
  const known = drawn.map((curve) => new Map(curve.x.map((x, at) => [x, curve.y[at]])));
  return table([`#${t("chart.step")}`, ...drawn.map((curve) => `#${curve.name}`)],
    shown.map((x) => [number(x), ...known.map((of) => (of.has(x) ? number(of.get(x)) : ""))]), { name: chart.title });
}

function inWords(chart, drawn) {
  return `${chart.title}: ` + drawn.map((curve) => t("chart.words", {
    name: curve.name, first: number(curve.y[0]), last: number(curve.y[curve.y.length - 1]),
    low: number(curve.y.reduce((a, b) => Math.min(a, b))), high: number(curve.y.reduce((a, b) => Math.max(a, b))) })).join("; ");
}

/** What the curves say where the pointer is. */
function reader(svg, drawn, { width, height, px, left, right }) {
  const line = s("line", { class: "pointer", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
  const said = h("p", { class: "reading", "aria-hidden": "true" });
  svg.append(line);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (((event.clientX - box.left) / box.width) * width - LEFT) / (width - LEFT - RIGHT);
    const x = left + Math.min(1, Math.max(0, at)) * (right - left);
    const near = drawn.map((curve) => nearest(curve, x));
    const first = near.reduce((a, b) => (Math.abs(a.x - x) <= Math.abs(b.x - x) ? a : b));
    for (const end of ["x1", "x2"]) line.setAttribute(end, px(first.x));
    line.setAttribute("visibility", "visible");
    said.textContent = `${t("chart.step")} ${number(first.x)}   ` + near.map((one, i) => `${drawn.length > 1 ? `${drawn[i].name} ` : ""}${number(one.y)}`).join("   ");
  });
  svg.addEventListener("pointerleave", () => { line.setAttribute("visibility", "hidden"); said.textContent = ""; });
  return said;
}

function nearest({ x, y }, wanted) {
  let low = 0, high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= wanted) low = middle; else high = middle;
  }
  const at = Math.abs(x[low] - wanted) <= Math.abs(x[high] - wanted) ? low : high;
  return { x: x[at], y: y[at] };
}

/** A bar of parts; each has a name, a size, and a colour by its place. With a limit, what is over it is marked. */
export function partsBar(parts, total, limit, words) {
  const most = Math.max(total, limit || 0);
  let at = 0;
  const svg = s("svg", { viewBox: "0 0 1000 56", class: "parts", role: "img", "aria-label": words, preserveAspectRatio: "none" });
  parts.forEach((part, i) => {
    const size = (1000 * part.bytes) / most;
    svg.append(s("rect", { class: `fill c${i % COLOURS}`, x: at, y: 8, width: Math.max(0.5, size), height: 40 }, s("title", {}, `${part.name} ${part.shown}`)));
    at += size;
  });
  if (limit) {
    const x = Math.min(998, (1000 * limit) / most);
    svg.append(s("rect", { class: total > limit ? "limit over" : "limit", x: x - 1.5, y: 0, width: 3, height: 56 }));
  }
  return svg;
}

/** Small upright bars of shares, the first of `low`. */
export function spread(low, shares, name) {
  const most = Math.max(...shares, 1e-9);
  const said = shares.map((share, at) => `${low + at}: ${Math.round(100 * share)}%`).join(", ");
  return s("svg", { viewBox: `0 0 ${18 * shares.length} 44`, class: "spread", role: "img", "aria-label": `${name} ${said}` },
    shares.map((share, at) => [
      s("rect", { class: "fill c0", x: 18 * at + 2, y: 32 - (30 * share) / most, width: 14, height: Math.max(0.5, (30 * share) / most) }),
      s("text", { class: "tick", x: 18 * at + 9, y: 42, "text-anchor": "middle" }, String(low + at))]));
}

// What all pages share: words, elements, requests, the state in the address, numbers, files that are dropped.
// Text only ever becomes text nodes and attributes: nothing here parses HTML.

const facts = JSON.parse(document.getElementById("facts").textContent);
export const language = facts.language;
export { facts };

/** A text of the dictionary with {name} filled in. */
export function t(key, values = {}) {
  const text = facts.words[key];
  if (text === undefined) throw new Error(`no word for ${key}`);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

/** An HTML element; `css` sets properties, `on…` listens. */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
/** An SVG element. */
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const page = document.getElementById("page");

/** Put elements in place of what an element holds. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
  return element;
}

// -- requests ----------------------------------------------------------------------------------------------

export class Fault extends Error {
  constructor(status, { seen, allowed = "", fix = "" }) {
    super(seen);
    Object.assign(this, { status, seen, allowed, fix });
  }
}

async function answered(path, options) {
  const join = path.includes("?") ? "&" : "?";
  let response;
  try {
    response = await fetch(`/ui/api/${path}${join}lang=${language}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, { seen: t("fault.away") });
  }
  const body = await response.json().catch(() => null);
  if (response.status === 401) location.assign(`/ui/key?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!response.ok) throw new Fault(response.status, body?.error || { seen: `HTTP ${response.status}` });
  return body;
}

export const get = (path) => answered(path);
export const post = (path, body, signal) =>
  answered(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

/** What went wrong, what is allowed, what to do. */
export function faultBox(error) {
  if (!(error instanceof Fault)) console.error(error);
  return h("div", { class: "fault", role: "alert" },
    h("p", {}, error.seen || String(error.message || error)),
    error.allowed && h("p", {}, h("b", {}, t("fault.allowed")), " ", error.allowed),
    error.fix && h("p", {}, h("b", {}, t("fault.next")), " ", error.fix));
}

/** Run work while `place` says that it goes on; what goes wrong is shown there. */
export async function working(place, work) {
  place.setAttribute("aria-busy", "true");
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") put(place, faultBox(error));
    return undefined;
  } finally {
    place.removeAttribute("aria-busy");
  }
}

/** Only the last of several calls within `wait` milliseconds. */
export function calmly(work, wait = 250) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), wait);
  };
}

// -- the state of a page is its address --------------------------------------------------------------------

export const asked = () => new URLSearchParams(location.search);

/** Say in the address what is shown; `isStep` makes it a step that "back" goes behind. */
export function remember(values, isStep = false) {
  const query = asked();
  for (const [name, value] of Object.entries(values)) {
    query.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one !== null && one !== undefined) query.append(name, one);
  }
  const address = `${location.pathname}${query.size ? `?${query}` : ""}`;
  if (address === location.pathname + location.search) return;
  history[isStep ? "pushState" : "replaceState"](null, "", address);
  const other = document.getElementById("language");
  query.set("lang", language === "zh" ? "en" : "zh");
  if (other) other.href = `${location.pathname}?${query}`;
}

/** An address of a page in this language. */
export function address(name, values = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) for (const one of [value].flat()) query.append(key, one);
  if (asked().has("lang")) query.set("lang", language);
  return `/ui/${name}${query.size ? `?${query}` : ""}`;
}

// -- numbers -----------------------------------------------------------------------------------------------

const short = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e7) ? value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e") : short.format(value);
  return text.replace("-", "−");
}
export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
export const percent = (p) => (p > 0 && p < 0.0005 ? "<0.1%" : p >= 0.9995 ? "100%" : `${(100 * p).toFixed(1)}%`);

export function bytes(value) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= size) return `${(value / size).toFixed(value >= 100 * size ? 0 : value >= 10 * size ? 1 : 2)} ${unit}`;
  }
  return `${value} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function ago(time) {
  if (!time) return "–";
  const rough = new Intl.RelativeTimeFormat(language === "zh" ? "zh-CN" : "en", { numeric: "auto" });
  const seconds = time - Date.now() / 1000;
  for (const [size, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (-seconds >= size) return rough.format(Math.round(seconds / size), unit);
  }
  return rough.format(Math.round(seconds), "second");
}

/** A moment as the reader's clock has it. */
export const clock = (time) => (time ? new Date(1000 * time).toLocaleString(language === "zh" ? "zh-CN" : "en-GB") : "–");

// -- tables and files --------------------------------------------------------------------------------------

/** A table; a head that begins with # stands over numbers. Cells are nodes or text. */
export function table(heads, rows, { caption = "", name = "" } = {}) {
  const isNumber = heads.map((head) => head.startsWith("#"));
  const cell = (one, at) =>
    h(at === 0 ? "th" : "td", { scope: at === 0 ? "row" : null, class: isNumber[at] ? "number" : null }, one ?? "");
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption || name },
    h("table", {},
      caption && h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head, at) => h("th", { scope: "col", class: isNumber[at] ? "number" : null }, head.replace(/^#/, ""))))),
      h("tbody", {}, rows.map((row) => (row instanceof Node ? row : h("tr", {}, row.map(cell)))))));
}

/** A place where a file is dropped or chosen; `took(file)` hears of it. */
export function dropZone(text, accepts, took) {
  const input = h("input", { type: "file", accept: accepts.join(","), onchange: () => input.files[0] && took(input.files[0]) });
  const zone = h("label", { class: "drop" }, h("span", {}, text), input);
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) took(event.dataTransfer.files[0]);
  });
  return zone;
}

/** Send a file as it is; its place on the server. */
export async function send(path, file) {
  const answer = await answered(`${path}?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
  return answer.place;
}

/** Put a text on the clipboard, where the browser lets us, and say so on the button. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { value: text, class: "offscreen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = t("copied");
  setTimeout(() => { button.textContent = before; }, 1500);
}

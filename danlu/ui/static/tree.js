// Beams as a tree that grows: a slider says up to which token it is drawn.

import { h, number, s, t, table } from "./dom.js";
import { joined, visible } from "./tokens.js";

const LINE = 30, GAP = 34;

class Node {
  constructor(depth, row, parent) {
    Object.assign(this, { depth, row, parent, children: [], leads: false, isOpen: false, forced: false });
  }
}

/** Rows of a trace as a tree: what forks, what ends, and whether anything that was kept comes from there. */
export function grown(trace, forced) {
  const root = new Node(0, null, null);
  let rows = new Map((trace.steps[0]?.choices || []).map((choice) => [choice.row, root]));
  trace.steps.forEach((step, at) => {
    const after = new Map();
    for (const one of [...step.branches.filter((branch) => branch.is_live), ...step.finished]) {
      const parent = rows.get(one.parent);
      if (!parent) continue;
      const node = new Node(at + 1, one, parent);
      parent.children.push(node);
      if (one.row !== undefined) after.set(one.row, node);
      else if (one.is_kept) lead(node);
      if (one.answer !== undefined && one.answer !== null) markForced(node, forced[one.answer] || []);
    }
    if (at === trace.steps.length - 1) for (const node of rows.values()) if (!node.children.length) { node.isOpen = true; lead(node); }
    rows = after;
  });
  return root;
}

function lead(node) {
  for (let one = node; one && !one.leads; one = one.parent) one.leads = true;
}

function markForced(last, spans) {
  const path = [];
  for (let one = last; one.parent; one = one.parent) path.unshift(one);
  for (const [start, end] of spans) path.slice(start, end).forEach((node) => { node.forced = true; });
}

/** Tokens up to the next fork are one piece. */
function pieces(node, found, parent) {
  for (const child of [...node.children].sort((a, b) => (b.leads - a.leads) || (a.row.group - b.row.group))) {
    const nodes = [child];
    for (let one = child; one.children.length === 1 && one.children[0].leads === child.leads && one.children[0].forced === child.forced;) {
      one = one.children[0];
      nodes.push(one);
    }
    const piece = { nodes, parent, children: [], last: nodes[nodes.length - 1] };
    parent.children.push(piece);
    found.push(piece);
    pieces(piece.last, found, piece);
  }
  return found;
}

const width = (text) => [...text].reduce((sum, one) => sum + (one.codePointAt(0) > 0x2e80 ? 14 : 7.7), 12);

/** The tree with its slider; `take(path)` hears which tokens lead to a piece that was clicked. */
export function treeOf(trace, forced) {
  const root = grown(trace, forced);
  const trunk = { nodes: [], children: [], last: root, end: 8, y: 0 };
  const all = pieces(root, [], trunk);
  let leaves = 0;
  const lay = (piece, x) => {
    piece.x = x;
    piece.text = visible(joined(piece.nodes.map((node) => node.row.token.text)));
    piece.end = x + width(piece.text);
    piece.children.forEach((child) => lay(child, piece.end + GAP));
    if (!piece.children.length) { piece.y = leaves * LINE; leaves += 1; }
    else piece.y = (piece.children[0].y + piece.children[piece.children.length - 1].y) / 2;
  };
  trunk.children.forEach((child) => lay(child, 20));
  if (trunk.children.length) trunk.y = (trunk.children[0].y + trunk.children[trunk.children.length - 1].y) / 2;
  const hasGroups = "num_beam_groups" in trace.knobs;
  const right = Math.max(...all.map((piece) => piece.end), 0) + 210, bottom = leaves * LINE + 8;
  const svg = s("svg", { class: "tree", viewBox: `0 -16 ${right} ${bottom}`, role: "img", "aria-label": t("decode.tree_words", { count: trace.answers.length, steps: trace.steps.length }) });
  svg.setAttribute("width", right);
  svg.setAttribute("height", bottom);
  const draw = (upto) => {
    svg.replaceChildren(s("circle", { cx: 6, cy: trunk.y, r: 4, class: "c7" }));
    for (const piece of all) {
      const nodes = piece.nodes.filter((node) => node.depth <= upto);
      if (!nodes.length) continue;
      const isWhole = nodes.length === piece.nodes.length, first = piece.nodes[0];
      const colour = hasGroups ? `c${first.row.group % 8}` : first.leads ? "c1" : "c7";
      const text = isWhole ? piece.text : visible(joined(nodes.map((node) => node.row.token.text)));
      const from = piece.parent;
      svg.append(s("g", { class: `${colour} ${first.leads ? "" : "pruned"} ${first.forced ? "forced" : ""}` },
        s("path", { class: "link", d: `M${from.end + (from === trunk ? 2 : 0)} ${from.y}C${from.end + 18} ${from.y} ${piece.x - 18} ${piece.y} ${piece.x - 2} ${piece.y}` }),
        first.forced && s("rect", { x: piece.x, y: piece.y - 12, width: width(text) - 6, height: 22, rx: 4 }),
        s("text", { x: piece.x + 4, y: piece.y + 4.5 }, text),
        isWhole && s("text", { class: "soft", x: piece.end + 2, y: piece.y + 4 }, ending(piece)),
        s("title", {}, `${text} ${ending(piece)}`)));
    }
  };
  const steps = trace.steps.length;
  const said = h("output", {}, `${steps} / ${steps}`);
  const slider = h("input", { type: "range", min: 1, max: Math.max(1, steps), value: steps, "aria-label": t("decode.grow"), oninput: () => { said.textContent = `${slider.value} / ${steps}`; draw(Number(slider.value)); } });
  const play = h("button", { onclick: () => {
    let at = 0;
    const timer = setInterval(() => {
      at += 1;
      slider.value = at;
      slider.dispatchEvent(new Event("input"));
      if (at >= steps || !svg.isConnected) clearInterval(timer);
    }, 350);
  } }, t("decode.play"));
  draw(steps);
  return h("figure", {}, h("figcaption", {}, h("b", {}, t("decode.tree")), " ", h("span", {}, t("decode.tree_note")),
    hasGroups && h("span", { class: "legend" }, [...new Set(all.map((piece) => piece.nodes[0].row.group))].sort().map((group) => h("span", { class: `key c${group % 8}` }, t("decode.group", { group: group + 1 }))))),
  h("div", { class: "bar" }, play, h("label", { class: "inline" }, t("decode.grow"), slider), said),
  h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("decode.tree") }, svg),
  h("details", { class: "twin" }, h("summary", {}, t("chart.table")), twin(all)));
}

function ending(piece) {
  const { row, isOpen } = piece.last;
  if (row.finish_reason) {
    const fate = row.answer !== null && row.answer !== undefined ? t("decode.answer", { number: row.answer + 1 }) : t(row.is_kept ? "decode.kept" : "decode.displaced");
    return `✓ ${number(row.score)} · ${fate}`;
  }
  return piece.children.length ? "" : `${number(row.total)}${isOpen ? ` · ${t("decode.open")}` : ` · ${t("decode.pruned")}`}`;
}

const twin = (all) => table([`#${t("chart.step")}`, t("decode.token"), `#${t("decode.group_head")}`, `#${t("decode.sum")}`, t("decode.end")],
  all.map((piece) => [String(piece.nodes[0].depth), piece.text, String(piece.nodes[0].row.group + 1), number(piece.last.row.total ?? piece.last.row.score), ending(piece)]), { name: t("decode.tree") });

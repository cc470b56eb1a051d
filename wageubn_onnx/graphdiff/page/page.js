// The page around the graphs: pipeline, list of layers, side-by-side view, details. What is shown stands in the address (#...),
// so that links and the browser's back button work.

const DIRECTIONS = ["forward", "backward", "update", "all"];
const named = (name) => STAGES.findIndex((stage) => stage.name === name);
const START = {
  view: DATA.steps.some((step) => step.passes.length) ? "pipeline" : "layers",
  layer: DATA.layers[DATA.order[0]],
  a: Math.max(0, named("fp_training")),
  b: named("int_training") >= 0 ? named("int_training") : STAGES.length - 1,
  direction: "forward",
  node: "",
  whole: "",
};
const state = { ...START };
const filters = { search: "", op: "", path: "", pass: "" };
const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(START)) state[key] = given.has(key) ? given.get(key) : START[key];
  for (const side of ["a", "b"]) state[side] = Math.min(STAGES.length - 1, Math.max(0, Number(state[side]) || 0));
  if (!DATA.layers.includes(state.layer)) state.layer = START.layer;
  if (!DIRECTIONS.includes(state.direction)) state.direction = START.direction;
}

/** The address of what is shown now, but for `changes`. */
function address(changes) {
  const next = { ...state, ...changes };
  return `#${new URLSearchParams(Object.entries(next).filter(([key, value]) => key === "view" || String(value) !== String(START[key])))}`;
}

const go = (changes) => (location.hash = address(changes));
const toNode = (node) => ({ view: "layers", layer: DATA.layers[node.layer], direction: node.direction, node: node.name });
const link = (changes, ...children) => h("a", { href: address(changes) }, ...children);

/** A link to a node; an input or output leads to its first reader or its maker. */
function nodeLink(node, label) {
  const target = node.place === "input" ? node.results[0].users.find((u) => !u.place) : node.place ? node.operands[0].maker : node;
  const layer = DATA.layers[node.layer];
  const words = label || (node.place ? `${node.place} ${node.name}` : node.name || node.op);
  return target && !target.place ? link(toNode(target), words) : h("span", null, words || layer);
}

const chip = (path) => h("span", { class: "chip", "data-family": familyOf(path), title: meaningOf(path) }, symbolOf(path) || "none");

// -- pipeline -------------------------------------------------------------------------------------------------------------

function pipelineView() {
  const roots = STAGES.filter((stage) => !DATA.steps.some((step) => step.b === stage.number && step.a !== step.b));
  return h("main", { class: "pipeline" }, roots.map((root) => branch(root)), DATA.steps.map(passTable));
}

/** A stage, and in a row each what is made of it. */
function branch(stage) {
  const next = DATA.steps.filter((step) => step.a === stage.number && step.b !== step.a).map((step) => STAGES[step.b]);
  return h("div", { class: "branch" }, card(stage), next.length > 0 && h("div", { class: "next" },
    next.map((other) => h("div", { class: "line" }, h("span", { class: "arrow", "aria-hidden": "true" }), branch(other)))));
}

function card(stage) {
  const dtypes = Object.entries(stage.dtypes);
  const total = dtypes.reduce((sum, [, n]) => sum + n, 0);
  return h("section", { class: "card" }, h("h2", null, stage.name), h("p", null, stage.summary),
    h("dl", null, h("dt", null, "nodes"), h("dd", null, stage.count.toLocaleString("en")),
      h("dt", null, "quantize nodes"), h("dd", null, stage.quantizers.toLocaleString("en")),
      h("dt", null, "results"), h("dd", { class: "dtypes" }, dtypes.map(([dtype, n]) => [h("span", null, dtype), h("span", null, percent(n / total))]))));
}

const percent = (share) => (share > 0.9995 && share < 1 ? "> 99.9 %" : share >= 0.001 ? `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %` : "< 0.1 %");

function passTable(step) {
  const [a, b] = [STAGES[step.a], STAGES[step.b]];
  const kept = step.pairs.filter((index, i) => index >= 0 && !a.raw.nodes[i].place).length;
  const rows = step.passes.map((pass) => {
    const symbols = Object.entries(pass.quantizers);
    const all = symbols.map(([symbol, n]) => `${symbol} ${n}`).join(", ");
    const isIdle = !pass.inserted && !pass.rewritten;
    return h("tr", { class: isIdle && "idle" },
      h("th", { scope: "row" }, pass.name), h("td", null, pass.summary.replaceAll("`", "")),
      h("td", { class: "number" }, pass.inserted ? pass.inserted.toLocaleString("en") : "–"),
      h("td", { class: "number" }, pass.rewritten ? pass.rewritten.toLocaleString("en") : "–"),
      h("td", { title: all }, symbols.length > 10 ? `${count(symbols.reduce((sum, [, n]) => sum + n, 0), "node")} of ${symbols.length} kinds` : all || "–"),
      h("td", null, Object.entries(pass.dtypes).map(([dtype, n]) => `${dtype} ${n}`).join(", ") || "–"));
  });
  const removed = step.removed ? `; ${count(step.removed, "node")} of ${a.name} went` : "";
  return h("section", { class: "step" }, h("h2", null, a.name, h("span", { class: "to" }, " → "), b.name),
    h("p", null, `${count(a.count, "node")} became ${b.count.toLocaleString("en")}: ${(a.count - step.removed).toLocaleString("en")} have a counterpart${removed}. `,
      link({ view: "layers", a: a.number, b: b.number, node: "" }, "Compare layer by layer")),
    rows.length > 0 && h("div", { class: "scroll" }, h("table", null, h("thead", null, h("tr", null,
      ["pass", "does", "nodes inserted", "rewritten", "quantize nodes", "dtypes of its results"].map((title, i) =>
        h("th", { scope: "col", class: i === 2 || i === 3 ? "number" : null }, title)))), h("tbody", null, rows))));
}

// -- list of layers -------------------------------------------------------------------------------------------------------

const listed = h("ul", { class: "layers", onkeydown: stepThroughList });
const tally = h("p", { class: "tally", role: "status" });

function sidebar() {
  const shown = [STAGES[state.a], STAGES[state.b]];
  const nodes = shown.flatMap((stage) => stage.nodes).filter((node) => !node.place);
  const unique = (values) => [...new Set(values)].filter(Boolean).sort();
  const choose = (key, title, values, label = (v) => v) => h("label", null, h("span", null, title),
    h("select", { id: `filter-${key}`, onchange: (e) => ((filters[key] = e.target.value), fillList()) }, h("option", { value: "" }, "any"),
      values.map((value) => h("option", { value, selected: filters[key] === value }, label(value)))));
  const search = h("input", { type: "search", id: "search", placeholder: "Search layers and nodes  /", "aria-label": "Search layers and nodes",
    value: filters.search, oninput: (e) => ((filters.search = e.target.value), fillList()) });
  search.addEventListener("keydown", (e) => { if (e.key === "ArrowDown") (e.preventDefault(), listed.querySelector("a")?.focus()); });
  fillList();
  return h("aside", null, search, h("div", { class: "filters" },
    choose("path", "data path", unique(nodes.map((n) => n.path)), (path) => `${path}  ${symbolOf(path) === path ? "" : symbolOf(path)}`),
    choose("pass", "pass", unique(nodes.flatMap((n) => n.passes.split(",")))),
    choose("op", "operator", unique(nodes.map((n) => n.op)))), tally, listed);
}

/** Layers with a node, in one of the two stages, that meets all filters. */
function chosenLayers() {
  const words = filters.search.toLowerCase().split(/\s+/).filter(Boolean);
  const meets = (node) => (!filters.op || node.op === filters.op) && (!filters.path || node.path === filters.path) &&
    (!filters.pass || node.passes.split(",").includes(filters.pass));
  return DATA.order.filter((layer) => {
    const nodes = [STAGES[state.a], STAGES[state.b]].flatMap((stage) => stage.of(layer)).filter(meets);
    const name = DATA.layers[layer].toLowerCase();
    return nodes.length && words.every((word) => name.includes(word) || nodes.some((node) => node.name.toLowerCase().includes(word)));
  });
}

function fillList() {
  const layers = chosenLayers();
  tally.textContent = `${layers.length} of ${count(DATA.order.length, "layer")}`;
  listed.replaceChildren(...layers.map((layer) => {
    const name = DATA.layers[layer];
    const direction = filters.path ? DATA.paths[filters.path][2] : state.direction;
    return h("li", null, h("a", { href: address({ view: "layers", layer: name, direction, node: "" }), "aria-current": name === state.layer && "true" },
      h("span", { class: "name" }, name), h("span", { class: "kind" }, kindOf(layer))));
  }));
}

/** The operator of a layer, where a stage has it as one node. */
function kindOf(layer) {
  const whole = STAGES.map((stage) => stage.of(layer)).find((nodes) => nodes.length === 1 && nodes[0].direction === "forward");
  return whole ? whole[0].op.replace("BatchNormalization", "BN") : "";
}

function stepThroughList(event) {
  const links = [...listed.querySelectorAll("a")];
  const next = links.indexOf(document.activeElement) + { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (Number.isNaN(next)) return;
  event.preventDefault();
  (links[next] || document.getElementById("search")).focus();
}

// -- one layer, two stages ------------------------------------------------------------------------------------------------

let panes = []; // {stage, other, items, edges, itemOf: node -> item, svg, side}

function layersView() {
  return h("main", { class: "layers-view" }, sidebar(), layerView());
}

function layerView() {
  const layer = DATA.layers.indexOf(state.layer);
  const stages = [STAGES[state.a], STAGES[state.b]];
  const sources = [...new Set(stages.flatMap((stage) => stage.of(layer).map((node) => node.source)))].filter(Boolean);
  panes = stages.map((stage, i) => pane(stage, stages[1 - i], layer, "ab"[i]));
  const tabs = DIRECTIONS.map((direction) => {
    const sizes = stages.map((stage) => nodesOf(stage, layer, direction).length);
    return h("a", { href: address({ direction, node: "" }), role: "tab", "aria-selected": String(direction === state.direction), class: !sizes[0] && !sizes[1] && "empty" },
      direction, h("small", null, ` ${sizes[0]} → ${sizes[1]}`));
  });
  const whole = h("label", { class: "whole" }, h("input", { type: "checkbox", checked: state.whole === "1", onchange: (e) => go({ whole: e.target.checked ? "1" : "" }) }),
    "show casts and reshapes");
  const zoom = h("span", { class: "zoom" }, h("button", { type: "button", "aria-label": "Smaller", onclick: () => rescale(1 / 1.25) }, "−"),
    h("button", { type: "button", "aria-label": "Larger", onclick: () => rescale(1.25) }, "+"),
    h("button", { type: "button", onclick: () => rescale(0) }, "Fit"));
  return h("section", { class: "layer" },
    h("header", null, h("h1", null, state.layer), h("p", null, [kindOf(layer), sources.length && sources.join() !== state.layer && `of source node ${sources.join("; ")}`].filter(Boolean).join(", "))),
    h("div", { class: "bar" }, h("div", { class: "tabs", role: "tablist", "aria-label": "Direction" }, tabs), h("span", { class: "tools" }, whole, zoom)),
    h("div", { class: "panes" }, panes.map((p) => p.element)),
    legend(panes), pathTable(stages, layer), details);
}

function pane(stage, other, layer, side) {
  const graph = graphOf(nodesOf(stage, layer, state.direction), state.whole === "1");
  const made = { stage, other, side, ...graph, itemOf: new Map() };
  for (const item of graph.items) for (const node of item.nodes) made.itemOf.set(node, item);
  const status = (node) => (stage === other || counterpart(node, other) ? "" : standIn(node, other) ? "≈" : side === "a" ? "−" : "+");
  made.svg = graph.items.some((item) => item.kind === "node") && svgOf(graph, status, {
    enter: (item) => highlight(made, item), leave: () => highlight(null), choose: (item) => choose(item),
  });
  if (made.svg) {
    made.svg.addEventListener("keydown", (event) => walk(made, event));
    made.items.find((item) => item.kind === "node").drawn.setAttribute("tabindex", 0);
  }
  const options = STAGES.map((s) => h("option", { value: s.number, selected: s === stage }, s.name));
  const select = h("select", { id: `stage-${side}`, "aria-label": `Stage ${side.toUpperCase()}`, onchange: (e) => go({ [side]: e.target.value, node: "" }) }, options);
  const hidden = graph.hidden ? `; hidden: ${graph.hidden} ${graph.hidden === 1 ? "cast or reshape" : "casts and reshapes"}` : "";
  const nodes = nodesOf(stage, layer, state.direction).length;
  made.element = h("figure", { class: "pane" }, h("figcaption", null, select, h("span", null, `${count(nodes, "node")}${hidden}`)),
    h("div", { class: "canvas" }, made.svg || h("p", { class: "nothing" }, `${stage.name} has nothing here.`)));
  return made;
}

const SCALES = { least: 0.4, fit: 0.72, greatest: 2 }; // fit: below that texts are too small to read

/** Make both drawings larger or smaller by a factor; 0: to the width of their panes. */
function rescale(factor) {
  for (const { svg, element } of panes) {
    if (!svg) continue;
    const room = element.querySelector(".canvas").clientWidth / svg.size.width;
    const wanted = factor ? svg.factor * factor : Math.max(SCALES.fit, Math.min(1, room));
    scale(svg, Math.min(SCALES.greatest, Math.max(SCALES.least, wanted)));
  }
}

/** What `item` touches, and its counterparts; nothing for null. */
function highlight(where, item) {
  for (const p of panes) for (const drawn of p.svg ? p.svg.querySelectorAll(".hot, .near") : []) drawn.classList.remove("hot", "near");
  if (!where) return;
  item.drawn.classList.add("hot");
  const number = where.items.indexOf(item);
  for (const edge of where.edges) if (edge.from === number || edge.to === number) edge.drawn.classList.add("near");
  const there = panes.find((p) => p !== where);
  for (const node of item.nodes) {
    const twin = counterpart(node, there.stage) || standIn(node, there.stage);
    const drawn = (nodes) => nodes.map((n) => there.itemOf.get(n)?.drawn).filter(Boolean);
    if (twin) for (const box of drawn([twin])) box.classList.add("hot");
    else for (const box of drawn(replacements(node, there.stage))) box.classList.add("near");
  }
}

function choose(item) {
  if (item.kind === "node") return select(item.node);
  const { node } = item;
  if (node.place) return select(node.place === "input" ? item.tensor.users.find((user) => !user.place) : node.operands[0].maker);
  return go(toNode(node));
}

/** Arrow keys: to what is read, to what reads, to the neighbours. */
function walk(where, event) {
  const item = where.items.find((i) => i.drawn === document.activeElement);
  if (!item) return;
  const number = where.items.indexOf(item);
  const [ups, downs] = [where.edges.filter((e) => e.to === number).map((e) => e.from), where.edges.filter((e) => e.from === number).map((e) => e.to)];
  const row = where.items.map((_, i) => i).filter((i) => where.items[i].rank === item.rank).sort((i, j) => where.items[i].x - where.items[j].x);
  const next = { ArrowUp: ups[0], ArrowDown: downs[0], ArrowLeft: row[row.indexOf(number) - 1], ArrowRight: row[row.indexOf(number) + 1] }[event.key];
  if (next !== undefined) {
    event.preventDefault();
    item.drawn.setAttribute("tabindex", -1);
    where.items[next].drawn.setAttribute("tabindex", 0);
    where.items[next].drawn.focus();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose(item);
  }
}

function legend(shown) {
  const families = new Map();
  for (const p of shown) {
    for (const node of p.items.flatMap((item) => item.nodes)) {
      if (!node.path) continue;
      const family = familyOf(node.path);
      if (!families.has(family)) families.set(family, new Set());
      families.get(family).add(node.isQuantizer ? symbolOf(node.path) : "");
    }
  }
  const word = (family) => (FAMILIES.find(([name]) => name === family) || [0, "other"])[1];
  return h("p", { class: "legend" }, [...families].map(([family, symbols]) => h("span", null, h("i", { "data-family": family }), word(family),
    h("small", null, [...symbols].filter(Boolean).sort().join(" ")))),
    h("span", null, h("b", null, "+"), "inserted"), h("span", null, h("b", null, "−"), "gone"), h("span", null, h("b", null, "≈"), "replaced, one for one"),
    h("span", null, h("i", { class: "dash" }), "scalar, such as an exponent"));
}

// -- data paths of the layer ----------------------------------------------------------------------------------------------

function pathTable([a, b], layer) {
  const rows = rowsOf(a, b, layer, state.direction);
  if (!rows.length) return "";
  const body = rows.map((row) => h("tr", null,
    h("th", { scope: "row" }, chip(row.path), h("span", null, meaningOf(row.path) || row.path)),
    side(row.a), side(row.b),
    h("td", null, change(row)),
    h("td", null, row.passes.map((words) => h("div", null, words))),
    h("td", null, goesTo(row))));
  return h("div", { class: "scroll" }, h("table", { class: "paths" }, h("caption", null, "Data paths of this layer"), h("thead", null, h("tr", null,
    ["data path", a.name, b.name, "nodes", "made by", "goes to"].map((title) => h("th", { scope: "col" }, title)))), h("tbody", null, body)));
}

function side(nodes) {
  const formats = [...new Set(nodes.filter((n) => n.isQuantizer).map((n) => formatInWords(n.format)))];
  const dtypes = [...new Set(nodes.flatMap((n) => n.results.map((r) => r.type.split(" ")[0])))];
  const ops = new Map();
  for (const { op } of nodes) ops.set(op, (ops.get(op) || 0) + 1);
  const list = [...ops].map(([op, n]) => (n > 1 ? `${n} ${op}` : op)).join(", ");
  return h("td", null, nodes.length ? [h("div", { class: "format" }, formats.join(", ") || dtypes.join(", ")), h("small", null, list)] : "–");
}

function change(row) {
  const [gone, inserted] = [row.a.length - row.kept, row.b.length - row.kept];
  return [["kept", row.kept], ["gone", gone], ["inserted", inserted]].filter(([, n]) => n > 0).map(([word, n]) => h("div", null, `${n} ${word}`));
}

const MOST = 6; // readers that are listed

function goesTo(row) {
  const links = [...row.readers].map(([label, user]) => h("div", null, nodeLink(user, label)));
  const rest = links.splice(MOST);
  return rest.length ? [...links, h("details", null, h("summary", null, `${rest.length} more`), rest)] : links;
}

// -- details --------------------------------------------------------------------------------------------------------------

const details = h("section", { class: "details", "aria-label": "Details", hidden: true });

/** Show the details of a node beside those of its counterpart, and keep it in the address. */
function select(node) {
  if (!node) return;
  state.node = node.name;
  history.replaceState(null, "", address({}));
  const here = panes.find((p) => p.stage === node.stage) || panes[0];
  showDetails(node, here);
}

function showDetails(node, here) {
  const there = panes.find((p) => p !== here);
  const substitute = standIn(node, there.stage);
  const twin = counterpart(node, there.stage) || substitute;
  const [a, b] = here.side === "a" ? [node, twin] : [twin, node];
  for (const p of panes) for (const drawn of p.svg ? p.svg.querySelectorAll(".chosen") : []) drawn.classList.remove("chosen");
  const show = (p, n) => {
    const item = n && p.itemOf.get(n);
    if (!item || !item.drawn) return;
    item.drawn.classList.add("chosen");
    bringIntoView(p.element.querySelector(".canvas"), item);
  };
  const rows = FACTS.map(([title, fact]) => {
    const cells = [a, b].map((n) => (n ? [fact(n)].flat() : []));
    if (!cells[0].length && !cells[1].length) return null;
    const differs = a && b && String(plain(cells[0])) !== String(plain(cells[1]));
    return h("tr", { class: differs && "differs" }, h("th", { scope: "row" }, title), cells.map((cell) => h("td", null, cell.map((part) => h("div", null, part)))));
  });
  const head = (p, n) => h("th", { scope: "col" }, h("span", { class: "stage" }, p.stage.name, substitute && p === there && (p.side === "a" ? ", replaced" : ", in its place")), n ? n.name || n.op : why(node, p));
  details.replaceChildren(h("button", { class: "close", type: "button", "aria-label": "Close the details (Escape)", onclick: closeDetails }, "×"),
    h("table", null, h("thead", null, h("tr", null, h("td"), head(panes[0], a), head(panes[1], b))), h("tbody", null, rows)));
  details.hidden = false;
  document.body.classList.add("with-details");
  show(panes[0], a);
  show(panes[1], b);
}

const plain = (parts) => parts.map((part) => (part instanceof Node ? part.textContent : part));

/** What a pane says of a node of the other one that corresponds to nothing here. */
function why(node, p) {
  const others = replacements(node, p.stage);
  const links = others.slice(0, MOST).map((other) => h("div", null, nodeLink(other), ` ${other.op}`));
  const isNew = p.side === "a";
  return h("span", { class: "instead" }, isNew ? `inserted by ${passesInWords(node.passes) || "hand"}` : "gone",
    others.length > 0 && (isNew ? ", in the place of" : "; in its place:"), links, others.length > MOST && `and ${others.length - MOST} more`);
}

const FACTS = [
  ["operator", (n) => (n.op ? [n.op] : [])],
  ["data path", (n) => (n.path ? [h("span", null, chip(n.path), ` ${n.path}: ${meaningOf(n.path) || "no quantizer stands on it"}, ${n.direction}`)] : [])],
  ["format", (n) => (n.format ? [`${formatInWords(n.format)}, ${n.bits} bits${n.format.endsWith("run-time") ? ", e found at run time" : ""}`] : [])],
  ["result", (n) => n.results.map((r) => `${r.type || "of no declared type"}  ${r.name}`)],
  ["made by", (n) => (n.passes ? [passesInWords(n.passes)] : [])],
  ["source node", (n) => (n.source ? [n.source] : [])],
  ["reads", (n) => n.operands.map((t) => (t === null ? "nothing" : t.isConstant ? `constant ${t.value || t.type}${t.value ? `, ${t.type}` : ""}` : nodeLink(t.maker, t.name)))],
  ["read by", (n) => [...new Set(n.results.flatMap((r) => r.users))].map((user) => nodeLink(user))],
  ["attributes", (n) => (n.attributes.length ? [n.attributes.join("; ")] : [])],
];

function closeDetails() {
  details.hidden = true;
  document.body.classList.remove("with-details");
  state.node = "";
  history.replaceState(null, "", address({}));
  for (const drawn of document.querySelectorAll(".chosen")) drawn.classList.remove("chosen");
}

/** Scroll the canvas, not the page. */
function bringIntoView(canvas, item) {
  const { factor } = item.drawn.ownerSVGElement;
  canvas.scrollTo({ left: item.x * factor - canvas.clientWidth / 2, top: item.y * factor - canvas.clientHeight / 2 });
}

// -- the whole ------------------------------------------------------------------------------------------------------------

const THEMES = { auto: "as the system", light: "light", dark: "dark" };
let theme = "auto";

function themeSwitch() {
  return h("label", { class: "theme" }, "Theme ", h("select", { id: "theme", onchange: (e) => {
    theme = e.target.value;
    document.documentElement.dataset.theme = theme;
  } }, Object.entries(THEMES).map(([value, label]) => h("option", { value, selected: value === theme }, label))));
}

function render() {
  readAddress();
  const focused = document.activeElement && document.activeElement.id;
  const scrolled = listed.scrollTop;
  details.hidden = true;
  document.body.classList.remove("with-details");
  const tab = (view, label) => h("a", { href: address({ view }), "aria-current": state.view === view && "page" }, label);
  const header = h("header", { class: "top" }, h("h1", null, DATA.title), h("nav", null, tab("pipeline", "Pipeline"), tab("layers", "Layers")), themeSwitch());
  document.body.replaceChildren(header, state.view === "pipeline" ? pipelineView() : layersView());
  if (state.view !== "layers") return;
  rescale(0);
  for (const p of panes) center(p);
  listed.scrollTop = scrolled;
  listed.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  const node = state.node && [panes[1], panes[0]].map((p) => p.stage.find(state.node)).find(Boolean);
  if (node) showDetails(node, panes.find((p) => p.stage === node.stage));
  if (focused) document.getElementById(focused)?.focus();
}

/** Start in the middle of what is wider than its pane. */
function center(p) {
  const canvas = p.element.querySelector(".canvas");
  canvas.scrollLeft = (canvas.scrollWidth - canvas.clientWidth) / 2;
}

document.addEventListener("keydown", (event) => {
  const isTyping = /INPUT|SELECT/.test(event.target.tagName || "");
  if (event.key === "/" && !isTyping && state.view === "layers") (event.preventDefault(), document.getElementById("search").focus());
  if (event.key === "Escape" && !details.hidden) closeDetails();
});
window.addEventListener("hashchange", render);
render();

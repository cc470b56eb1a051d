// A layer in two stages: their graphs side by side, and below them what became of each data path.

let panes = []; // {stage, side, items, edges, itemOf: node -> item, svg, element}

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
    return h(
      "a",
      {
        href: address({ direction, node: "" }),
        role: "tab",
        "aria-selected": String(direction === state.direction),
        class: !sizes[0] && !sizes[1] && "empty",
      },
      direction,
      h("small", null, ` ${sizes[0]} → ${sizes[1]}`),
    );
  });
  const whole = h(
    "label",
    { class: "whole" },
    h("input", {
      type: "checkbox",
      checked: state.whole === "1",
      onchange: (e) => go({ whole: e.target.checked ? "1" : "" }),
    }),
    "show casts and reshapes",
  );
  const zoom = h(
    "span",
    { class: "zoom" },
    h("button", { type: "button", "aria-label": "Smaller", onclick: () => rescale(1 / 1.25) }, "−"),
    h("button", { type: "button", "aria-label": "Larger", onclick: () => rescale(1.25) }, "+"),
    h("button", { type: "button", onclick: () => rescale(0) }, "Fit"),
  );
  return h(
    "section",
    { class: "layer" },
    h(
      "header",
      null,
      h("h1", null, state.layer),
      h(
        "p",
        null,
        [kindOf(layer), sources.length && sources.join() !== state.layer && `of source node ${sources.join("; ")}`]
          .filter(Boolean)
          .join(", "),
      ),
    ),
    h(
      "div",
      { class: "bar" },
      h("div", { class: "tabs", role: "tablist", "aria-label": "Direction" }, tabs),
      h("span", { class: "tools" }, whole, zoom),
    ),
    h(
      "div",
      { class: "panes" },
      panes.map((p) => p.element),
    ),
    legend(panes),
    pathTable(stages, layer),
    details,
  );
}

function pane(stage, other, layer, side) {
  const graph = graphOf(nodesOf(stage, layer, state.direction), state.whole === "1");
  const made = { stage, side, ...graph, itemOf: new Map() };
  for (const item of graph.items) for (const node of item.nodes) made.itemOf.set(node, item);
  const status = (node) =>
    stage === other || counterpart(node, other) ? "" : standIn(node, other) ? "≈" : side === "a" ? "−" : "+";
  made.svg =
    graph.items.some((item) => item.kind === "node") &&
    svgOf(graph, status, {
      enter: (item) => highlight(made, item),
      leave: () => highlight(null),
      choose,
    });
  if (made.svg) {
    made.svg.addEventListener("keydown", (event) => walk(made, event));
    made.items.find((item) => item.kind === "node").drawn.setAttribute("tabindex", 0);
  }
  const options = STAGES.map((s) => h("option", { value: s.number, selected: s === stage }, s.name));
  const select = h(
    "select",
    {
      id: `stage-${side}`,
      "aria-label": `Stage ${side.toUpperCase()}`,
      onchange: (e) => go({ [side]: e.target.value, node: "" }),
    },
    options,
  );
  const hidden = graph.hidden
    ? `; hidden: ${graph.hidden} ${graph.hidden === 1 ? "cast or reshape" : "casts and reshapes"}`
    : "";
  const nodes = nodesOf(stage, layer, state.direction).length;
  made.element = h(
    "figure",
    { class: "pane" },
    h("figcaption", null, select, h("span", null, `${count(nodes, "node")}${hidden}`)),
    h("div", { class: "canvas" }, made.svg || h("p", { class: "nothing" }, `${stage.name} has nothing here.`)),
  );
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
  for (const p of panes)
    for (const drawn of p.svg ? p.svg.querySelectorAll(".hot, .near") : []) drawn.classList.remove("hot", "near");
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

/** Details of what is drawn here, inputs and outputs included; another layer or direction is gone to. */
function choose(item) {
  if (item.kind === "node" || item.node.place) select(item.node);
  else go(toNode(item.node));
}

/** Arrow keys: to what is read, to what reads, to the neighbours. */
function walk(where, event) {
  const item = where.items.find((i) => i.drawn === document.activeElement);
  if (!item) return;
  const number = where.items.indexOf(item);
  const [ups, downs] = [
    where.edges.filter((e) => e.to === number).map((e) => e.from),
    where.edges.filter((e) => e.from === number).map((e) => e.to),
  ];
  const row = where.items
    .map((_, i) => i)
    .filter((i) => where.items[i].rank === item.rank)
    .sort((i, j) => where.items[i].x - where.items[j].x);
  const next = {
    ArrowUp: ups[0],
    ArrowDown: downs[0],
    ArrowLeft: row[row.indexOf(number) - 1],
    ArrowRight: row[row.indexOf(number) + 1],
  }[event.key];
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
  return h(
    "p",
    { class: "legend" },
    [...families].map(([family, symbols]) =>
      h(
        "span",
        null,
        h("i", { "data-family": family }),
        word(family),
        h("small", null, [...symbols].filter(Boolean).sort().join(" ")),
      ),
    ),
    h("span", null, h("b", null, "+"), "inserted"),
    h("span", null, h("b", null, "−"), "gone"),
    h("span", null, h("b", null, "≈"), "replaced, one for one"),
    h("span", null, h("i", { class: "dash" }), "scalar, such as an exponent"),
  );
}

// -- data paths ----------------------------------------------------------------------------------------------------------

function pathTable([a, b], layer) {
  const rows = rowsOf(a, b, layer, state.direction);
  if (!rows.length) return "";
  const body = rows.map((row) =>
    h(
      "tr",
      null,
      h("th", { scope: "row" }, chip(row.path), h("span", null, meaningOf(row.path) || row.path)),
      side(row.a),
      side(row.b),
      h("td", null, change(row)),
      h(
        "td",
        null,
        row.passes.map((words) => h("div", null, words)),
      ),
      h("td", null, goesTo(row)),
    ),
  );
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "paths" },
      h("caption", null, "Data paths of this layer"),
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          ["data path", a.name, b.name, "nodes", "made by", "goes to"].map((title) => h("th", { scope: "col" }, title)),
        ),
      ),
      h("tbody", null, body),
    ),
  );
}

function side(nodes) {
  const formats = [...new Set(nodes.filter((n) => n.isQuantizer).map((n) => formatInWords(n.format)))];
  const dtypes = [...new Set(nodes.flatMap((n) => n.results.map((r) => r.type.split(" ")[0])))];
  const ops = new Map();
  for (const { op } of nodes) ops.set(op, (ops.get(op) || 0) + 1);
  const list = [...ops].map(([op, n]) => (n > 1 ? `${n} ${op}` : op)).join(", ");
  return h(
    "td",
    null,
    nodes.length
      ? [h("div", { class: "format" }, formats.join(", ") || dtypes.join(", ")), h("small", null, list)]
      : "–",
  );
}

function change(row) {
  const [gone, inserted] = [row.a.length - row.kept, row.b.length - row.kept];
  return [
    ["kept", row.kept],
    ["gone", gone],
    ["inserted", inserted],
  ]
    .filter(([, n]) => n > 0)
    .map(([word, n]) => h("div", null, `${n} ${word}`));
}

const MOST = 6; // readers that are listed

function goesTo(row) {
  const links = [...row.readers].map(([label, user]) => h("div", null, nodeLink(user, label)));
  const rest = links.splice(MOST);
  return rest.length ? [...links, h("details", null, h("summary", null, `${rest.length} more`), rest)] : links;
}

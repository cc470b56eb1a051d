// The list of layers, with search and filters.

const listed = h("ul", { class: "layers", onkeydown: stepThroughList });
const tally = h("p", { class: "tally", role: "status" });

function sidebar() {
  const shown = [STAGES[state.a], STAGES[state.b]];
  const nodes = shown.flatMap((stage) => stage.nodes).filter((node) => !node.place);
  const unique = (values) => [...new Set(values)].filter(Boolean).sort();
  const choose = (key, title, values, label = (v) => v) =>
    h(
      "label",
      null,
      h("span", null, title),
      h(
        "select",
        { id: `filter-${key}`, onchange: (e) => ((filters[key] = e.target.value), fillList()) },
        h("option", { value: "" }, "any"),
        values.map((value) => h("option", { value, selected: filters[key] === value }, label(value))),
      ),
    );
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search layers and nodes  /",
    "aria-label": "Search layers and nodes",
    value: filters.search,
    oninput: (e) => ((filters.search = e.target.value), fillList()),
  });
  search.addEventListener("keydown", (e) => {
    if (e.key === "ArrowDown") (e.preventDefault(), listed.querySelector("a")?.focus());
  });
  fillList();
  return h(
    "aside",
    null,
    search,
    h(
      "div",
      { class: "filters" },
      choose(
        "path",
        "data path",
        unique(nodes.map((n) => n.path)),
        (path) => `${path}  ${symbolOf(path) === path ? "" : symbolOf(path)}`,
      ),
      choose("pass", "pass", unique(nodes.flatMap((n) => n.passes.split(",")))),
      choose("op", "operator", unique(nodes.map((n) => n.op))),
    ),
    tally,
    listed,
  );
}

/** Layers with a node, in one of the two stages, that meets all filters. */
function chosenLayers() {
  const words = filters.search.toLowerCase().split(/\s+/).filter(Boolean);
  const meets = (node) =>
    (!filters.op || node.op === filters.op) &&
    (!filters.path || node.path === filters.path) &&
    (!filters.pass || node.passes.split(",").includes(filters.pass));
  return DATA.order.filter((layer) => {
    const nodes = [STAGES[state.a], STAGES[state.b]].flatMap((stage) => stage.of(layer)).filter(meets);
    const name = DATA.layers[layer].toLowerCase();
    return (
      nodes.length &&
      words.every((word) => name.includes(word) || nodes.some((node) => node.name.toLowerCase().includes(word)))
    );
  });
}

function fillList() {
  const layers = chosenLayers();
  tally.textContent = `${layers.length} of ${count(DATA.order.length, "layer")}`;
  listed.replaceChildren(
    ...layers.map((layer) => {
      const name = DATA.layers[layer];
      const direction = filters.path ? DATA.paths[filters.path][2] : state.direction;
      return h(
        "li",
        null,
        h(
          "a",
          {
            href: address({ view: "layers", layer: name, direction, node: "" }),
            "aria-current": name === state.layer && "true",
          },
          h("span", { class: "name" }, name),
          h("span", { class: "kind" }, kindOf(layer)),
        ),
      );
    }),
  );
}

/** The operator of a layer, where a stage has it as one node. */
function kindOf(layer) {
  const whole = STAGES.map((stage) => stage.of(layer)).find(
    (nodes) => nodes.length === 1 && nodes[0].direction === "forward",
  );
  return whole ? whole[0].op.replace("BatchNormalization", "BN") : "";
}

function stepThroughList(event) {
  const links = [...listed.querySelectorAll("a")];
  const next = links.indexOf(document.activeElement) + { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (Number.isNaN(next)) return;
  event.preventDefault();
  (links[next] || document.getElementById("search")).focus();
}

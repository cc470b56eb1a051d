// What is shown stands in the address (#...), so that links and the browser's back button work.

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
const toNode = (node) => ({
  view: "layers",
  layer: DATA.layers[node.layer],
  direction: node.direction,
  node: node.name,
});
const link = (changes, ...children) => h("a", { href: address(changes) }, ...children);

/** A link to a node; an input or output leads to its first reader or its maker. */
function nodeLink(node, label) {
  const target =
    node.place === "input" ? node.results[0].users.find((u) => !u.place) : node.place ? node.operands[0].maker : node;
  const layer = DATA.layers[node.layer];
  const words = label || (node.place ? `${node.place} ${node.name}` : node.name || node.op);
  return target && !target.place ? link(toNode(target), words) : h("span", null, words || layer);
}

const chip = (path) =>
  h("span", { class: "chip", "data-family": familyOf(path), title: meaningOf(path) }, symbolOf(path) || "none");

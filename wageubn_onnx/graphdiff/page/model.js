// The data of the page, decoded: stages with their nodes, and which node of one stage is which of another.
// collect.py says how it is written.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PLACES = ["", "input", "output"];

/** The text behind a string's number; a tab at its start stands for the layer. */
function text(number, layer) {
  const string = DATA.strings[number];
  if (!string.startsWith("\t")) return string;
  return string.startsWith("\t\t") ? string.slice(1) : layer + string.slice(1);
}

/** A stage; its nodes are decoded when they are first asked for. */
class Stage {
  constructor(raw, number) {
    Object.assign(this, { number, name: raw.name, summary: raw.summary, count: raw.count, quantizers: raw.quantizers });
    Object.assign(this, { dtypes: raw.dtypes, raw });
  }

  /** Inputs, nodes and outputs; makers before readers. */
  get nodes() {
    if (!this.decoded) this.decode();
    return this.decoded;
  }

  decode() {
    const tensors = this.raw.constants.map(([name, type, value]) => ({
      name: DATA.strings[name],
      type: DATA.strings[type],
      value: DATA.strings[value],
      isConstant: true,
      users: [],
    }));
    this.decoded = this.raw.nodes.map(([kind, layer, ...operands], index) => {
      const [place, op, name, path, passes, source, bits, format, attributes, results] = DATA.kinds[kind];
      const owner = DATA.layers[layer];
      const node = { stage: this, index, layer, place: PLACES[place], operands };
      node.op = DATA.strings[op].split(":").pop();
      [node.name, node.path, node.passes, node.source] = [name, path, passes, source].map((n) => text(n, owner));
      [node.bits, node.format] = [bits, format].map((n) => DATA.strings[n]);
      node.direction = node.path ? DATA.paths[node.path][2] : "forward";
      node.isQuantizer = node.format !== "" && !node.place;
      node.attributes = attributes.map((n) => DATA.strings[n]);
      node.results = results.map(([result, type]) => {
        const tensor = { name: text(result, owner), type: DATA.strings[type], maker: node, users: [] };
        tensors.push(tensor);
        return tensor;
      });
      return node;
    });
    for (const node of this.decoded) {
      node.operands = node.operands.map((number) => (number < 0 ? null : tensors[number]));
      for (const tensor of new Set(node.operands)) if (tensor) tensor.users.push(node);
    }
    this.byLayer = new Map();
    for (const node of this.decoded) {
      if (node.place) continue;
      if (!this.byLayer.has(node.layer)) this.byLayer.set(node.layer, []);
      this.byLayer.get(node.layer).push(node);
    }
  }

  /** The nodes of a layer. */
  of(layer) {
    return (this.nodes, this.byLayer.get(layer) || []);
  }

  /** The node of a name, else the input or output. */
  find(name) {
    const found = this.nodes.filter((node) => node.name === name);
    return found.find((node) => !node.place) || found[0];
  }
}

const STAGES = DATA.stages.map((raw, number) => new Stage(raw, number));

/** The node of `stage` that corresponds to `node`, through the stages between; null where there is none. */
function counterpart(node, stage) {
  for (const { from, to, map } of route(node.stage.number, stage.number)) {
    const index = map[node.index];
    if (index === undefined || index < 0) return null;
    node = STAGES[to].nodes[index];
  }
  return node;
}

/** Nodes of `stage` on the data path of `node` to which nothing corresponds in the node's own stage. */
function replacements(node, stage) {
  return stage.of(node.layer).filter((other) => other.path === node.path && !counterpart(other, node.stage));
}

const PRODUCT = /^(Conv|MatMul|Gemm)/;

/** What a data path has one of: its quantizer (in float the Identity that keeps its place), its product. */
const dutyOf = (node) =>
  node.isQuantizer || (node.op === "Identity" && node.path) ? "quantizer" : PRODUCT.test(node.op) ? "product" : "";

/** The node of `stage` that does the duty of `node`, to which nothing corresponds; null where several do, or none. */
function standIn(node, stage) {
  const duty = dutyOf(node);
  if (!duty || node.stage === stage || counterpart(node, stage)) return null;
  const others = replacements(node, stage).filter((other) => dutyOf(other) === duty);
  const rivals =
    others.length === 1 ? replacements(others[0], node.stage).filter((other) => dutyOf(other) === duty) : [];
  return rivals.length === 1 ? others[0] : null;
}

const routes = new Map();

/** The steps from one stage to another. Each stage is made of one other, so there is only one way. */
function route(from, to) {
  const key = `${from} ${to}`;
  if (!routes.has(key)) routes.set(key, search(from, to, -1));
  return routes.get(key) || [];
}

function search(from, to, before) {
  if (from === to) return [];
  for (const step of DATA.steps) {
    const next = step.a === from ? step.b : step.b === from ? step.a : before;
    if (next === before || next === from) continue;
    const rest = search(next, to, from);
    if (rest) return [{ from, to: next, map: step.a === from ? step.pairs : inverse(step) }, ...rest];
  }
  return null;
}

function inverse(step) {
  step.inverse ||= step.pairs.reduce((map, b, a) => (b < 0 || (map[b] = a), map), {});
  return step.inverse;
}

const symbolOf = (path) => (path ? DATA.paths[path][0] : "");
const meaningOf = (path) => (path ? DATA.paths[path][1] : "");

/** `quantize-errors,lower-to-integers` as a reader wants it. */
const passesInWords = (passes) => passes.split(",").join(", then ");

/** `int8*2^-7` as a reader wants it; an exponent that is found at run time is e. */
function formatInWords(format) {
  const [dtype, exponent] = format.split("*2^");
  if (exponent === undefined) return format;
  if (exponent === "run-time") return `${dtype} · 2ᵉ`;
  const raised = exponent.replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);
  return `${dtype} · 2${raised}`;
}

const FAMILIES = [
  // of data paths: a colour and a word each; the first that fits
  ["loss", "loss", ["S.t", "S.p", "loss"]],
  ["activation", "activations", ["I", "A", "S"]],
  ["parameter", "parameters", ["W", "bias", "gamma", "beta"]],
  ["product", "products", ["C", "Z"]],
  ["bnback", "BN backward", ["BN.ratio", "BN.A", "BN.K", "BN.B"]],
  ["bn", "BN forward", ["BN."]],
  ["error", "errors", ["E1", "E2", "E."]],
  ["gradient", "gradients", ["G."]],
  ["momentum", "momentum", ["M."]],
  ["update", "updates", ["U.", "lr"]],
];

/** The colour's name for a data path. */
function familyOf(path) {
  const found = FAMILIES.find(([, , members]) =>
    members.some((m) => (m.endsWith(".") ? path.startsWith(m) : path === m)),
  );
  return found ? found[0] : "other";
}

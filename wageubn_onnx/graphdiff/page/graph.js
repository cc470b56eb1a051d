// What to draw of a layer: items (nodes, several like nodes as one, what lies outside) and edges between them.

const PLUMBING = new Set(["Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"]); // they move or widen, no more
const ALIKE = 3; // like nodes that are drawn as one

/** The nodes of a stage's layer in one direction; "all" directions. */
function nodesOf(stage, layer, direction) {
  return stage.of(layer).filter((node) => direction === "all" || node.direction === direction);
}

/**
 * The graph of `nodes`: {items, edges, hidden}. Unless `whole`, casts and the like are left out (`hidden` of them) and their
 * edges joined; what reads the same, does the same and is read by the same is one item. `item.nodes` are those it stands for.
 */
function graphOf(nodes, whole) {
  const inside = new Set(nodes);
  const isHidden = (node) => !whole && PLUMBING.has(node.op) && !node.isQuantizer && node.operands.length > 0;
  const visible = nodes.filter((node) => !isHidden(node));
  if (!visible.length && nodes.length) return graphOf(nodes, true);
  const items = [],
    edges = new Map(),
    itemOf = new Map();
  for (const group of whole ? visible.map((node) => [node]) : alike(visible)) {
    const item = { kind: "node", nodes: group, node: group[0] };
    items.push(item);
    for (const node of group) itemOf.set(node, item);
  }
  /** Through what is hidden, to the tensor that it comes from. */
  const origin = (tensor) => {
    while (tensor && tensor.maker && inside.has(tensor.maker) && !itemOf.has(tensor.maker))
      tensor = tensor.maker.operands[0];
    return tensor;
  };
  const outside = new Map();
  const port = (key, fields) => {
    if (!outside.has(key)) items.push(outside.set(key, { kind: "port", nodes: [], ...fields }).get(key));
    return outside.get(key);
  };
  const connect = (from, to, tensor) => {
    const key = `${items.indexOf(from)} ${items.indexOf(to)}`;
    if (!edges.has(key)) edges.set(key, { from: items.indexOf(from), to: items.indexOf(to), tensors: new Set() });
    edges.get(key).tensors.add(tensor);
  };
  for (const node of visible) {
    for (const operand of node.operands) {
      const tensor = origin(operand);
      if (!tensor || tensor.isConstant) continue;
      const maker = tensor.maker;
      connect(
        itemOf.get(maker) || port(`from ${maker.index}`, { role: "from", node: maker, tensor }),
        itemOf.get(node),
        tensor,
      );
    }
  }
  for (const node of nodes) {
    // what is read outside, also from hidden nodes
    for (const result of node.results) {
      for (const user of result.users) {
        if (inside.has(user)) continue;
        const tensor = origin(result);
        if (!tensor || tensor.isConstant || !itemOf.has(tensor.maker)) continue;
        const key = user.place ? `output ${user.index}` : `to ${user.layer} ${user.direction}`;
        const to = port(key, { role: "to", node: user, tensor, readers: new Set() });
        to.readers.add(user);
        connect(itemOf.get(tensor.maker), to, tensor);
      }
    }
  }
  return { items, edges: [...edges.values()], hidden: nodes.length - visible.length };
}

/** Groups of like nodes, in the order of their first ones. */
function alike(nodes) {
  const groups = new Map();
  for (const node of nodes) {
    const read = node.operands.filter((t) => t && !t.isConstant).map((t) => t.name);
    const readers = node.results.flatMap((result) => result.users.map((user) => user.index));
    const key = JSON.stringify([node.op, node.path, node.passes, read, readers]);
    groups.set(key, [...(groups.get(key) || []), node]);
  }
  return [...groups.values()].flatMap((group) => (group.length < ALIKE ? group.map((node) => [node]) : [group]));
}

/** What is written on an item: the first line in two parts, the second in one. */
function labels(item) {
  const { node } = item;
  if (item.kind === "port") return { title: portLabel(item), more: "", sub: "" };
  const result = (node.results.length ? node.results[0].type : "").replaceAll(", ", ",");
  if (node.isQuantizer) {
    const form = result.startsWith("float") ? `${node.bits} bits` : formatInWords(node.format);
    return { title: symbolOf(node.path), more: form, sub: node.op };
  }
  const isSlot = node.op === "Identity" && node.path;
  return {
    title: item.nodes.length > 1 ? `${item.nodes.length} × ${node.op}` : node.op,
    more: isSlot ? `for ${symbolOf(node.path)}` : "",
    sub: result,
  };
}

function portLabel({ role, node, tensor, readers }) {
  if (node.place === "input") return `input ${tensor.name}`;
  if (node.place === "output") return `output ${node.name}`;
  const layer = DATA.layers[node.layer];
  if (role === "from") return `from ${node.name || tensor.name}`;
  return `to ${layer} ${[...new Set([...readers].map((reader) => reader.path))].sort().join(", ")}`;
}

/** What became of a layer's data paths from stage a to stage b: a row each, those of `direction`. */
function rowsOf(a, b, layer, direction) {
  const rows = new Map();
  for (const [side, stage] of [
    ["a", a],
    ["b", b],
  ]) {
    for (const node of nodesOf(stage, layer, direction)) {
      if (!rows.has(node.path)) rows.set(node.path, { path: node.path, a: [], b: [], kept: 0, readers: new Map() });
      rows.get(node.path)[side].push(node);
    }
  }
  for (const row of rows.values()) {
    const fresh = row.b.filter((node) => !counterpart(node, a) || counterpart(node, a).passes !== node.passes);
    row.kept = row.b.filter((node) => counterpart(node, a)).length;
    row.passes = [...new Set(fresh.map((node) => passesInWords(node.passes)))];
    for (const user of row.b.flatMap((node) => node.results.flatMap((result) => result.users))) {
      if (user.layer === layer && user.path === row.path && !user.place) continue;
      const label = user.place
        ? `output ${user.name}`
        : [user.layer === layer ? "" : DATA.layers[user.layer], user.path].join(" ").trim();
      if (!row.readers.has(label)) row.readers.set(label, user);
    }
  }
  return [...rows.values()];
}

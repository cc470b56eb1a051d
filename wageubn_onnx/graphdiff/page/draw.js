// HTML and SVG elements, and the drawing of a graph. Texts are set as text: nothing from a model is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function element(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null && child !== false && child !== ""));
  return made;
}

const h = (tag, attributes, ...children) => element(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => element(document.createElementNS(SVG, tag), attributes, children);

const LINE = { node: 40, port: 24, padding: 12, widest: 260 };
const ruler = document.createElement("canvas").getContext("2d");

function widthOf(string, font) {
  ruler.font = font;
  return ruler.measureText(string).width;
}

/** The string, or as much of it as fits. */
function fitted(string, font, width) {
  if (widthOf(string, font) <= width) return string;
  let length = string.length;
  while (length && widthOf(`${string.slice(0, length)}…`, font) > width) length--;
  return `${string.slice(0, length)}…`;
}

const FONTS = {
  title: "600 12px system-ui, sans-serif",
  more: "12px system-ui, sans-serif",
  sub: "11px ui-monospace, monospace",
  port: "11px system-ui, sans-serif",
};

/**
 * Draw a graph (graphOf) as SVG. `status(node)` is the mark in an item's corner; `on` has enter, leave and choose, called with
 * (item, event).
 */
function svgOf({ items, edges }, status, on) {
  for (const item of items) {
    const { title, more, sub } = (item.labels = labels(item));
    const first =
      item.kind === "port"
        ? widthOf(title, FONTS.port)
        : widthOf(title, FONTS.title) + widthOf(`  ${more}`, FONTS.more);
    const widths = [first, widthOf(sub, FONTS.sub)];
    item.width = Math.min(LINE.widest, Math.max(64, ...widths) + 2 * LINE.padding);
    item.height = item.kind === "port" ? LINE.port : LINE.node;
  }
  const size = layout(items, edges);
  const lines = edges.map((edge) => (edge.drawn = drawEdge(edge)));
  const boxes = items.map((item) => (item.drawn = drawItem(item, status, on)));
  const title = "Use the arrow keys to go along the edges, Enter for details.";
  const made = s(
    "svg",
    { viewBox: `0 0 ${size.width} ${size.height}`, role: "group", "aria-label": title },
    s("g", { class: "edges" }, lines),
    s("g", null, boxes),
  );
  return Object.assign(made, { size });
}

/** Set the scale of a drawing. */
function scale(svg, factor) {
  svg.factor = factor;
  svg.setAttribute("width", svg.size.width * factor);
  svg.setAttribute("height", svg.size.height * factor);
}

function drawEdge(edge) {
  const [first, ...rest] = edge.points;
  let d = `M${first[0]},${first[1]}V${first[2]}`;
  let [x, , y] = first;
  for (const [nextX, from, to] of rest) {
    const middle = (y + from) / 2;
    d += `C${x},${middle} ${nextX},${middle} ${nextX},${from}V${to}`;
    [x, y] = [nextX, to];
  }
  const tensors = [...edge.tensors];
  const isScalar = tensors.every((tensor) => /\[\]$/.test(tensor.type));
  d += "m-3.5,-6l3.5,6l3.5,-6"; // the tip: every line ends straight downwards
  return s(
    "path",
    { d, class: isScalar ? "edge scalar" : "edge" },
    s("title", null, tensors.map((tensor) => `${tensor.name}: ${tensor.type}`).join("\n")),
  );
}

const MARKS = { "": "", "+": "inserted", "−": "gone", "≈": "replaced" };

function drawItem(item, status, on) {
  const { node, x, y, width, height } = item;
  const { title, more, sub } = item.labels;
  const [left, top] = [x - width / 2, y - height / 2];
  const isPort = item.kind === "port";
  const mark = isPort ? "" : status(node);
  const kind = isPort ? `port ${node.place || "link"}` : node.isQuantizer ? "quantizer" : "plain";
  const words = [title, more, sub, isPort ? "" : `data path ${node.path || "none"}`, MARKS[mark]];
  const room = width - 2 * LINE.padding + 2;
  return s(
    "g",
    {
      class: `item ${kind} ${MARKS[mark]}`,
      "data-family": familyOf(node.path),
      tabindex: -1,
      role: "button",
      "data-name": node.name,
      "aria-label": words.filter(Boolean).join(", "),
      transform: `translate(${left},${top})`,
      onmouseenter: (e) => on.enter(item, e),
      onmouseleave: (e) => on.leave(item, e),
      onclick: (e) => on.choose(item, e),
      onfocus: (e) => on.enter(item, e),
      onblur: (e) => on.leave(item, e),
    },
    s("title", null, isPort ? title : item.nodes.map((n) => n.name).join("\n")),
    item.nodes.length > 1 && s("rect", { class: "behind", x: 4, y: -4, width, height, rx: 6 }),
    s("rect", { class: "box", width, height, rx: isPort ? height / 2 : 6 }),
    !isPort &&
      !node.isQuantizer &&
      s("path", { class: "stripe", d: `M0,6 a6,6 0 0 1 6,-6 V${height} a6,6 0 0 1 -6,-6 z` }),
    isPort
      ? s("text", { x: width / 2, y: height / 2 + 4, class: "line port-text" }, fitted(title, FONTS.port, room))
      : [
          s(
            "text",
            { x: width / 2, y: 17, class: "line title" },
            fitted(title, FONTS.title, room),
            more && s("tspan", { dx: 7 }, more),
          ),
          s("text", { x: width / 2, y: 31, class: "line sub" }, fitted(sub, FONTS.sub, room)),
        ],
    mark &&
      s("g", { class: "mark" }, s("circle", { cx: width - 2, cy: 2, r: 7.5 }), s("text", { x: width - 2, y: 6 }, mark)),
  );
}

// The details of a node beside those of its counterpart.

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
  for (const p of panes)
    for (const drawn of p.svg ? p.svg.querySelectorAll(".chosen") : []) drawn.classList.remove("chosen");
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
    return h(
      "tr",
      { class: differs && "differs" },
      h("th", { scope: "row" }, title),
      cells.map((cell) =>
        h(
          "td",
          null,
          cell.map((part) => h("div", null, part)),
        ),
      ),
    );
  });
  const head = (p, n) =>
    h(
      "th",
      { scope: "col" },
      h(
        "span",
        { class: "stage" },
        p.stage.name,
        substitute && p === there && (p.side === "a" ? ", replaced" : ", in its place"),
      ),
      n ? n.name || n.op : why(node, p),
    );
  details.replaceChildren(
    h(
      "button",
      { class: "close", type: "button", "aria-label": "Close the details (Escape)", onclick: closeDetails },
      "×",
    ),
    h(
      "table",
      null,
      h("thead", null, h("tr", null, h("td"), head(panes[0], a), head(panes[1], b))),
      h("tbody", null, rows),
    ),
  );
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
  return h(
    "span",
    { class: "instead" },
    isNew ? `inserted by ${passesInWords(node.passes) || "hand"}` : "gone",
    others.length > 0 && (isNew ? ", in the place of" : "; in its place:"),
    links,
    others.length > MOST && `and ${others.length - MOST} more`,
  );
}

/** The like nodes that are drawn as one with this. */
const beside = (node) => panes.flatMap((p) => p.itemOf.get(node)?.nodes || []).filter((other) => other !== node);

const FACTS = [
  ["operator", (n) => (n.op ? [n.op] : [])],
  [
    "data path",
    (n) =>
      n.path
        ? [
            h(
              "span",
              null,
              chip(n.path),
              ` ${n.path}: ${meaningOf(n.path) || "no quantizer stands on it"}, ${n.direction}`,
            ),
          ]
        : [],
  ],
  [
    "format",
    (n) =>
      n.format
        ? [`${formatInWords(n.format)}, ${n.bits} bits${n.format.endsWith("run-time") ? ", e found at run time" : ""}`]
        : [],
  ],
  ["result", (n) => n.results.map((r) => `${r.type || "of no declared type"}  ${r.name}`)],
  ["made by", (n) => (n.passes ? [passesInWords(n.passes)] : [])],
  ["source node", (n) => (n.source ? [n.source] : [])],
  [
    "reads",
    (n) =>
      n.operands.map((t) =>
        t === null
          ? "nothing"
          : t.isConstant
            ? `constant ${t.value || t.type}${t.value ? `, ${t.type}` : ""}`
            : nodeLink(t.maker, t.name),
      ),
  ],
  ["read by", (n) => [...new Set(n.results.flatMap((r) => r.users))].map((user) => nodeLink(user))],
  ["drawn as one with", (n) => beside(n).map((other) => nodeLink(other))],
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

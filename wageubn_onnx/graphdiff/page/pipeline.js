// The pipeline: a card for each stage, a table of passes for each step between two.

function pipelineView() {
  const roots = STAGES.filter((stage) => !DATA.steps.some((step) => step.b === stage.number && step.a !== step.b));
  return h(
    "main",
    { class: "pipeline" },
    roots.map((root) => branch(root)),
    DATA.steps.map(passTable),
  );
}

/** A stage, and in a row each what is made of it. */
function branch(stage) {
  const next = DATA.steps.filter((step) => step.a === stage.number && step.b !== step.a).map((step) => STAGES[step.b]);
  return h(
    "div",
    { class: "branch" },
    card(stage),
    next.length > 0 &&
      h(
        "div",
        { class: "next" },
        next.map((other) =>
          h("div", { class: "line" }, h("span", { class: "arrow", "aria-hidden": "true" }), branch(other)),
        ),
      ),
  );
}

function card(stage) {
  const dtypes = Object.entries(stage.dtypes);
  const total = dtypes.reduce((sum, [, n]) => sum + n, 0);
  return h(
    "section",
    { class: "card" },
    h("h2", null, stage.name),
    h("p", null, stage.summary),
    h(
      "dl",
      null,
      h("dt", null, "nodes"),
      h("dd", null, stage.count.toLocaleString("en")),
      h("dt", null, "quantize nodes"),
      h("dd", null, stage.quantizers.toLocaleString("en")),
      h("dt", null, "results"),
      h(
        "dd",
        { class: "dtypes" },
        dtypes.map(([dtype, n]) => [h("span", null, dtype), h("span", null, percent(n / total))]),
      ),
    ),
  );
}

const percent = (share) =>
  share > 0.9995 && share < 1
    ? "> 99.9 %"
    : share >= 0.001
      ? `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`
      : "< 0.1 %";

function passTable(step) {
  const [a, b] = [STAGES[step.a], STAGES[step.b]];
  const kept = step.pairs.filter((index, i) => index >= 0 && !a.raw.nodes[i].place).length;
  const rows = step.passes.map((pass) => {
    const symbols = Object.entries(pass.quantizers);
    const all = symbols.map(([symbol, n]) => `${symbol} ${n}`).join(", ");
    const isIdle = !pass.inserted && !pass.rewritten;
    return h(
      "tr",
      { class: isIdle && "idle" },
      h("th", { scope: "row" }, pass.name),
      h("td", null, pass.summary.replaceAll("`", "")),
      h("td", { class: "number" }, pass.inserted ? pass.inserted.toLocaleString("en") : "–"),
      h("td", { class: "number" }, pass.rewritten ? pass.rewritten.toLocaleString("en") : "–"),
      h(
        "td",
        { title: all },
        symbols.length > 10
          ? `${count(
              symbols.reduce((sum, [, n]) => sum + n, 0),
              "node",
            )} of ${symbols.length} kinds`
          : all || "–",
      ),
      h(
        "td",
        null,
        Object.entries(pass.dtypes)
          .map(([dtype, n]) => `${dtype} ${n}`)
          .join(", ") || "–",
      ),
    );
  });
  const removed = step.removed ? `; ${count(step.removed, "node")} of ${a.name} went` : "";
  return h(
    "section",
    { class: "step" },
    h("h2", null, a.name, h("span", { class: "to" }, " → "), b.name),
    h(
      "p",
      null,
      `${count(a.count, "node")} became ${b.count.toLocaleString("en")}: ${(a.count - step.removed).toLocaleString("en")} have a counterpart${removed}. `,
      link({ view: "layers", a: a.number, b: b.number, node: "" }, "Compare layer by layer"),
    ),
    rows.length > 0 &&
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          null,
          h(
            "thead",
            null,
            h(
              "tr",
              null,
              ["pass", "does", "nodes inserted", "rewritten", "quantize nodes", "dtypes of its results"].map(
                (title, i) => h("th", { scope: "col", class: i === 2 || i === 3 ? "number" : null }, title),
              ),
            ),
          ),
          h("tbody", null, rows),
        ),
      ),
  );
}

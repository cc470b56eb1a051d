// The whole: header, theme, keys; `render` shows what the address says.

const THEMES = { auto: "as the system", light: "light", dark: "dark" };
let theme = "auto";

function themeSwitch() {
  return h(
    "label",
    { class: "theme" },
    "Theme ",
    h(
      "select",
      {
        id: "theme",
        onchange: (e) => {
          theme = e.target.value;
          document.documentElement.dataset.theme = theme;
        },
      },
      Object.entries(THEMES).map(([value, label]) => h("option", { value, selected: value === theme }, label)),
    ),
  );
}

function render() {
  readAddress();
  const focused = document.activeElement && document.activeElement.id;
  const scrolled = listed.scrollTop;
  details.hidden = true;
  document.body.classList.remove("with-details");
  const tab = (view, label) =>
    h("a", { href: address({ view }), "aria-current": state.view === view && "page" }, label);
  const header = h(
    "header",
    { class: "top" },
    h("h1", null, DATA.title),
    h("nav", null, tab("pipeline", "Pipeline"), tab("layers", "Layers")),
    themeSwitch(),
  );
  document.body.replaceChildren(header, state.view === "pipeline" ? pipelineView() : layersView());
  if (state.view !== "layers") return;
  rescale(0);
  for (const p of panes) center(p);
  listed.scrollTop = scrolled;
  listed.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  const node = state.node && [panes[1], panes[0]].map((p) => p.stage.find(state.node)).find(Boolean);
  if (node)
    showDetails(
      node,
      panes.find((p) => p.stage === node.stage),
    );
  if (focused) document.getElementById(focused)?.focus();
}

/** Start in the middle of what is wider than its pane. */
function center(p) {
  const canvas = p.element.querySelector(".canvas");
  canvas.scrollLeft = (canvas.scrollWidth - canvas.clientWidth) / 2;
}

document.addEventListener("keydown", (event) => {
  const isTyping = /INPUT|SELECT/.test(event.target.tagName || "");
  if (event.key === "/" && !isTyping && state.view === "layers")
    (event.preventDefault(), document.getElementById("search").focus());
  if (event.key === "Escape" && !details.hidden) closeDetails();
});
window.addEventListener("hashchange", render);
render();

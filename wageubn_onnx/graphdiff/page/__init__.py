"""The page: models that were aligned, as one HTML file to look at, which needs no network and no other file.

`collect` takes what is shown out of the models, as compact JSON; the files beside it draw that in a browser: `model.js` decodes
it, `graph.js` picks what to draw of a layer, `layout.js` says where, `draw.js` draws; the others are the parts of the page.
"""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files

from wageubn_onnx.graphdiff.page.collect import Collector

GRAPHS = ("model.js", "graph.js", "layout.js", "draw.js")
SCRIPTS = (*GRAPHS, "state.js", "pipeline.js", "layers.js", "pair.js", "details.js", "page.js")


def render(found: Collector, title: str) -> str:
    """The page of what was collected. The same models give the same text.

    Whatever comes from a model is data, never markup: JSON in which no tag can end, which the scripts show as text only.
    """
    folder = files(__package__)
    parts = {
        "title": html.escape(title),
        "style": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "data": json.dumps(found.model(title), separators=(",", ":")).replace("<", "\\u003c"),
        "script": "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    frame = folder.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], frame)


__all__ = ["Collector", "render"]

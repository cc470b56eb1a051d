"""Plots, where matplotlib is installed (extra ``plots``); an SVG of equal data has equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from wageubn_onnx.artifacts.files import write_bytes
from wageubn_onnx.errors import WageubnError

FORMATS = (".svg", ".png")


@contextmanager
def figure(file: Path, width: float = 8.0, height: float = 4.5) -> Iterator[Any]:
    """Yield the axes of a figure of ``width`` x ``height`` inches, and write it to ``file`` when the block ends.

    Raises WageubnError where matplotlib is missing, or ``file`` is neither .svg nor .png.
    """
    if file.suffix not in FORMATS:
        raise WageubnError(f"{file}: cannot plot to {file.suffix or 'a name without suffix'}; give a name in .svg or .png")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise WageubnError(f"{file}: plotting needs matplotlib; pip install 'wageubn-onnx[plots]'") from error
    canvas = FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained"))
    axes = canvas.figure.subplots()
    axes.grid(alpha=0.3)
    yield axes
    content = BytesIO()
    undated = {"Date": None} if file.suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "wageubn"}):
        canvas.figure.savefig(content, format=file.suffix[1:], metadata=undated)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content.getvalue())

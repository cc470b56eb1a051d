"""Q_I: the image on a grid that covers every pixel."""

from __future__ import annotations

from pathlib import Path

from until import after, quantizers

from networks import MEAN, STD
from wageubn_onnx.passes.quantize import inputs


def test_the_grid_is_the_finest_that_holds_every_pixel(tmp_path: Path) -> None:
    g, _ = after(inputs.PASS, tmp_path)
    ((at, node),) = quantizers(g).items()
    greatest = max(max(m, 1 - m) / s for m, s in zip(MEAN, STD, strict=True))
    exponent = node.attrs["exponent"]
    assert at == ("input", "I") and (node.attrs["bits"], node.attrs["lo"], node.attrs["hi"]) == (8, -127, 127)
    assert 127 * 2.0 ** (exponent - 1) < greatest <= 127 * 2.0**exponent
    assert node.inputs[0] is g.named["images"]
    assert not next(n for n in g.graph.nodes if n.op == "Identity" and g.tag(n.outputs[0]).role == "I").outputs[0].outputs

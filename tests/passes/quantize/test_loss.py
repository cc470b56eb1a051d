"""Softmax and loss on grids."""

from __future__ import annotations

import math
from pathlib import Path

from until import after, formats, quantizers

from wageubn_onnx.passes.quantize import loss
from wageubn_onnx.passes.quantize.place import source


def test_softmax_and_loss_have_their_grids(tmp_path: Path) -> None:
    g, _ = after(loss.PASS, tmp_path)
    nodes = quantizers(g, "S.t", "S.p", "loss")
    shown = {role: (n.attrs["exponent"], n.attrs["lo"], n.attrs["hi"]) for (_, role), n in nodes.items()}
    assert shown == {"S.t": (-8, -17 * 2**8, 0), "S.p": (-15, 0, 2**15), "loss": (-16, -(2**30), 2**30)}
    assert formats(g, "loss")["loss", "loss"][1] == 32
    assert source(g.named["loss"]) is nodes["loss", "loss"]
    assert abs(float(nodes["loss", "S.t"].inputs[0].inputs[0].inputs[1].values) - math.log2(math.e)) < 2**-23


def test_exponential_and_logarithm_come_from_tables(tmp_path: Path) -> None:
    g, _ = after(loss.PASS, tmp_path)
    for role, function in (("S.exp", "ExponentialTable"), ("S.log", "LogarithmTable")):
        assert [source(tensor).op for tensor in g.by_role(role) if tensor.outputs] == [function]

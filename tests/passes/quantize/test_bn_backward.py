"""The coefficients of BN's backward."""

from __future__ import annotations

from pathlib import Path

from until import after, formats, quantizers

from wageubn_onnx.passes.quantize import bn_backward


def test_the_coefficients_have_their_formats(tmp_path: Path) -> None:
    """A: gamma/sigma 20 bits below the quotient of the grids, then 13 bits of its own range; K and B on the grid of e*A."""
    g, _ = after(bn_backward.PASS, tmp_path)
    found, nodes = formats(g), quantizers(g)
    layers = {s.layer for s in g.states.values() if s.kind == "gamma"}
    for layer in layers:
        assert found[layer, "BN.ratio"] == ("DirectQuantize", 29, -(2**28) + 1, 2**28 - 1)
        assert found[layer, "BN.A"] == ("ShiftQuantize", 13, -4095, 4095)
        assert found[layer, "BN.K"] == found[layer, "BN.B"] == ("GridQuantize", 20, -(2**19), 2**19)
        gamma, sigma, ratio = (nodes[layer, role].attrs["exponent"] for role in ("gamma", "BN.sigma", "BN.ratio"))
        assert ratio == gamma - sigma - 20
        assert nodes[layer, "BN.A"].attrs["unit"] == 2.0**-11  # a bit of room
        assert nodes[layer, "BN.A"].inputs[0] is nodes[layer, "BN.ratio"].outputs[0]
        step = nodes[layer, "BN.K"].inputs[1]
        assert step is nodes[layer, "BN.B"].inputs[1]
        made = step.inputs[0]
        assert made.op == "Mul" and made.inputs[1] is nodes[layer, "BN.A"].outputs[1]
        assert made.inputs[0].inputs[0].attrs["role"] == "E1"

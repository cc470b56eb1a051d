"""Q_Mom on the coefficient, Q_Acc on accumulators."""

from __future__ import annotations

from pathlib import Path

from until import after, formats, quantizers

from wageubn_onnx.passes.quantize import momentum


def test_every_accumulator_is_stored_on_its_grid(tmp_path: Path) -> None:
    g, _ = after(momentum.PASS, tmp_path)
    forms = {
        "W": ("DirectQuantize", 8, -127, 127),
        **dict.fromkeys(("gamma", "beta", "bias"), ("DirectQuantize", 15, -16383, 16383)),
    }
    expected = {(s.layer, f"M.{s.kind}"): forms[s.kind] for s in g.states.values() if s.kind in forms}
    nodes = quantizers(g, *(f"M.{kind}" for kind in forms))
    assert formats(g, *(f"M.{kind}" for kind in forms)) == expected
    for state in (s for s in g.states.values() if s.kind == "momentum"):
        node = nodes[state.layer, f"M.{state.info['parameter']}"]
        assert state.after is node.outputs[0]
        assert (state.info["exponent"], state.info["limit"]) == (-12, node.attrs["hi"])


def test_the_coefficient_is_the_profile_s(tmp_path: Path) -> None:
    g, _ = after(momentum.PASS, tmp_path, momentum=0.9)
    (node,) = quantizers(g, "M.coefficient").values()
    assert (node.attrs["bits"], node.attrs["exponent"]) == (3, -2)
    assert float(node.inputs[0].inputs[0].inputs[0].values) == 0.75

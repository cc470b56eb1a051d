"""Q_lr on the learning rate, Q_U on stored parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from until import after, quantizers

from networks import tiny
from wageubn_onnx.passes.quantize import updates


def test_every_parameter_is_stored_on_its_grid_within_its_bound(tmp_path: Path) -> None:
    g, _ = after(updates.PASS, tmp_path)
    states = {(s.layer, f"U.{s.kind}"): s for s in g.states.values() if s.kind in ("W", "gamma", "beta", "bias")}
    nodes = quantizers(g, *(f"U.{kind}" for kind in ("W", "gamma", "beta", "bias")))
    assert set(nodes) == set(states)
    for at, state in states.items():
        attrs = nodes[at].attrs
        assert state.after is nodes[at].outputs[0]
        assert (attrs["exponent"], -attrs["lo"], attrs["hi"]) == (
            state.info["exponent"],
            state.info["limit"],
            state.info["limit"],
        )


def test_a_weight_on_its_own_exponent_moves_in_its_own_units(tmp_path: Path) -> None:
    def doubled() -> onnx.ModelProto:  # so that its greatest weight is above 1
        model = tiny()
        (weight,) = (t for t in model.graph.initializer if t.name == "fc.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(4), weight.name))
        return model

    g, _ = after(updates.PASS, tmp_path, doubled)
    state = g.states["fc.weight"]
    assert state.info["scale_log2"] == -2
    moved = quantizers(g, "U.W")["fc", "U.W"].inputs[0].inputs[0].inputs[1].inputs[0]
    assert (moved.op, float(moved.inputs[1].values)) == ("Mul", 4.0)


def test_the_rate_has_12_bits(tmp_path: Path) -> None:
    g, _ = after(updates.PASS, tmp_path)
    (node,) = quantizers(g, "lr").values()
    assert (node.attrs["bits"], node.attrs["exponent"], node.attrs["hi"]) == (12, -9, 2047)

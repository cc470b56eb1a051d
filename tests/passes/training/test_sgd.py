"""Momentum SGD with weight decay."""

from __future__ import annotations

import numpy as np
import pytest

from networks import run_ort
from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, next_states, to_proto
from wageubn_onnx.passes.training import sgd


@pytest.mark.parametrize(("kind", "decayed"), [("W", True), ("gamma", False), ("bias", False)])
def test_a_step_by_hand(kind: str, decayed: bool) -> None:
    """Powers of two: exact in float32. a = 0.5 * 8 + (2 + decay * 4), w' = 4 - 0.25 a."""
    g = Model.empty("fp_training", "case")
    state = g.state("w", kind, "layer", np.float32([4]))
    g.gradients["w"] = g.op("Identity", g.input("gradient", np.float32, [1]))
    sgd.PASS(g, Config(momentum=0.5, weight_decay=0.125))
    assert g.states["w.momentum"].info["parameter"] == kind and state.after is not None
    feeds = {"w": [4], "gradient": [2], "w.momentum": [8], "lr": 0.25}
    found = run_ort(to_proto(g, next_states(g)), {name: np.asarray(value, np.float32) for name, value in feeds.items()})
    gradient = 2.5 if decayed else 2.0
    assert found["w.momentum.next"] == 4 + gradient
    assert found["w.next"] == 4 - 0.25 * (4 + gradient)

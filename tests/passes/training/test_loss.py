"""Softmax cross-entropy, its error and the count of right answers."""

from __future__ import annotations

import numpy as np

from networks import run_ort
from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, to_proto
from wageubn_onnx.passes.training import loss


def test_loss_error_and_count_of_known_logits() -> None:
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8."""
    g = Model.empty("fp_training", "case")
    g.named["logits"] = g.op("Identity", g.input("z", np.float32, [2, 3]))
    loss.PASS(g, Config())
    z = np.log(np.float32([[1, 2, 5], [5, 1, 2]]))
    feeds = {"z": z + np.float32([[0], [300]]), "labels": np.int32([1, 0])}  # a great offset changes nothing
    found = run_ort(to_proto(g, {name: g.named[name] for name in ("loss", "correct", "dlogits")}), feeds)
    exact = -(np.log(2 / 8) + np.log(5 / 8)) / 2
    assert abs(found["loss"] - exact) < 1e-4  # 300 leaves 2^-15 to the logits
    assert found["correct"] == 1
    np.testing.assert_allclose(found["dlogits"] * 16, [[1, -6, 5], [-3, 1, 2]], atol=1e-3)

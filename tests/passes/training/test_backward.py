"""Gradients of the trained parameters, and of no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from until import after

from networks import CLASSES, Net, images, labels, run_ort
from wageubn_onnx.graph import to_proto
from wageubn_onnx.passes.training import backward


def test_the_gradients_of_a_dense_layer(tmp_path: Path) -> None:
    """dW = dlogits^T x and db = the sum of dlogits."""

    def network() -> onnx.ModelProto:
        n = Net()
        x = n.node("Flatten", n.node("GlobalAveragePool", n.relu(n.conv("x", "c", 3, 4)), name="gap"), name="flatten")
        return n.model(n.gemm(x, 4, CLASSES))

    g, _ = after(backward.PASS, tmp_path, network)
    assert set(g.gradients) == {"c.weight", "fc.weight", "fc.bias"}
    x = next(node.inputs[0] for node in g.graph.nodes if g.tag(node.outputs[0]).layer == "fc" and node.op == "MatMul")
    looked = {"x": x, "e": g.named["dlogits"], "w": g.gradients["fc.weight"], "b": g.gradients["fc.bias"]}
    feeds = {key: state.value for key, state in g.states.items()} | {"images": images(normalised=True), "labels": labels()}
    proto = to_proto(g, looked)
    found = run_ort(proto, {i.name: feeds[i.name] for i in proto.graph.input})
    np.testing.assert_allclose(found["w"], found["e"].T @ found["x"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["b"], found["e"].sum(0), rtol=1e-5, atol=1e-7)


def test_what_is_frozen_has_none(tmp_path: Path) -> None:
    g, _ = after(backward.PASS, tmp_path, train_last=1)
    assert set(g.gradients) == {"fc.weight", "fc.bias"}
    for key, gradient in g.gradients.items():
        assert list(gradient.shape) == list(g.states[key].value.shape)

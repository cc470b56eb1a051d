"""A refusal names what the user's file has, and a remedy that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from sources import WIDTH, head, imported, save, stem

from networks import CLASSES, Net
from wageubn_onnx.errors import UnsupportedOperator, WageubnError


def inside(kind: str, **attrs: float) -> Callable[[Net], str]:
    return lambda n: head(n, n.node(kind, stem(n), name="odd", **attrs))


def clip(low: float, high: float) -> Callable[[Net], str]:
    return lambda n: head(n, n.node("Clip", stem(n), n.tensor("low", low), n.tensor("high", high), name="odd"))


def swish(n: Net) -> str:
    x = stem(n)
    return head(n, n.node("Mul", x, n.node("Sigmoid", x, name="odd")))


def hard_swish(n: Net) -> str:
    """x * Clip(x + 3, 0, 6) / 6, as older exporters write it."""
    x = n.bn(n.conv("x", "conv", 3, WIDTH), "bn", WIDTH)
    gate = n.node("Clip", n.node("Add", x, n.tensor("three", 3.0)), n.tensor("low", 0.0), n.tensor("high", 6.0), name="odd")
    return head(n, n.node("Div", n.node("Mul", x, gate), n.tensor("six", 6.0)))


def best_two(n: Net, softmax: bool = True) -> str:
    z = head(n, stem(n))
    best = n.node("TopK", n.node("Softmax", z) if softmax else z, n.tensor("k", [2], np.int64), name="odd")
    n.nodes[-1].output.append("indices")
    return best


def quantized(n: Net) -> str:
    grid = n.tensor("s", 0.1), n.tensor("zero", 0, np.uint8)
    return head(n, n.node("DequantizeLinear", n.node("QuantizeLinear", stem(n), *grid, name="odd"), *grid))


def edge_before_convolution(n: Net) -> str:
    x = n.node("Pad", stem(n), n.tensor("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64), name="odd", mode="edge")
    return head(n, n.relu(n.bn(n.conv(x, "second", WIDTH, WIDTH, pads=[0] * 4), "bn2", WIDTH)))


def loop(n: Net) -> str:
    x = stem(n)
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["go"], ["go_on"]), onnx.helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", T.INT64, []),
            onnx.helper.make_tensor_value_info("go", T.BOOL, []),
            onnx.helper.make_tensor_value_info("v", T.FLOAT, None),
        ],
        [onnx.helper.make_tensor_value_info("go_on", T.BOOL, []), onnx.helper.make_tensor_value_info("w", T.FLOAT, None)],
    )
    times, yes = n.tensor("times", 2**62, np.int64), n.tensor("yes", True, np.bool_)
    return head(n, n.node("Loop", times, yes, x, name="odd", body=body))


REMEDIES: dict[str, tuple[Callable[[Net], str], tuple[str, ...]]] = {
    "ReLU6": (clip(0, 6), ("operator Clip", "Clip(0, 6) (ReLU6", "nn.ReLU")),
    "another Clip": (clip(-1, 1), ("operator Clip", "Clip(-1, 1)", "nn.ReLU")),
    "LeakyRelu": (inside("LeakyRelu", alpha=0.1), ("operator LeakyRelu", "only ReLU")),
    "HardSwish": (inside("HardSwish"), ("operator HardSwish", "only ReLU")),
    "HardSwish taken apart": (hard_swish, ("operator Clip", "ReLU6, or a part of HardSwish")),
    "Swish taken apart": (swish, ("operator Sigmoid", "only ReLU")),
    "TopK beside a Softmax": (best_two, ("operator TopK", "after the logits 'fc.out'", "extract_model")),
    "TopK": (lambda n: best_two(n, softmax=False), ("operator TopK", "after the logits 'fc.out'")),
    "a quantized network": (quantized, ("operator QuantizeLinear", "quantized already", "float network")),
    "edges before a convolution": (edge_before_convolution, ("Pad with mode 'edge'", "before a MaxPool", "pad with zeros")),
    "a loop": (loop, ("operator Loop", "control flow")),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_fits(name: str, tmp_path: Path) -> None:
    build, words = REMEDIES[name]
    n = Net()
    with pytest.raises(UnsupportedOperator) as caught:
        imported(save(n.model(build(n)), tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for word in ("'odd'", *words):
        assert word in message, message


def test_a_node_that_does_the_work_of_several_has_all_their_names(tmp_path: Path) -> None:
    """A factor that a convolution has taken over, and that its weights cannot hold."""
    n = Net()
    x = n.node("Mul", n.conv("x", "conv", 3, WIDTH), n.tensor("huge", np.full((WIDTH, 1, 1), 3e38)), name="scale")
    x = n.node("Mul", x, n.tensor("more", 1e9), name="scale_again")
    with pytest.raises(WageubnError) as caught:
        imported(save(n.model(head(n, n.relu(n.bn(x, "bn", WIDTH)))), tmp_path))
    assert str(caught.value).startswith(
        "nodes 'conv', 'scale', 'scale_again' (Conv, Mul): its W 'conv.weight' comes to NaN or beyond 2^60"
    )


@pytest.mark.parametrize("name", ["", "same"])
def test_equal_names_are_told_apart_by_results(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, by onnxruntime or by onnx-graphsurgeon, and the network is read."""
    n = Net()
    x = n.node("Relu", n.bn(n.conv("x", "conv", 3, WIDTH), "bn", WIDTH))
    sizes = n.node("Concat", n.tensor("rows", [-1], np.int64), n.tensor("columns", [WIDTH], np.int64), axis=0)
    flat = n.node("Reshape", n.node("GlobalAveragePool", x), sizes)
    model = n.model(n.gemm(flat, WIDTH, CLASSES), listed=True)  # which onnxruntime warns of
    for node in model.graph.node:
        node.name = name
    forward = imported(save(model, tmp_path))
    assert [node.op_type for node in forward.graph.node if node.op_type in ("Conv", "Gemm")] == ["Conv", "Gemm"]
    assert capfd.readouterr() == ("", "")
    model.graph.node[2].op_type = "Tanh"
    with pytest.raises(UnsupportedOperator, match=f"'{model.graph.node[2].output[0]}': operator Tanh"):
        imported(save(model, tmp_path))

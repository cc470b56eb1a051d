"""The dialects of the exporters: each becomes the one spelling of `forward`, and computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from sources import MAP, WIDTH, assert_same_function, head, imported, kinds, save, stem

from networks import CLASSES, Net, images, run_ort
from wageubn_onnx.errors import WageubnError

STEM = ["Conv", "BatchNormalization", "Relu"]
PLAIN = [*STEM, "GlobalAveragePool", "Flatten", "Gemm"]


def to_shape(n: Net, x: str, *shape: int) -> str:
    return n.node("Reshape", x, n.tensor("shape", shape, np.int64))


def pooled(n: Net) -> str:
    return n.node("GlobalAveragePool", stem(n))


def shape_chain(n: Net) -> str:
    """PyTorch's x.view(x.size(0), -1): Shape, Gather, Unsqueeze, Concat, Reshape (opset 9)."""
    x = pooled(n)
    rows = n.node("Gather", n.node("Shape", x), n.tensor("zero", 0, np.int64), axis=0)
    target = n.node("Concat", n.node("Unsqueeze", rows, axes=[0]), n.tensor("rest", [-1], np.int64), axis=0)
    return n.gemm(n.node("Reshape", x, target), WIDTH, CLASSES)


def whole_map(n: Net) -> str:
    """Flatten without a pool: the dense layer sees every pixel."""
    return n.gemm(n.node("Flatten", stem(n)), WIDTH * MAP * MAP, CLASSES)


def matmul_head(n: Net, bias: bool, turned: bool = False) -> str:
    product = n.node("MatMul", n.node("Flatten", pooled(n)), n.uniform("kernel", -1, 1, WIDTH, CLASSES), name="dense")
    if not bias:
        return product
    operands = [product, n.uniform("offset", -1, 1, CLASSES)]
    return n.node("Add", *(reversed(operands) if turned else operands), name="dense_bias")


def gemm_head(n: Net, **attrs: Any) -> str:
    shape = (CLASSES, WIDTH) if attrs.get("transB") else (WIDTH, CLASSES)
    operands = [n.uniform("kernel", -1, 1, *shape), n.uniform("offset", -1, 1, CLASSES)]
    return n.node("Gemm", n.node("Flatten", pooled(n)), *operands, name="dense", **attrs)


def chains(n: Net) -> str:
    """Identity and Dropout wherever they may be."""
    x = n.node("Identity", n.node("Identity", "x"))
    x = n.bn(n.node("Identity", n.conv(x, "conv", 3, WIDTH, strides=[2, 2])), "bn", WIDTH)
    x = n.node("Dropout", n.node("Identity", n.node("Dropout", n.relu(x))))
    return n.node("Identity", n.node("Identity", head(n, x)))


def named_output(n: Net) -> str:
    """A trailing Dropout after a trailing Softmax."""
    return n.node("Dropout", n.node("Softmax", head(n, stem(n)), axis=1))


def auto_pad(n: Net, kind: str, strides: int, kernel: int = 3) -> str:
    weight = n.uniform("conv.weight", -0.4, 0.4, WIDTH, 3, kernel, kernel)
    x = n.node("Conv", "x", weight, name="conv", auto_pad=kind, kernel_shape=[kernel] * 2, strides=[strides] * 2)
    x = n.relu(n.bn(x, "bn", WIDTH))
    return head(n, n.node("MaxPool", x, name="pool", auto_pad=kind, kernel_shape=[2, 2], strides=[2, 2]))


def constant_nodes(n: Net) -> str:
    """Weights in Constant nodes, as TensorFlow's converter leaves them."""
    logits = head(n, stem(n))
    for tensor in n.tensors:
        n.nodes.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], tensor.name, value=tensor))
    n.tensors = []
    return logits


def taken_apart_gemm(n: Net) -> str:
    """alpha x W + b, as OpenVINO has it."""
    scaled = n.node("Mul", matmul_head(n, bias=False), n.tensor("alpha", [[0.5]]))
    return n.node("Add", scaled, n.uniform("offset", -1, 1, CLASSES))


def gemm_then(n: Net, kind: str, *shape: int, **attrs: Any) -> str:
    """A Gemm, and a Mul or Add of a constant."""
    return n.node(kind, n.uniform("c", 0.5, 2, *shape), gemm_head(n, **attrs))


def picked(n: Net, x: str, axis: int) -> str:
    """The first row, or column, and so without its axis."""
    return n.node("Gather", x, n.tensor(f"first{axis}", 0, np.int64), axis=axis)


def shared_bias(n: Net) -> str:
    bias = n.uniform("bias", -1, 1, WIDTH)
    x = n.node("Conv", "x", n.uniform("w1", -0.4, 0.4, WIDTH, 3, 3, 3), bias, strides=[2, 2])
    x = n.relu(n.bn(x, "bn1", WIDTH))
    x = n.node("Conv", x, n.uniform("w2", -0.4, 0.4, WIDTH, WIDTH, 3, 3), bias)
    return head(n, n.relu(n.bn(x, "bn2", WIDTH)))


def bare_attributes(n: Net) -> str:
    """Everything optional left out: no kernel_shape, strides, pads, dilations, names."""
    x = n.node("Conv", "x", n.uniform("w", -0.4, 0.4, WIDTH, 3, 3, 3))
    logits = head(n, n.relu(n.bn(x, "bn", WIDTH)))
    for node in n.nodes:
        node.name = ""
    return logits


# name: (opset, builder of the logits, expected operators)
DIALECTS: dict[str, tuple[int, Callable[[Net], str], list[str]]] = {
    "reshape to -1, features": (18, lambda n: n.gemm(to_shape(n, pooled(n), -1, WIDTH), WIDTH, CLASSES), PLAIN),
    "reshape to 0, -1": (18, lambda n: n.gemm(to_shape(n, pooled(n), 0, -1), WIDTH, CLASSES), PLAIN),
    "reshape to 0, features": (18, lambda n: n.gemm(to_shape(n, pooled(n), 0, WIDTH), WIDTH, CLASSES), PLAIN),
    "shape, gather, concat, reshape": (9, shape_chain, PLAIN),
    "squeeze by attribute": (11, lambda n: n.gemm(n.node("Squeeze", pooled(n), axes=[2, 3]), WIDTH, CLASSES), PLAIN),
    "squeeze by operand": (
        18, lambda n: n.gemm(n.node("Squeeze", pooled(n), n.tensor("axes", [2, 3], np.int64)), WIDTH, CLASSES), PLAIN,
    ),
    "flatten of a whole map": (18, whole_map, [*STEM, "Flatten", "Gemm"]),
    "flatten with a negative axis": (18, lambda n: n.gemm(n.node("Flatten", pooled(n), axis=-3), WIDTH, CLASSES), PLAIN),
    "matmul": (18, lambda n: matmul_head(n, bias=False), PLAIN),
    "matmul and add": (18, lambda n: matmul_head(n, bias=True), PLAIN),
    "add and matmul": (18, lambda n: matmul_head(n, bias=True, turned=True), PLAIN),
    "gemm, transB 0": (18, lambda n: gemm_head(n, transB=0), PLAIN),
    "gemm, transB 1": (18, lambda n: gemm_head(n, transB=1), PLAIN),
    "gemm, alpha and beta": (18, lambda n: gemm_head(n, alpha=2.0, beta=0.5), PLAIN),
    "gemm, alpha and beta, transB": (18, lambda n: gemm_head(n, alpha=0.5, beta=2.0, transB=1), PLAIN),
    "gemm, alpha, and a factor a class": (18, lambda n: gemm_then(n, "Mul", 1, CLASSES, alpha=0.5, beta=3.0), PLAIN),
    "gemm and one factor": (18, lambda n: gemm_then(n, "Mul", transB=1), PLAIN),
    "gemm and an offset a class": (18, lambda n: gemm_then(n, "Add", CLASSES, beta=0.5), PLAIN),
    "gemm without bias and an offset": (
        18, lambda n: n.node("Add", matmul_head(n, bias=False), n.uniform("one", 1, 2, 1, 1)), PLAIN,
    ),
    "gather the only row and column": (
        18, lambda n: n.gemm(picked(n, picked(n, pooled(n), 3), 2), WIDTH, CLASSES), PLAIN,
    ),
    "identities and dropouts": (12, chains, PLAIN),
    "reduce mean, axes as attribute": (
        13, lambda n: n.gemm(n.node("Flatten", n.node("ReduceMean", stem(n), axes=[2, 3])), WIDTH, CLASSES), PLAIN,
    ),
    "reduce mean, negative axes": (
        13, lambda n: n.gemm(n.node("Flatten", n.node("ReduceMean", stem(n), axes=[-1, -2])), WIDTH, CLASSES), PLAIN,
    ),
    "reduce mean, axes as operand": (
        18, lambda n: n.gemm(n.node("Flatten", n.node("ReduceMean", stem(n), n.tensor("a", [2, 3], np.int64))), WIDTH, CLASSES),
        PLAIN,
    ),
    "reduce mean, dropping axes": (
        11, lambda n: n.gemm(n.node("ReduceMean", stem(n), axes=[2, 3], keepdims=0), WIDTH, CLASSES), PLAIN,
    ),
    "reduce mean, dropping axes by operand": (
        18, lambda n: n.gemm(n.node("ReduceMean", stem(n), n.tensor("a", [2, 3], np.int64), keepdims=0), WIDTH, CLASSES), PLAIN,
    ),
    "average pool of the whole map": (
        11, lambda n: n.gemm(n.node("Flatten", n.node("AveragePool", stem(n), kernel_shape=[MAP, MAP])), WIDTH, CLASSES), PLAIN,
    ),
    "average pool of the whole map, padded for nothing": (
        11,
        lambda n: n.gemm(
            n.node("Flatten", n.node("AveragePool", stem(n), kernel_shape=[MAP, MAP], pads=[0] * 4, strides=[MAP, MAP])),
            WIDTH, CLASSES,
        ),
        PLAIN,
    ),
    "auto_pad SAME_UPPER, stride 2": (18, lambda n: auto_pad(n, "SAME_UPPER", 2), [*STEM, "MaxPool", *PLAIN[3:]]),
    "auto_pad SAME_LOWER, stride 2": (18, lambda n: auto_pad(n, "SAME_LOWER", 2), [*STEM, "MaxPool", *PLAIN[3:]]),
    "auto_pad SAME_UPPER, 1x1 stride 2": (18, lambda n: auto_pad(n, "SAME_UPPER", 2, 1), [*STEM, "MaxPool", *PLAIN[3:]]),
    "auto_pad VALID": (18, lambda n: auto_pad(n, "VALID", 1), [*STEM, "MaxPool", *PLAIN[3:]]),
    "matmul, mul and add": (18, taken_apart_gemm, PLAIN),
    "one bias for two convolutions": (18, shared_bias, [*STEM, *STEM, *PLAIN[3:]]),
    "weights in Constant nodes": (13, constant_nodes, PLAIN),
    "attributes and names left out": (18, bare_attributes, PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_computes_what_it_did(name: str, tmp_path: Path) -> None:
    opset, build, expected = DIALECTS[name]
    n = Net(seed=len(name))
    model = n.model(build(n), opset=opset)
    forward = assert_same_function(model, tmp_path, images(4, seed=1, normalised=True))
    assert [kind for kind in kinds(forward) if kind != "Identity"] == expected


@pytest.mark.parametrize("name", ["reshape to -1, features", "shape, gather, concat, reshape", "matmul and add"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_becomes_any(name: str, batch: int, tmp_path: Path) -> None:
    """A file exported for one image (here with that batch in its inferred shapes) takes five."""
    opset, build, _ = DIALECTS[name]
    n = Net()
    fixed = onnx.shape_inference.infer_shapes(n.model(build(n), shape=(batch, CLASSES), opset=opset, batch=batch))
    x = images(2 * batch, normalised=True)
    forward = imported(save(fixed, tmp_path))
    halves = [run_ort(fixed, {"x": half}) for half in (x[:batch], x[batch:])]
    expected = np.concatenate([next(iter(half.values())) for half in halves])
    assert abs(run_ort(forward, {"images": x})["logits"] - expected).max() < 1e-5


def test_a_trailing_softmax_is_left_to_the_loss(tmp_path: Path) -> None:
    """It is monotonic, and cross-entropy applies it again: softmax(`forward`) is what the source computes."""
    n = Net()
    model = n.model(named_output(n), opset=13)
    forward = imported(save(model, tmp_path))
    assert [k for k in kinds(forward) if k != "Identity"] == PLAIN
    x = images(4, normalised=True)
    (expected,) = run_ort(model, {"x": x}).values()
    logits = run_ort(forward, {"images": x})["logits"].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert abs(powers / powers.sum(axis=1, keepdims=True) - expected).max() < 1e-6


@pytest.mark.parametrize("with_maximum", [True, False])
def test_a_softmax_taken_apart(with_maximum: bool, tmp_path: Path) -> None:
    n = Net()
    z = head(n, stem(n))
    last = n.tensor("last", [1], np.int64)
    shifted = n.node("Sub", z, n.node("ReduceMax", z, last)) if with_maximum else z
    powers = n.node("Exp", shifted)
    model = n.model(n.node("Div", powers, n.node("ReduceSum", powers, last)))
    assert [k for k in kinds(imported(save(model, tmp_path))) if k != "Identity"] == PLAIN


def test_several_outputs_of_the_same_logits(tmp_path: Path) -> None:
    """Probabilities and the answer, as TensorFlow's exports have them."""
    n = Net()
    z = head(n, stem(n))
    answer = n.node("Cast", n.node("ArgMax", z, axis=1, keepdims=0), to=T.INT32)
    model = n.model(n.node("Softmax", z))
    model.graph.output.append(onnx.helper.make_tensor_value_info(answer, T.INT32, ["N"]))
    assert [k for k in kinds(imported(save(model, tmp_path))) if k != "Identity"] == PLAIN


@pytest.mark.parametrize("opset", [9, 18])
def test_initializers_may_be_inputs_too(opset: int, tmp_path: Path) -> None:
    n = Net()
    model = n.model(head(n, stem(n)), opset=opset, listed=True)
    assert len(model.graph.input) > 1
    forward = assert_same_function(model, tmp_path, images(2, normalised=True))
    assert [i.name for i in forward.graph.input if i.name not in {t.name for t in forward.graph.initializer}] == ["images"]


def refused(model: onnx.ModelProto, folder: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        imported(save(model, folder))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_an_input_that_is_no_image_is_refused(tmp_path: Path) -> None:
    n = Net()
    model = n.model(n.gemm("x", 4, CLASSES), dims=(4,))
    refused(model, tmp_path, "input 'x' is float32", "[N, C, H, W]")


def test_an_integer_image_is_refused(tmp_path: Path) -> None:
    n = Net()
    logits = head(n, stem(n))
    model = n.model(logits)
    model.graph.input[0].type.tensor_type.elem_type = T.UINT8
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["cast"], "cast", to=T.FLOAT))
    model.graph.node[1].input[0] = "cast"
    refused(model, tmp_path, "input 'x' is uint8")


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    n = Net()
    model = n.model(n.node("Add", head(n, stem(n)), "prior"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("prior", T.FLOAT, ["N", CLASSES]))
    refused(model, tmp_path, "must have one input", "'x', 'prior'")


def test_a_gather_of_one_of_several_is_no_reshape(tmp_path: Path) -> None:
    n = Net()
    x = n.node("Gather", stem(n), n.tensor("third", [2], np.int64), axis=2, name="row")
    x = n.node("Gather", x, n.tensor("fourth", [3], np.int64), axis=3)
    refused(n.model(n.gemm(n.node("Flatten", x), WIDTH, CLASSES)), tmp_path, "Gather", "row")


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_computed_bias_is_refused(alpha: float, tmp_path: Path) -> None:
    n = Net()
    x = n.node("Flatten", pooled(n))
    bias = n.node("Relu", n.node("MatMul", x, n.uniform("kernel", -1, 1, WIDTH, CLASSES)))
    y = n.node("Gemm", x, n.uniform("weight", -1, 1, CLASSES, WIDTH), bias, name="dense", transB=1, alpha=alpha)
    refused(n.model(y), tmp_path, "dense")


@pytest.mark.parametrize("shape", [(CLASSES, 1), (1, 1, CLASSES)])
def test_an_offset_that_makes_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    n = Net()
    y = n.node("Add", gemm_head(n), n.uniform("c", 0.5, 2, *shape), name="offset")
    refused(n.model(y, shape=("M", CLASSES), batch=CLASSES), tmp_path, "offset")


@pytest.mark.parametrize(("kind", "attrs"), [("Softmax", {"axis": 0}), ("LogSoftmax", {"axis": 0}), ("ArgMax", {"keepdims": 0})])
def test_a_softmax_over_the_batch_is_no_softmax_over_classes(kind: str, attrs: dict[str, int], tmp_path: Path) -> None:
    n = Net()
    model = n.model(n.node(kind, head(n, stem(n)), name="last", **attrs), shape=("M",) if kind == "ArgMax" else ("M", CLASSES))
    if kind == "ArgMax":
        model.graph.output[0].type.tensor_type.elem_type = T.INT64
    refused(model, tmp_path, kind, "last")


def test_one_constant_for_two_parameters_of_a_bn_becomes_two(tmp_path: Path) -> None:
    """gamma and the variance of an untrained layer are both ones: exporters store them once."""
    n = Net()
    x = n.conv("x", "conv", 3, WIDTH, strides=[2, 2])
    ones, zeros = n.tensor("ones", np.ones(WIDTH)), n.tensor("zeros", np.zeros(WIDTH))
    x = n.relu(n.node("BatchNormalization", x, ones, zeros, zeros, ones, name="bn"))
    forward = assert_same_function(n.model(head(n, x)), tmp_path, images(2, normalised=True))
    (bn,) = (node for node in forward.graph.node if node.op_type == "BatchNormalization")
    assert len(set(bn.input)) == 5

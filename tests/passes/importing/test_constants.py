"""Weights are weights however they are stored: `forward` computes what onnxruntime does with the file as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from sources import WIDTH, assert_same_function, head, imported, operators, parameters, save

from networks import CLASSES, Array, Net, images, run_ort
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.importing.constants import SMALL

PLAIN = ["Conv", "BatchNormalization", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
KERNEL = 11  # so that the weights are no small ones


def wide(n: Net, weight: str) -> str:
    x = n.node("Conv", "x", weight, name="wide", pads=[KERNEL // 2] * 4, strides=[2, 2])
    return head(n, n.relu(n.bn(x, "bn", WIDTH)))


def drawn(n: Net) -> Array:
    return n.random.uniform(-0.1, 0.1, (WIDTH, 3, KERNEL, KERNEL)).astype(np.float32)


def cast(n: Net, dtype: Any) -> str:
    return n.node("Cast", n.tensor("stored", drawn(n), dtype), to=T.FLOAT)


def whole_numbers(n: Net, dtype: Any, shift: int) -> str:
    """(q - shift) * scale, one scale a filter."""
    q = n.tensor("q", np.round(drawn(n) * 1000) + shift, dtype)
    centred = n.node("Sub", n.node("Cast", q, to=T.FLOAT), n.tensor("shift", float(shift)))
    return n.node("Mul", centred, n.uniform("scale", 5e-4, 2e-3, WIDTH, 1, 1, 1))


def dequantized(n: Net, dtype: Any, zero: int, axis: int | None) -> str:
    filters = () if axis is None else (WIDTH,)
    q = n.tensor("q", np.round(drawn(n) * 1000) + zero, dtype)
    operands = [q, n.uniform("scale", 5e-4, 2e-3, *filters), n.tensor("zero", np.full(filters, zero), dtype)]
    return n.node("DequantizeLinear", *operands, **({} if axis is None else {"axis": axis}))


def turned(n: Net) -> str:
    """Stored with its channels last, in two halves, and laid out by Reshape."""
    halves = np.split(drawn(n).transpose(0, 2, 3, 1), 2)
    parts = [n.tensor(f"half{i}", half.reshape(-1)) for i, half in enumerate(halves)]
    shape = n.tensor("shape", [WIDTH, KERNEL, KERNEL, 3], np.int64)
    return n.node("Transpose", n.node("Reshape", n.node("Concat", *parts, axis=0), shape), perm=[0, 3, 1, 2])


def standardized(n: Net) -> str:
    """(w - mean w) / std w of each filter: weight standardization, which is no matter in inference."""
    w, axes = n.tensor("raw", drawn(n)), n.tensor("axes", [1, 2, 3], np.int64)
    centred = n.node("Sub", w, n.node("ReduceMean", w, axes))
    variance = n.node("ReduceMean", n.node("Mul", centred, centred), axes)
    return n.node("Div", centred, n.node("Mul", n.node("Sqrt", variance), n.tensor("fan", 30.0)))


STORED: dict[str, Callable[[Net], str]] = {
    "float16 behind Cast": lambda n: cast(n, np.float16),
    "float64 behind Cast": lambda n: cast(n, np.float64),
    "int8 behind Cast, Sub and Mul": lambda n: whole_numbers(n, np.int8, 0),
    "uint8 behind Cast, Sub and Mul": lambda n: whole_numbers(n, np.uint8, 128),
    "int8 behind DequantizeLinear": lambda n: dequantized(n, np.int8, 3, None),
    "uint8 behind DequantizeLinear, a channel each": lambda n: dequantized(n, np.uint8, 120, 0),
    "float16 behind two Casts": lambda n: n.node("Cast", n.node("Cast", cast(n, np.float16), to=T.DOUBLE), to=T.FLOAT),
    "in halves, transposed": turned,
    "standardized": standardized,
}


@pytest.mark.parametrize("name", STORED)
def test_stored_otherwise(name: str, tmp_path: Path) -> None:
    n = Net(seed=len(name))
    forward = assert_same_function(n.model(wide(n, STORED[name](n))), tmp_path, images(3, normalised=True))
    assert operators(forward) == PLAIN
    (weight,) = (value for value in parameters(forward).values() if value.ndim == 4)
    assert weight.size > SMALL
    assert weight.dtype == np.float32


@pytest.mark.parametrize("small", [True, False])
def test_bfloat16(small: bool, tmp_path: Path) -> None:
    """onnxruntime widens it likewise; small weights stay in the file when it is read, large ones do not."""
    bfloat16 = h.tensor_dtype_to_np_dtype(T.BFLOAT16)
    n = Net()
    kernel = 3 if small else KERNEL
    w = n.random.uniform(-0.3, 0.3, (WIDTH, 3, kernel, kernel)).astype(bfloat16)
    n.tensors.append(numpy_helper.from_array(w, "stored"))
    weight = n.node("Transpose", n.node("Cast", n.node("Transpose", "stored", perm=[1, 0, 2, 3]), to=T.FLOAT), perm=[1, 0, 2, 3])
    forward = imported(save(n.model(wide(n, weight)), tmp_path))
    (found,) = (value for value in parameters(forward).values() if value.ndim == 4)
    np.testing.assert_array_equal(found, w.astype(np.float32))


def sparse(value: Array, linear: bool, name: str = "stored") -> onnx.SparseTensorProto:
    places = np.flatnonzero(value) if linear else np.argwhere(value)
    return h.make_sparse_tensor(
        numpy_helper.from_array(value[value != 0], name), numpy_helper.from_array(places.astype(np.int64), "places"), value.shape
    )


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("as_node", [True, False])
def test_sparse(linear: bool, as_node: bool, tmp_path: Path) -> None:
    n = Net()
    value = drawn(n)
    value[abs(value) < 0.05] = 0
    logits = wide(n, "stored")
    dense, model = n.model(logits), n.model(logits)
    dense.graph.initializer.append(numpy_helper.from_array(value, "stored"))
    if as_node:
        model.graph.node.insert(0, h.make_node("Constant", [], ["stored"], sparse_value=sparse(value, linear, "")))
    else:
        model.graph.sparse_initializer.append(sparse(value, linear))
    x = images(3, normalised=True)
    found = run_ort(imported(save(model, tmp_path)), {"images": x})["logits"]
    assert abs(found - run_ort(dense, {"x": x})[logits]).max() < 1e-5


def refused(model: onnx.ModelProto, folder: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        imported(save(model, folder))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def with_sparse(tensor: onnx.SparseTensorProto) -> onnx.ModelProto:
    n = Net()
    model = n.model(wide(n, "stored"))
    model.graph.sparse_initializer.append(tensor)
    return model


def test_sparse_values_outside_of_their_tensor(tmp_path: Path) -> None:
    tensor = sparse(np.ones((WIDTH, 3, KERNEL, KERNEL), np.float32), linear=True)
    tensor.dims[0] = WIDTH - 1
    refused(with_sparse(tensor), tmp_path, "sparse tensor 'stored' [3, 3, 11, 11]", "do not fit")


def test_a_sparse_tensor_that_claims_terabytes(tmp_path: Path) -> None:
    tensor = sparse(np.ones((1, 3), np.float32), linear=True)
    tensor.dims[0] = 2**40
    refused(with_sparse(tensor), tmp_path, "sparse tensor 'stored'", "no weight's")


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile"])
def test_a_constant_that_claims_terabytes(kind: str, tmp_path: Path) -> None:
    """Refused before any memory is asked for."""
    n = Net()
    size = n.tensor("size", [2**20, 3, 2**10, 2**10], np.int64)
    weight = n.node(kind, *([] if kind == "ConstantOfShape" else [n.tensor("one", np.ones((1, 1, 1, 1)))]), size, name="bomb")
    refused(n.model(wide(n, weight)), tmp_path, "'bomb'", kind, "bytes")


def test_a_row_that_claims_gigabytes(tmp_path: Path) -> None:
    """onnx's propagation of shapes' values would list each of its elements."""
    n = Net()
    weight = n.node(
        "Reshape", n.node("ConstantOfShape", n.tensor("size", [2**31], np.int64), name="bomb"), n.tensor("s", [0], np.int64)
    )
    refused(n.model(wide(n, weight)), tmp_path, "'bomb'", "8,589,934,592 bytes")


def test_random_weights_are_no_constants(tmp_path: Path) -> None:
    n = Net()
    refused(n.model(wide(n, n.node("RandomNormal", shape=[WIDTH, 3, 3, 3], name="dice"))), tmp_path, "computed, not stored")


def test_a_constant_that_comes_to_infinity(tmp_path: Path) -> None:
    n = Net()
    weight = n.node("Div", n.tensor("w", drawn(n)), n.tensor("zero", 0.0))
    refused(n.model(wide(n, weight)), tmp_path, "'wide'", "NaN or beyond 2^60")


def test_a_constant_branch(tmp_path: Path) -> None:
    """PyTorch's squeeze: an If on a size, which is known here."""
    n = Net()
    x = n.node("GlobalAveragePool", n.relu(n.bn(n.conv("x", "conv", 3, WIDTH), "bn", WIDTH)))
    rows = n.node("Gather", n.node("Shape", x), n.tensor("second", 2, np.int64))
    one = n.node("Equal", rows, n.tensor("one", 1, np.int64))
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    flat = h.make_graph(
        [h.make_node("Squeeze", [x, "axes"], ["flat"])], "flat", [], [h.make_tensor_value_info("flat", T.FLOAT, None)], [axes]
    )
    same = h.make_graph([h.make_node("Identity", [x], ["same"])], "same", [], [h.make_tensor_value_info("same", T.FLOAT, None)])
    logits = n.gemm(n.node("If", one, then_branch=flat, else_branch=same), WIDTH, CLASSES)
    assert operators(assert_same_function(n.model(logits), tmp_path, images(3, normalised=True))) == PLAIN


# -- what is computed in another precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "name"), [(T.FLOAT16, "float16"), (T.BFLOAT16, "bfloat16"), (T.DOUBLE, "float64")])
def test_a_network_under_autocast(to: int, name: str, tmp_path: Path) -> None:
    """Its input and output are float32, and so are its BNs."""
    n = Net()
    x = n.node("Cast", "x", to=to, name="into_half")
    x = n.node("Conv", x, n.node("Cast", n.uniform("w", -1, 1, WIDTH, 3, 3, 3), to=to), name="conv")
    x = n.relu(n.bn(n.node("Cast", x, to=T.FLOAT), "bn", WIDTH))
    refused(n.model(head(n, x)), tmp_path, "'into_half'", name, "float32 alone", "model.float()", "autocast")

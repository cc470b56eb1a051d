"""What a single node is to compute, in numpy: to ask whether a runtime's kernel did.

Products, and onnxruntime's own operators (its ContribOperators.md), are written out here, sums in int64; a requantization is
``q = saturate(round_half_even(float32(sum) * scale) + zero point)``. The rest is left to onnx's ReferenceEvaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.graph import OPSET
from wageubn_onnx.onnxir.nodes import MICROSOFT, attributes

Array = np.ndarray[Any, Any]
Attributes = Mapping[str, Any]


def computed(node: onnx.NodeProto, operands: Mapping[str, Array]) -> list[Array]:
    """The results of ``node``, which has no subgraph, of its operands by name."""
    own = OWN.get((node.domain, node.op_type))
    if own is not None:
        return [own(attributes(node), *(operands[name] for name in node.input))]
    given = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name]
    made = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "one", given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    fed = {value.name: operands[value.name] for value in given}
    return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, fed)]


def _centred(x: Array, zero: Array | int = 0) -> Array:
    """int64, with 0 for the zero point."""
    return np.asarray(x.astype(np.int64) - np.asarray(zero, np.int64))


def _requantized(sums: Array, scale: Array | np.float32, zero: Array) -> Array:
    """int64 -> the dtype of the zero point."""
    limits = np.iinfo(zero.dtype)
    near = np.rint(sums.astype(np.float32) * np.asarray(scale, np.float32)) + int(zero)
    return np.asarray(np.clip(near, limits.min, limits.max).astype(zero.dtype))


def _convolved(x: Array, w: Array, described: Attributes) -> Array:
    """int64 [N, C, H, W] by int64 [O, C/G, KH, KW] -> int64 [N, O, OH, OW]."""
    pads, group = described.get("pads", [0, 0, 0, 0]), described.get("group", 1)
    strides, dilations = (described.get(key, [1, 1]) for key in ("strides", "dilations"))
    (n, c), (o, _, *kernel) = x.shape[:2], w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [(kernel[a] - 1) * dilations[a] + 1 for a in range(2)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    rows, columns = windows.shape[2:4]
    windows = windows.reshape(n, group, c // group, rows, columns, *kernel)
    sums = np.einsum("ngcrskl,gockl->ngors", windows, w.reshape(group, o // group, c // group, *kernel))
    return np.asarray(sums.reshape(n, o, rows, columns))


def _conv_integer(described: Attributes, x: Array, w: Array, x_zero: Array | int = 0, w_zero: Array | int = 0) -> Array:
    return _convolved(_centred(x, x_zero), _centred(w, w_zero), described).astype(np.int32)


def _matmul_integer(described: Attributes, a: Array, b: Array, a_zero: Array | int = 0, b_zero: Array | int = 0) -> Array:
    return np.asarray((_centred(a, a_zero) @ _centred(b, b_zero)).astype(np.int32))


def _qlinear_conv(
    described: Attributes, x: Array, x_scale: Array, x_zero: Array, w: Array, w_scale: Array, w_zero: Array, y_scale: Array,
    y_zero: Array, bias: Array | None = None,
) -> Array:  # fmt: skip
    """channels_last: of maps [N, H, W, C]."""
    last = described.get("channels_last")
    sums = _convolved(_centred(np.moveaxis(x, -1, 1) if last else x, x_zero), _centred(w, w_zero), described)
    each = (1, -1, 1, 1)
    if bias is not None:
        sums = sums + bias.reshape(each)
    y = _requantized(sums, (x_scale * w_scale / y_scale).reshape(each), y_zero)
    return np.asarray(np.moveaxis(y, 1, -1)) if last else y


def _qlinear_matmul(
    described: Attributes, a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array, y_scale: Array,
    y_zero: Array,
) -> Array:  # fmt: skip
    return _requantized(_centred(a, a_zero) @ _centred(b, b_zero), a_scale * b_scale / y_scale, y_zero)


def _qlinear_add(
    described: Attributes, a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array, y_scale: Array,
    y_zero: Array,
) -> Array:  # fmt: skip
    """In float64: each scale by an 8-bit number, and their sum, are exact. The kernel adds the zero point before it rounds."""
    total = _centred(a, a_zero) * np.float64(a_scale / y_scale) + _centred(b, b_zero) * np.float64(b_scale / y_scale)
    limits = np.iinfo(y_zero.dtype)
    return np.asarray(np.clip(np.rint(total + int(y_zero)), limits.min, limits.max).astype(y_zero.dtype))


def _qlinear_mul(
    described: Attributes, a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array, y_scale: Array,
    y_zero: Array,
) -> Array:  # fmt: skip
    return _requantized(_centred(a, a_zero) * _centred(b, b_zero), a_scale * b_scale / y_scale, y_zero)


def _max_pool_last(described: Attributes, x: Array) -> Array:
    """Maps [N, H, W, C], without padding."""
    kernel: Sequence[int] = described["kernel_shape"]
    strides: Sequence[int] = described.get("strides", [1, 1])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return np.asarray(windows.max(axis=(-2, -1)))


def _quotient(described: Attributes, x: Array, y: Array) -> Array:
    """Of integers towards 0, as ONNX has it; onnx's evaluator rounds downward."""
    if x.dtype.kind == "f":
        return np.asarray(x / y)
    down = x // y
    return np.asarray((down + ((down < 0) & (down * y != x))).astype(x.dtype))


OWN: dict[tuple[str, str], Callable[..., Array]] = {
    ("", "ConvInteger"): _conv_integer,
    ("", "MatMulInteger"): _matmul_integer,
    ("", "Div"): _quotient,
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    (MICROSOFT, "QLinearConv"): _qlinear_conv,
    (MICROSOFT, "QLinearAdd"): _qlinear_add,
    (MICROSOFT, "QLinearMul"): _qlinear_mul,
    (MICROSOFT, "NhwcMaxPool"): _max_pool_last,
}

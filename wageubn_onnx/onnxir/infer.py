"""Shape and dtype of one node's first output, for the standard operators that the passes emit.

`graph.Model.op` asks here as it appends a node, so every pass knows every shape; the files are checked again, strictly, by onnx's
own shape inference. A dimension is an int, or a str for a symbolic one (only the batch is ever symbolic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.operators import ACTIVATIONS

Dim = int | str


@dataclass(frozen=True)
class TensorType:
    """A tensor's numpy dtype and shape."""

    dtype: Any
    shape: Any


def dtype_for(lo: int, hi: int) -> Any:
    """The narrowest dtype that holds lo..hi; a tensor that is never negative and fits 8 bits is uint8."""
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64):
        info = np.iinfo(dtype)
        if info.min <= lo and hi <= info.max:
            return np.dtype(dtype)
    raise ValueError(f"{lo}..{hi} does not fit 64 bits")


Inputs = Sequence[Any]  # graphsurgeon tensors: .dtype, .shape, and .values where constant
Attrs = dict[str, Any]


def infer(kind: str, inputs: Inputs, attrs: Attrs) -> TensorType:
    """The type of ``kind``'s first output.

    Raises WageubnError for an operator without an entry, or shapes that do not fit.
    """
    if kind not in TABLE:
        raise WageubnError(f"no shape rule for operator {kind}; add one to wageubn_onnx/onnxir/infer.py")
    return TABLE[kind](inputs, attrs)


def broadcast(*shapes: Sequence[Dim]) -> list[Dim]:
    """Numpy broadcasting, where a symbolic dimension meets itself or 1."""
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for axis in range(rank):
        dims = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(dims) > 1:
            raise WageubnError(f"shapes {[list(s) for s in shapes]} do not broadcast")
        result.append(dims.pop() if dims else 1)
    return result


def window(size: Dim, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Output length of a convolution or pooling along one axis (floor mode)."""
    return (int(size) + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _elementwise(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(inputs[0].dtype, broadcast(*(i.shape for i in inputs)))


def _compare(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(np.dtype(bool), broadcast(*(i.shape for i in inputs)))


def _same(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(inputs[0].dtype, list(inputs[0].shape))


def _where(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(inputs[1].dtype, broadcast(*(i.shape for i in inputs)))


def _cast(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(onnx.helper.tensor_dtype_to_np_dtype(attrs["to"]), list(inputs[0].shape))


def _conv(inputs: Inputs, attrs: Attrs, dtype: Any = None) -> TensorType:
    x, w = inputs[:2]
    pads, strides, dilations = attrs["pads"], attrs["strides"], attrs["dilations"]
    spatial = [window(x.shape[2 + a], w.shape[2 + a], strides[a], pads[a], pads[a + 2], dilations[a]) for a in range(2)]
    return TensorType(dtype or x.dtype, [x.shape[0], w.shape[0], *spatial])


def _conv_transpose(inputs: Inputs, attrs: Attrs) -> TensorType:
    x, w = inputs[:2]
    pads, strides, dilations, extra = (attrs[k] for k in ("pads", "strides", "dilations", "output_padding"))
    spatial = [
        (x.shape[2 + a] - 1) * strides[a] + extra[a] + dilations[a] * (w.shape[2 + a] - 1) + 1 - pads[a] - pads[a + 2]
        for a in range(2)
    ]
    return TensorType(x.dtype, [x.shape[0], w.shape[1] * attrs["group"], *spatial])


def _pool(inputs: Inputs, attrs: Attrs) -> TensorType:
    x, kernel, pads, strides = inputs[0], attrs["kernel_shape"], attrs["pads"], attrs["strides"]
    spatial = [window(x.shape[2 + a], kernel[a], strides[a], pads[a], pads[a + 2]) for a in range(2)]
    return TensorType(x.dtype, [*x.shape[:2], *spatial])


def _matmul(inputs: Inputs, attrs: Attrs, dtype: Any = None) -> TensorType:
    a, b = inputs[:2]
    if a.shape[-1] != b.shape[-2]:
        raise WageubnError(f"matrix product of {a.shape} and {b.shape}: inner dimensions differ")
    return TensorType(dtype or a.dtype, [*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])


def _values(tensor: Any) -> list[int]:
    return [int(v) for v in np.ravel(tensor.values)]


def _reduce(inputs: Inputs, attrs: Attrs) -> TensorType:
    x = inputs[0]
    rank = len(x.shape)
    axes = {a % rank for a in _values(inputs[1])} if len(inputs) > 1 else set(range(rank))
    if attrs.get("keepdims", 1):
        return TensorType(x.dtype, [1 if a in axes else d for a, d in enumerate(x.shape)])
    return TensorType(x.dtype, [d for a, d in enumerate(x.shape) if a not in axes])


def _arg(inputs: Inputs, attrs: Attrs) -> TensorType:
    kept = [1] if attrs.get("keepdims", 1) else []
    axis, shape = attrs["axis"], list(inputs[0].shape)
    return TensorType(np.dtype(np.int64), [*shape[:axis], *kept, *shape[axis + 1 :]])


def _reshape(inputs: Inputs, attrs: Attrs) -> TensorType:
    x, target = inputs[0], _values(inputs[1])
    shape: list[Dim] = [x.shape[a] if d == 0 else d for a, d in enumerate(target)]
    if -1 in shape:
        known = [d for d in shape if d != -1]
        symbols = [d for d in x.shape if isinstance(d, str) and d not in known]
        size = math.prod(d for d in x.shape if not isinstance(d, str))
        rest = size // math.prod(d for d in known if not isinstance(d, str))
        shape[shape.index(-1)] = symbols[0] if symbols else rest
    return TensorType(x.dtype, shape)


def _flatten(inputs: Inputs, attrs: Attrs) -> TensorType:
    x = inputs[0]
    return TensorType(x.dtype, [x.shape[0], math.prod(x.shape[1:])])


def _transpose(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(inputs[0].dtype, [inputs[0].shape[a] for a in attrs["perm"]])


def _slice(inputs: Inputs, attrs: Attrs) -> TensorType:
    x, starts, ends, axes = inputs[0], *(_values(i) for i in inputs[1:4])
    steps = _values(inputs[4]) if len(inputs) > 4 else [1] * len(axes)
    shape = list(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        shape[axis] = len(range(*slice(start, None if end < -(2**31) else end, step).indices(shape[axis])))
    return TensorType(x.dtype, shape)


def _concat(inputs: Inputs, attrs: Attrs) -> TensorType:
    shape = list(inputs[0].shape)
    shape[attrs["axis"]] = sum(i.shape[attrs["axis"]] for i in inputs)
    return TensorType(inputs[0].dtype, shape)


def _pad(inputs: Inputs, attrs: Attrs) -> TensorType:
    x, pads = inputs[0], _values(inputs[1])
    rank = len(x.shape)
    return TensorType(x.dtype, [d + pads[a] + pads[a + rank] if pads[a] + pads[a + rank] else d for a, d in enumerate(x.shape)])


def _unsqueeze(inputs: Inputs, attrs: Attrs) -> TensorType:
    shape = list(inputs[0].shape)
    for axis in sorted(_values(inputs[1])):
        shape.insert(axis, 1)
    return TensorType(inputs[0].dtype, shape)


def _expand(inputs: Inputs, attrs: Attrs) -> TensorType:
    return TensorType(inputs[0].dtype, broadcast(inputs[0].shape, _values(inputs[1])))


def _gather(inputs: Inputs, attrs: Attrs) -> TensorType:
    data, indices = inputs
    axis = attrs.get("axis", 0)
    return TensorType(data.dtype, [*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def _int32(rule: Callable[..., TensorType]) -> Callable[[Inputs, Attrs], TensorType]:
    return lambda inputs, attrs: rule(inputs, attrs, np.dtype(np.int32))


TABLE: dict[str, Callable[[Inputs, Attrs], TensorType]] = {
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "BitwiseAnd", "BitwiseXor", "And", "Or"], _elementwise),
    **dict.fromkeys([*ACTIVATIONS, "Sqrt", "Exp", "Log", "Neg", "Abs", "Not", "Identity", "Sign"], _same),
    **dict.fromkeys(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"], _compare),
    **dict.fromkeys(["ReduceSum", "ReduceMean", "ReduceMax"], _reduce),
    **dict.fromkeys(["MaxPool", "AveragePool"], _pool),
    "GlobalAveragePool": lambda i, a: TensorType(i[0].dtype, [*i[0].shape[:2], 1, 1]),
    "BatchNormalization": _same,
    "Gemm": lambda i, a: TensorType(i[0].dtype, [i[0].shape[0], i[1].shape[0]]),
    "Where": _where,
    "Cast": _cast,
    "Conv": _conv,
    "ConvInteger": _int32(_conv),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _int32(_matmul),
    "ArgMax": _arg,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Slice": _slice,
    "Concat": _concat,
    "Pad": _pad,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Gather": _gather,
}

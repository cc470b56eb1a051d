"""The integer graphs on mathematically exact integers: what `int_training` and `int_eval` mean, without any runtime.

Every node is a few lines of plain numpy, on int64 where no result can pass 2^63 and on Python integers elsewhere. Calls of the
project's functions are computed by quantizers/reference.py, never from their bodies, so that this is an independent truth of the
functions as well. A result that does not fit the dtype that the file declares for its tensor is refused: nothing wraps unseen.

Source of the operators: the ONNX specification, opset 18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from wageubn_onnx.composites import expanded
from wageubn_onnx.errors import ProofFailed, UnsupportedOperator, WageubnError
from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.trace import SUFFIX
from wageubn_onnx.quantizers import reference
from wageubn_onnx.stages import tensor_dtypes

Array = npt.NDArray[Any]
Attrs = dict[str, Any]
Rule = Callable[[list[Array], Attrs], list[Any]]


def interpret(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Every tensor of the integer graph ``model`` by name, in its declared dtype, from the inputs ``feeds``.

    Raises ProofFailed, naming the node, where a value does not fit its tensor's dtype, a divisor is below 1 or a dividend below
    0; UnsupportedOperator for a node without a rule; WageubnError for an input that is missing or of another dtype.
    """
    model = expanded(model)
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(dtype) for name, dtype in tensor_dtypes(model).items()}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for graph_input in model.graph.input:
        name = graph_input.name
        if name not in feeds or feeds[name].dtype != dtypes[name]:
            found = f"is {feeds[name].dtype}" if name in feeds else "is missing"
            raise WageubnError(f"input {name!r} {found}; feed it as {dtypes[name]}")
        values[name] = feeds[name]
    for node in model.graph.node:
        rules = FUNCTIONS if node.domain == DOMAIN else OPERATORS
        if node.op_type not in rules:
            raise UnsupportedOperator(f"node {node.name!r}: {node.op_type} has no rule; add one to proofs/interpreter.py")
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            results = rules[node.op_type]([values[name] for name in node.input], attrs)
        except (ArithmeticError, IndexError) as error:
            raise ProofFailed(f"node {node.name!r}: {node.op_type}: {error}") from None
        for name, result in zip(node.output, results, strict=True):
            values[name] = _stored(result, dtypes[name], node)
    return values


def _stored(result: Any, dtype: np.dtype[Any], node: onnx.NodeProto) -> Array:
    """``result`` in the tensor's dtype. Raises ProofFailed where that cannot hold it."""
    values: Array = np.asarray(result)
    if "b" in (dtype.kind, values.dtype.kind):
        if dtype != values.dtype:
            raise ProofFailed(f"node {node.name!r}: {node.op_type} gives {values.dtype} for a tensor declared {dtype}")
        return values
    least, greatest = (int(values.min()), int(values.max())) if values.size else (0, 0)
    limits = np.iinfo(dtype)
    if least < limits.min or greatest > limits.max:
        raise ProofFailed(f"node {node.name!r}: {node.op_type} reaches {least}..{greatest}, which {dtype} does not hold")
    stored: Array = values.astype(dtype)
    return stored


def _wide(x: Array) -> Array:
    """x as integers whose sums and products do not wrap: Python's for int64, int64 for whatever is narrower."""
    wide: Array = x.astype(object if x.dtype == np.int64 else np.int64)
    return wide


def _ints(x: Array) -> list[int]:
    return [int(v) for v in x.ravel()]


# -- elementwise ----------------------------------------------------------------------------------------------------------


def _elementwise(operation: Callable[..., Any]) -> Rule:
    return lambda x, attrs: [operation(*map(_wide, x))]


def _same(operation: Callable[..., Any]) -> Rule:
    """On the values as they are: nothing here makes new ones."""
    return lambda x, attrs: [operation(*x)]


def _div(x: list[Array], attrs: Attrs) -> list[Any]:
    """The quotient of a negative dividend would be the kernel's choice."""
    a, b = map(_wide, x)
    if (b < 1).any():
        raise ArithmeticError(f"its divisor reaches {b.min()}, and must be at least 1")
    if (a < 0).any():
        raise ArithmeticError(f"its dividend reaches {a.min()}, and must not be negative")
    return [a // b]


def _cast(x: list[Array], attrs: Attrs) -> list[Any]:
    """Between signed and unsigned of one width the bits stay, as the lowering means it; otherwise the value does."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attrs["to"])
    if dtype.kind == "b":
        return [x[0] != 0]
    if x[0].dtype.kind == "b":
        return [x[0].astype(dtype)]
    return [x[0].view(dtype) if x[0].dtype.itemsize == dtype.itemsize else x[0]]


# -- products and windows -------------------------------------------------------------------------------------------------


def _windows(x: Array, attrs: Attrs, fill: int) -> Array:
    """[N, C, OH, OW, KH, KW]: what each place of a kernel sees of x [N, C, H, W], ``fill`` beyond its edge."""
    top, left, bottom, right = attrs.get("pads", [0, 0, 0, 0])
    (sh, sw), (dh, dw) = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    kh, kw = attrs["kernel_shape"]
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    return sliding_window_view(padded, reach, (2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]


def _centred(x: list[Array]) -> tuple[Array, Array]:
    """Both operands of a product less their zero points, int64; 8 bits each, so that no sum of products can wrap."""
    zeros = [*x[2:], *[np.zeros((), np.int64)] * (4 - len(x))]
    return x[0].astype(np.int64) - zeros[0], x[1].astype(np.int64) - zeros[1]


def _conv_integer(x: list[Array], attrs: Attrs) -> list[Any]:
    """[N, C, H, W] and [O, C/G, KH, KW] -> [N, O, OH, OW], each of G groups by itself; the padding is the zero point."""
    image, kernel = _centred(x)
    windows = _windows(image, attrs | {"kernel_shape": kernel.shape[2:]}, 0)
    groups = attrs.get("group", 1)
    pairs = zip(np.split(windows, groups, 1), np.split(kernel, groups), strict=True)
    return [np.concatenate([np.tensordot(x, w, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2) for x, w in pairs], 1)]


def _matmul_integer(x: list[Array], attrs: Attrs) -> list[Any]:
    a, b = _centred(x)
    return [a @ b]


def _max_pool(x: list[Array], attrs: Attrs) -> list[Any]:
    return [_windows(x[0].astype(np.int64), attrs, np.iinfo(np.int64).min).max((4, 5))]


# -- reductions -----------------------------------------------------------------------------------------------------------


def _reduce(operation: Callable[..., Any]) -> Rule:
    """Over the axes of the second operand, or all."""

    def rule(x: list[Array], attrs: Attrs) -> list[Any]:
        axes = tuple(_ints(x[1])) if len(x) > 1 else None
        return [operation(_wide(x[0]), axis=axes, keepdims=bool(attrs.get("keepdims", 1)))]

    return rule


def _arg_max(x: list[Array], attrs: Attrs) -> list[Any]:
    """The first of equals."""
    axis, found = attrs.get("axis", 0), x[0].argmax(attrs.get("axis", 0))
    return [np.expand_dims(found, axis) if attrs.get("keepdims", 1) else found]


# -- moving elements ------------------------------------------------------------------------------------------------------


def _reshape(x: list[Array], attrs: Attrs) -> list[Any]:
    """0 keeps a size, -1 takes what is left."""
    return [x[0].reshape([x[0].shape[i] if size == 0 else size for i, size in enumerate(_ints(x[1]))])]


def _flatten(x: list[Array], attrs: Attrs) -> list[Any]:
    return [x[0].reshape(int(np.prod(x[0].shape[: attrs.get("axis", 1)])), -1)]


def _slice(x: list[Array], attrs: Attrs) -> list[Any]:
    """An end far below 0 with a negative step takes in the first element."""
    starts, ends, axes = map(_ints, x[1:4])
    steps = _ints(x[4]) if len(x) > 4 else [1] * len(axes)
    taken = [slice(None)] * x[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken[axis] = slice(start, None if step < 0 and end < -x[0].shape[axis] else end, step)
    return [x[0][tuple(taken)]]


def _pad(x: list[Array], attrs: Attrs) -> list[Any]:
    pads = _ints(x[1])
    fill = x[2].item() if len(x) > 2 else 0
    return [np.pad(x[0], list(zip(pads[: x[0].ndim], pads[x[0].ndim :], strict=True)), constant_values=fill)]


def _expand(x: list[Array], attrs: Attrs) -> list[Any]:
    return [np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, tuple(_ints(x[1]))))]


OPERATORS: dict[str, Rule] = {
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _div,
    "Max": _same(np.maximum),
    "Min": _same(np.minimum),
    "BitwiseXor": _same(np.bitwise_xor),
    "And": _same(np.logical_and),
    "Or": _same(np.logical_or),
    "Not": _same(np.logical_not),
    "Equal": _same(np.equal),
    "Greater": _same(np.greater),
    "GreaterOrEqual": _same(np.greater_equal),
    "Where": _same(np.where),
    "Identity": _same(lambda x: x),
    "Cast": _cast,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ArgMax": _arg_max,
    "Concat": lambda x, a: [np.concatenate(x, a["axis"])],
    "Gather": lambda x, a: [np.take(x[0], x[1], a.get("axis", 0))],
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Transpose": lambda x, a: [x[0].transpose(a["perm"])],
    "Unsqueeze": lambda x, a: [np.expand_dims(x[0], tuple(_ints(x[1])))],
}


# -- the project's functions, by their references -------------------------------------------------------------------------
# A mantissa's unit is taken as 2^0: exponents in the graph are tensors of their own, and calls see shifts between them.


# The operand after the others, where there is one, is the random bits of a stochastic rounding.


def _by(a: Attrs) -> str:
    return bytes(a["rounding"]).decode()


def _chance(x: list[Array], operands: int) -> Array | None:
    return x[operands] if len(x) > operands else None


def _direct(x: list[Array], a: Attrs) -> list[Any]:
    """One shift, or one a channel."""
    m, shift, chance = x[0], x[1], _chance(x, 2)
    if not shift.ndim:
        return [reference.direct(m, 0, int(shift), a["least"], a["greatest"], _by(a), chance)[0]]
    m, shift = np.broadcast_arrays(reference.exact(m), shift)
    q = np.empty_like(m)
    for each in np.unique(shift):
        here = shift == each
        bits = None if chance is None else chance[here]
        q[here] = reference.direct(m[here], 0, int(each), a["least"], a["greatest"], _by(a), bits)[0]
    return [q]


def _ratio(x: list[Array], a: Attrs) -> list[Any]:
    if (x[1] < 1).any():
        raise ArithmeticError(f"its divisor reaches {x[1].min()}, and must be at least 1")
    return [reference.ratio(x[0], x[1], 0, 0, a["least"], a["greatest"], _by(a))[0]]


def _root(x: list[Array], a: Attrs) -> list[Any]:
    """round(sqrt(total/count * factor + offset) / 2), the root of one fraction."""
    total, count, factor, offset = map(reference.exact, x)
    if (count < 1).any():
        raise ArithmeticError(f"its count reaches {count.min()}, and must be at least 1")
    return [reference.root(total * factor + offset * count, 4 * count, 0, 0, a["least"], a["greatest"], _by(a))[0]]


def _image(x: list[Array], a: Attrs) -> list[Any]:
    pixels, factor, offset, shift = x
    return [reference.image(pixels, factor, offset, 0, int(shift), a["least"], a["greatest"], _by(a))[0]]


def _shift(x: list[Array], a: Attrs) -> list[Any]:
    bounds = (a["least"], a["greatest"])
    return list(reference.shift(x[0], int(x[1]), a["fraction"] + 1, _by(a), _chance(x, 2), bounds))


def _align(x: list[Array], a: Attrs) -> list[Any]:
    return list(reference.align(x[0], int(x[1]), x[2], int(x[3]), a["fraction"] + 2, _by(a)))


def _pair(x: list[Array], a: Attrs) -> list[Any]:
    return [reference.rescale(2 ** a["base"] * reference.exact(x[0]) + reference.exact(x[1]), a["drop"], _by(a))]


def _follow(x: list[Array], a: Attrs) -> list[Any]:
    q, held = x
    return [reference.follow(q, int(held), *(a[name] for name in ("greatest", "small", "up", "lowest", "highest")))]


def _follow_channels(x: list[Array], a: Attrs) -> list[Any]:
    q, held = x
    found = [_follow([q[:, c], own], a)[0] for c, own in enumerate(held.ravel())]
    return [np.reshape(found, held.shape)]


FUNCTIONS: dict[str, Rule] = {
    **{
        name + suffix: rule
        for suffix in SUFFIX.values()
        for name, rule in {
            **dict.fromkeys(["DirectQuantize", "DirectQuantizeWide", "GridQuantize"], _direct),
            **dict.fromkeys(["DirectQuantizeRatio", "DirectQuantizeRatioWide"], _ratio),
            "DirectQuantizeRoot": _root,
            "DirectQuantizeImage": _image,
            "ShiftQuantize": _shift,
            "FlagQuantize": lambda x, a: list(reference.flag(x[0], int(x[1]), _by(a))),
            "AlignQuantize": _align,
            "GridQuantizePair": _pair,
            "ConstantQuantize": lambda x, a: [reference.constant(x[0], int(x[1]), _chance(x, 2), 0, _by(a))[0]],
        }.items()
    },
    "FollowExponent": _follow,
    "FollowExponents": _follow_channels,
    "Limbs": lambda x, a: list(reference.limbs(x[0])),
    "RandomBits": lambda x, a: [reference.random_bits(int(x[0]), int(x[1]), a["tensor"], a["count"])],
    "ExponentialTable": lambda x, a: [reference.exponential(x[0])[0]],
    "LogarithmTable": lambda x, a: [reference.logarithm(x[0])[0]],
}

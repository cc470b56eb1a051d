"""The quantize nodes: each float function becomes the integer function of the same name, told apart by what it rounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.fixedpoint import Exponent, Fixed, Pair, Pixels, Ratio, Raw, Root, Step, Value, mantissas
from wageubn_onnx.graph import Tensor
from wageubn_onnx.onnxir.infer import TensorType, dtype_for
from wageubn_onnx.onnxir.trace import SUFFIX, Variants
from wageubn_onnx.passes.lower.lowering import INT32_LIMIT, Lowering, Rule, short_name
from wageubn_onnx.quantizers import integer, tables

WIDE_LIMIT = 2**integer.WIDE_LIMIT
NARROW_LIMIT = 2**integer.SHIFT_LIMIT
RATIO_LIMIT = 2**52


def _attributes(node: gs.Node, **more: int) -> dict[str, Any]:
    """The description of the float node, its mantissa bounds as integers for the body."""
    keep = {k: node.attrs[k] for k in ("role", "bits", "rounding", "exponent", "lo", "hi") if k in node.attrs}
    return keep | more


def _fraction(node: gs.Node) -> int:
    """Of a dynamic grid R / 2^fraction."""
    return -round(math.log2(node.attrs["unit"]))


def _bounds(node: gs.Node) -> tuple[int, int]:
    return int(node.attrs["lo"]), int(node.attrs["hi"])


def _random(lower: Lowering, node: gs.Node) -> list[Tensor]:
    """The random bits of a stochastic quantizer, its last operand; none for the others."""
    if node.attrs["rounding"] != "stochastic":
        return []
    return [_integer(lower, node.inputs[-1], node)]


def _emit(lower: Lowering, node: gs.Node, functions: Variants, inputs: list[Tensor], exponent: Exponent, shape: Any) -> Fixed:
    """One call with one output, in the narrowest dtype of its bounds."""
    function = functions[node.attrs["rounding"]]
    lo, hi = _bounds(node)
    dtype = dtype_for(lo, hi)
    attrs = _attributes(node, to=onnx.helper.np_dtype_to_tensor_dtype(dtype), least=lo, greatest=hi)
    tensor = lower.g.call(function, inputs, [TensorType(dtype, shape)], short_name(node), node.attrs["role"], attrs)[0]
    return Fixed(tensor, exponent, lo, hi)


def direct(lower: Lowering, node: gs.Node) -> Value:
    """DirectQuantize to a static grid."""
    return _to_grid(lower, node, lower.value(node.inputs[0]), Exponent(int(node.attrs["exponent"])))


def grid(lower: Lowering, node: gs.Node) -> Value:
    """GridQuantize to a grid found at run time."""
    step = lower.value(node.inputs[1])
    if not isinstance(step, Step):
        raise WageubnError(f"node {node.name!r}: its grid is not a step; this is a fault of a pass")
    return _to_grid(lower, node, lower.value(node.inputs[0]), step.exponent)


def _to_grid(lower: Lowering, node: gs.Node, value: Value, target: Exponent) -> Value:
    if isinstance(value, Pixels):
        return _image(lower, node, value, target)
    if isinstance(value, Root):
        return _root(lower, node, value, target)
    if isinstance(value, Ratio):
        return _ratio(lower, node, value, target)
    if isinstance(value, Pair):
        reduced = _pair(lower, node, value, target)
        if reduced is not None:
            return reduced
    x = lower.fixed(value, node)
    distance = target - x.exponent
    reach = x.bound * 2 ** max(-distance.static, 0)
    if distance.is_static and reach < NARROW_LIMIT and x.tensor.dtype != np.int64:
        function, dtype = integer.DIRECT, np.int32
    elif max(map(abs, _bounds(node))) <= integer.GRID_BOUND and x.bound < NARROW_LIMIT and x.tensor.dtype != np.int64:
        function, dtype = integer.GRID, np.int32
    else:
        lower.checked(x.bound, WIDE_LIMIT, node)
        function, dtype = integer.DIRECT_WIDE, np.int64
    inputs = [lower.cast(x.tensor, dtype), distance.tensor(lower.g), *_random(lower, node)]
    return _emit(lower, node, function, inputs, target, x.tensor.shape)


def _pair(lower: Lowering, node: gs.Node, value: Pair, target: Exponent) -> Fixed | None:
    """The accumulators of a flag pair, low bits dropped; None where that is not static, or could saturate."""
    source, base = value.low.exponent, value.base
    drop = target.static - source.static
    if not source.same_terms(target) or not 1 <= drop < base:
        return None
    bound = value.high.bound * 2 ** (base - drop) + (value.low.bound >> drop) + 1
    if bound > int(node.attrs["hi"]):
        return None
    lower.checked(max(value.low.bound, value.high.bound), NARROW_LIMIT, node)
    lower.checked(bound, INT32_LIMIT, node)
    g, shape = lower.g, value.high.tensor.shape
    attrs = _attributes(node, drop=drop, base=base)
    inputs = [value.high.tensor, value.low.tensor]
    tensor = g.call(
        integer.PAIR[node.attrs["rounding"]],
        inputs,
        [TensorType(np.dtype(np.int32), shape)],
        short_name(node),
        node.attrs["role"],
        attrs,
    )[0]
    return Fixed(tensor, target, -bound, bound)


def _ratio(lower: Lowering, node: gs.Node, value: Ratio, target: Exponent) -> Fixed:
    """round(numerator / denominator): in int32 where both fit after the shift, else in int64."""
    g, top, bottom = lower.g, value.numerator, value.denominator
    if not value.exponent.same_terms(target):
        raise WageubnError(
            f"node {node.name!r}: a ratio on a run-time exponent needs a grid on the same; this is a fault of a pass"
        )
    shift = target.static - value.exponent.static
    lo, hi = _bounds(node)
    up, down = 2 ** max(-shift, 0), 2 ** max(shift, 0)
    narrow = lo >= -hi - 1 and top.bound * up < INT32_LIMIT and (4 * hi + 5) * bottom.hi * down < INT32_LIMIT
    dtype = np.int32 if narrow and top.tensor.dtype != np.int64 else np.int64
    if dtype == np.int64:
        lower.checked(top.bound * up, RATIO_LIMIT, node)
        lower.checked(bottom.hi * down, RATIO_LIMIT, node)

    def scaled(x: Fixed, factor: int) -> Tensor:
        tensor = lower.cast(x.tensor, dtype)
        return g.op("Mul", tensor, g.scalar(factor, dtype), name="scaled") if factor != 1 else tensor

    function = integer.DIRECT_RATIO if dtype == np.int32 else integer.DIRECT_RATIO_WIDE
    return _emit(lower, node, function, [scaled(top, up), scaled(bottom, down)], target, node.outputs[0].shape)


def _root(lower: Lowering, node: gs.Node, value: Root, target: Exponent) -> Fixed:
    """round(sqrt(total/count + epsilon)): the radicand in quarters of the squared unit of sigma's grid."""
    ratio, epsilon = value.radicand.ratio, value.radicand.constant
    unit = target + target + (-2)
    distance = ratio.exponent - unit
    if not distance.is_static:
        raise WageubnError(
            f"node {node.name!r}: the variance under a root lies on another run-time grid; this is a fault of a pass"
        )
    up = distance.static
    lower.checked(ratio.numerator.bound, RATIO_LIMIT, node)
    factor, more = 2 ** max(up, 0), 2 ** max(-up, 0)
    lower.checked(ratio.denominator.hi * factor * more, RATIO_LIMIT, node)
    g = lower.g
    count = lower.cast(ratio.denominator.tensor, np.int64)
    if more > 1:
        count = g.op("Mul", count, g.scalar(more, np.int64), name="count")
    if isinstance(epsilon, Fixed):
        offset = lower.cast(epsilon.tensor, np.int64)
    else:
        numbers, exponent = mantissas(epsilon.values)
        whole = numbers * 2 ** (exponent - unit.static)
        lower.checked(int(max(whole.flat)), RATIO_LIMIT, node)
        offset = g.constant(whole.astype(np.int64), np.int64, name="epsilon")
    inputs = [lower.cast(ratio.numerator.tensor, np.int64), count, g.scalar(factor, np.int64), offset]
    return _emit(lower, node, integer.DIRECT_ROOT, inputs, target, node.outputs[0].shape)


def _image(lower: Lowering, node: gs.Node, value: Pixels, target: Exponent) -> Fixed:
    """(pixel*scale - mean)/std as (pixel*factor + offset) / 2^shift, 12 bits finer than the grid."""
    config, g = lower.config, lower.g
    channels = value.tensor.shape[1]
    mean, std = (np.broadcast_to(np.asarray(v, np.float64), channels) for v in (config.mean, config.std))
    finer = 12
    unit = 2.0 ** (target.static - finer)
    factor, offset = np.round(config.scale / std / unit), np.round(-mean / std / unit)
    lower.checked(int(max(abs(255 * factor + offset).max(), abs(offset).max(), abs(255 * factor).max())), NARROW_LIMIT, node)
    operands = [g.constant(v.reshape(1, -1, 1, 1), np.int32, name=n) for v, n in ((factor, "factor"), (offset, "offset"))]
    return _emit(
        lower, node, integer.DIRECT_IMAGE, [value.tensor, *operands, g.scalar(finer, np.int32)], target, value.tensor.shape
    )


def shift(lower: Lowering, node: gs.Node) -> list[Value]:
    """ShiftQuantize: the exponent comes with the mantissas. What a product reads in more than 8 bits becomes two limbs."""
    x = lower.fixed(lower.value(node.inputs[0]), node)
    lower.checked(x.bound, NARROW_LIMIT, node)
    lo, hi = _bounds(node)
    dtype = dtype_for(lo, hi)
    g = lower.g
    to, fraction = onnx.helper.np_dtype_to_tensor_dtype(dtype), _fraction(node)
    attrs = _attributes(node, to=to, least=lo, greatest=hi, fraction=fraction)
    types = [TensorType(dtype, x.tensor.shape), TensorType(np.dtype(np.int32), [])]
    inputs = [lower.cast(x.tensor, np.int32), x.exponent.tensor(g), *_random(lower, node)]
    function = integer.SHIFT[node.attrs["rounding"]]
    tensor, moved = g.call(function, inputs, types, short_name(node), node.attrs["role"], attrs)
    exponent = Exponent(0, (moved,))
    value = Fixed(tensor, exponent, lo, hi)
    return [value if node.attrs["role"] != "E2" or dtype.itemsize == 1 else _limbs(lower, node, value), Step(exponent)]


def _limbs(lower: Lowering, node: gs.Node, x: Fixed) -> Pair:
    """int16 as 2^8 * high + low, operands of two 8-bit products."""
    shape = x.tensor.shape
    types = [TensorType(np.dtype(np.int8), shape), TensorType(np.dtype(np.uint8), shape)]
    high, low = lower.g.call(integer.LIMBS, [x.tensor], types, "limbs", "E2", _attributes(node))
    return Pair(Fixed(high, x.exponent + 8, x.lo >> 8, x.hi >> 8), Fixed(low, x.exponent, 0, 255), base=8)


def flag(lower: Lowering, node: gs.Node) -> list[Value]:
    """FlagQuantize: two int8 tensors; the step is the low part's."""
    x = lower.fixed(lower.value(node.inputs[0]), node)
    lower.checked(x.bound, NARROW_LIMIT, node)
    shape, int8 = x.tensor.shape, np.dtype(np.int8)
    types = [TensorType(int8, shape), TensorType(int8, shape), TensorType(np.dtype(np.int32), [])]
    inputs = [lower.cast(x.tensor, np.int32), x.exponent.tensor(lower.g), *_random(lower, node)]
    function = integer.FLAG[node.attrs["rounding"]]
    high, low, moved = lower.g.call(function, inputs, types, short_name(node), node.attrs["role"], _attributes(node))
    exponent = Exponent(0, (moved,))
    return [Pair(Fixed(high, exponent + 7, -127, 127), Fixed(low, exponent, -127, 127)), Step(exponent)]


def align(lower: Lowering, node: gs.Node) -> list[Value]:
    """AlignQuantize: two int16 tensors on one exponent."""
    a, b = (lower.fixed(lower.value(i), node) for i in node.inputs)
    for x in (a, b):
        lower.checked(x.bound, NARROW_LIMIT, node)
    g, int16 = lower.g, np.dtype(np.int16)
    lo, hi = _bounds(node)
    attrs = _attributes(node, least=lo, greatest=hi, fraction=_fraction(node))
    types = [TensorType(int16, a.tensor.shape), TensorType(int16, b.tensor.shape), TensorType(np.dtype(np.int32), [])]
    inputs = [lower.cast(a.tensor, np.int32), a.exponent.tensor(g), lower.cast(b.tensor, np.int32), b.exponent.tensor(g)]
    qa, qb, common = g.call(integer.ALIGN[node.attrs["rounding"]], inputs, types, short_name(node), node.attrs["role"], attrs)
    exponent = Exponent(0, (common,))
    return [Fixed(qa, exponent, lo, hi), Fixed(qb, exponent, lo, hi), Step(exponent)]


def constant(lower: Lowering, node: gs.Node) -> Value:
    """ConstantQuantize: 8 bits on the grid of gradients, whatever the gradient's own exponent was."""
    x = lower.fixed(lower.value(node.inputs[0]), node)
    lower.checked(x.bound, RATIO_LIMIT, node)
    inputs = [lower.cast(x.tensor, np.int64), _integer(lower, node.inputs[1], node), *_random(lower, node)]
    types = [TensorType(np.dtype(np.int8), x.tensor.shape)]
    tensor = lower.g.call(
        integer.CONSTANT[node.attrs["rounding"]], inputs, types, short_name(node), node.attrs["role"], _attributes(node)
    )[0]
    return Fixed(tensor, Exponent(int(node.attrs["exponent"])), -127, 127)


def power(lower: Lowering, node: gs.Node) -> Value:
    """PowerOfTwo of a state: the grid that it holds."""
    return Step(Exponent(0, (_integer(lower, node.inputs[0], node),)))


def follow(lower: Lowering, node: gs.Node) -> Value:
    """FollowExponent: from the mantissas, in the dtype that they have where the runtime finds a maximum in it."""
    q, held = lower.fixed(lower.value(node.inputs[0]), node), _integer(lower, node.inputs[2], node)
    function = integer.FOLLOW_CHANNELS if held.shape else integer.FOLLOW
    tensor = q.tensor if q.tensor.dtype.itemsize == 1 else lower.cast(q.tensor, np.int32)
    attrs = {"greatest": int(node.attrs["hi"]), "small": int(node.attrs["small"])}
    attrs |= {name: node.attrs[name] for name in ("up", "lowest", "highest")}
    types = [TensorType(np.dtype(np.int32), held.shape)]
    return Raw(lower.g.call(function, [tensor, held], types, short_name(node), "", attrs)[0])


def _integer(lower: Lowering, tensor: Tensor, node: gs.Node) -> Tensor:
    value = lower.value(tensor)
    if not isinstance(value, Raw):
        raise WageubnError(f"node {node.name!r}: {tensor.name!r} must be an integer; this is a fault of a pass")
    return value.tensor


def exponential(lower: Lowering, node: gs.Node) -> Value:
    """2^t from the table: 0..2^15 in units of 2^-15."""
    x = lower.fixed(lower.value(node.inputs[0]), node)
    _require(node, x.exponent == Exponent(-tables.EXP_INDEX) and x.hi <= 0)
    types = [TensorType(np.dtype(np.int32), x.tensor.shape)]
    tensor = lower.g.call(integer.EXPONENTIAL, [lower.cast(x.tensor, np.int32)], types, "exp2", "S.exp", {})[0]
    return Fixed(tensor, Exponent(-tables.EXP_BITS), 0, 2**tables.EXP_BITS)


def logarithm(lower: Lowering, node: gs.Node) -> Value:
    """log2 of a sum that holds at least one 1.0, so that its mantissa is at least 2^15."""
    x = lower.fixed(lower.value(node.inputs[0]), node)
    _require(node, x.exponent == Exponent(-tables.EXP_BITS) and x.lo >= 2**tables.EXP_BITS)
    lower.checked(x.bound, 2**30, node)
    types = [TensorType(np.dtype(np.int32), x.tensor.shape)]
    tensor = lower.g.call(integer.LOGARITHM, [lower.cast(x.tensor, np.int32)], types, "log2", "S.log", {})[0]
    return Fixed(tensor, Exponent(-tables.LOG_FRACTION), 0, 16 * 2**tables.LOG_FRACTION)


def _require(node: gs.Node, holds: bool) -> None:
    if not holds:
        raise WageubnError(
            f"node {node.name!r}: {node.op} reads another grid or range than its table has; this is a fault of a pass"
        )


def random_bits(lower: Lowering, node: gs.Node) -> Value:
    """The hash is integer already."""
    g, functions = lower.g, lower.source.functions
    g.functions.setdefault("HashMix", functions["HashMix"])
    inputs = [_integer(lower, i, node) for i in node.inputs]
    types = [TensorType(np.dtype(np.int32), node.outputs[0].shape)]
    return Raw(g.call(functions["RandomBits"], inputs, types, "random", "", dict(node.attrs))[0])


RULES: dict[str, Rule] = {
    **{
        name + suffix: rule
        for suffix in SUFFIX.values()
        for name, rule in {
            "DirectQuantize": direct,
            "GridQuantize": grid,
            "ShiftQuantize": shift,
            "FlagQuantize": flag,
            "AlignQuantize": align,
            "ConstantQuantize": constant,
        }.items()
    },
    "PowerOfTwo": power,
    "FollowExponent": follow,
    "FollowExponents": follow,
    "ExponentialTable": exponential,
    "LogarithmTable": logarithm,
    "RandomBits": random_bits,
}

"""Interval arithmetic on integer tensors: the transfer function of every operator that an integer stage may use.

A transfer function takes the bounds of a node's operands and returns those of its result in exact integers, not yet held to a
dtype: `Walk` does that. It raises Unproven where the operator itself could go wrong: a divisor below 1, an index outside its
table, a sum that the target's kernels do not compute exactly (targets.py).

Where plain intervals lose what a body relies on, five lemmas look at the nodes that made an operand (Walk.maker):

* square: x * x >= 0;
* remainder: for x >= 0 and d >= 1, floor(x/d) * d lies in x-d+1..x, and x - floor(x/d) * d in 0..d-1;
* multiple: x - (x & 2^k-1) is floor(x / 2^k) * 2^k also for x < 0, and divided by 2^k without a rest;
* count: the number of entries of a constant table that x reaches lies between those that x's least and greatest reach;
* choice: Where(c, a, b) is a under what c implies of its operands, or b under what its contrary implies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

from wageubn_onnx.proofs.bounds import LIMITS, Bound, Known, Op, Unproven, as_int8, hull, of_array, whole
from wageubn_onnx.proofs.targets import ACCUMULATOR, EXACT_SUMS, PAIRED_LIMIT

T = onnx.TensorProto
Operands = list[Bound]
Transfer = Callable[[Known, Op, Operands], Bound]


def _add(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(x[0].lo + x[1].lo, x[0].hi + x[1].hi, x[0].dtype)


def _subtract(walk: Known, op: Op, x: Operands) -> Bound:
    plain = Bound(x[0].lo - x[1].hi, x[0].hi - x[1].lo, x[0].dtype)
    parts = _floor_multiple(walk, op.inputs[1])
    if parts and walk.origin(op.inputs[0]) == walk.origin(parts[0]):
        divisor = walk.bounds[parts[1]]
        return plain.meet(0, min(divisor.hi - 1, x[0].hi)) or plain  # remainder
    unit = _low_bits_cleared(walk, op)
    if unit is not None:
        return Bound(x[0].lo // unit * unit, x[0].hi // unit * unit, x[0].dtype)  # multiple
    return plain


def _multiply(walk: Known, op: Op, x: Operands) -> Bound:
    corners = [p * q for p in (x[0].lo, x[0].hi) for q in (x[1].lo, x[1].hi)]
    plain = Bound(min(corners), max(corners), x[0].dtype)
    if walk.origin(op.inputs[0]) == walk.origin(op.inputs[1]):
        return Bound(0 if x[0].lo <= 0 <= x[0].hi else min(corners), max(corners), x[0].dtype)  # square
    parts = _floor_multiple(walk, op.outputs[0])
    if parts:
        dividend, divisor = (walk.bounds[p] for p in parts)
        return plain.meet(max(dividend.lo - divisor.hi + 1, 0), dividend.hi) or plain  # remainder
    return plain


def _floor_multiple(walk: Known, name: str) -> tuple[str, str] | None:
    """x >= 0 and d >= 1 where ``name`` is floor(x/d) * d."""
    product = walk.maker(name)
    if product is None or product.op != "Mul":
        return None
    for quotient, factor in (product.inputs, product.inputs[::-1]):
        division = walk.maker(quotient)
        if division is None or division.op != "Div" or walk.origin(division.inputs[1]) != walk.origin(factor):
            continue
        x, d = division.inputs
        if walk.bounds[x].lo >= 0 and walk.bounds[d].lo >= 1:
            return x, d
    return None


def _divide(walk: Known, op: Op, x: Operands) -> Bound:
    if x[1].lo < 1:
        raise Unproven(f"its divisor may be {x[1].lo}, and must be at least 1")
    if x[0].lo < 0 and (not x[1].is_constant or _low_bits_cleared(walk, walk.maker(op.inputs[0])) != x[1].lo):
        raise Unproven(f"its dividend may be {x[0].lo}, and kernels round a negative quotient as they like")
    return Bound(x[0].lo // x[1].hi, x[0].hi // x[1].lo, x[0].dtype)


def _low_bits_cleared(walk: Known, op: Op | None) -> int | None:
    """2^k where ``op`` is x - (x & 2^k-1)."""
    low = walk.maker(op.inputs[1]) if op is not None and op.op == "Sub" else None
    if op is None or low is None or low.op != "BitwiseAnd":
        return None
    for x, mask in (low.inputs, low.inputs[::-1]):
        unit = walk.bounds[mask].lo + 1
        if x == op.inputs[0] and walk.bounds[mask].is_constant and unit >= 1 and unit & (unit - 1) == 0:
            return unit
    return None


def _negate(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(-x[0].hi, -x[0].lo, x[0].dtype, x[0].peak)


def _absolute(walk: Known, op: Op, x: Operands) -> Bound:
    least = 0 if x[0].lo <= 0 <= x[0].hi else min(abs(x[0].lo), abs(x[0].hi))
    return Bound(least, x[0].magnitude, x[0].dtype, x[0].peak)


def _maximum(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(max(b.lo for b in x), max(b.hi for b in x), x[0].dtype)


def _minimum(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(min(b.lo for b in x), min(b.hi for b in x), x[0].dtype)


def _clip(walk: Known, op: Op, x: Operands) -> Bound:
    """Min(Max(x, least), greatest)."""
    return _minimum(walk, op, [_maximum(walk, op, x[:2]), x[2]])


def _bitwise_and(walk: Known, op: Op, x: Operands) -> Bound:
    if all(b.is_constant for b in x):
        return Bound(x[0].lo & x[1].lo, x[0].lo & x[1].lo, x[0].dtype)
    masks = [b.hi for b in x if b.lo >= 0]
    if masks:
        return Bound(0, min(masks), x[0].dtype)
    width = max(b.magnitude.bit_length() for b in x)
    return Bound(-(2**width), 2**width - 1, x[0].dtype)


def _bitwise_xor(walk: Known, op: Op, x: Operands) -> Bound:
    """Of bits: with 128 it adds 128 to the int8 number, which makes it the uint8 of zero point 128."""
    if x[0].dtype == T.UINT8 and x[1].lo == x[1].hi == 128:
        lo, hi = as_int8(x[0])
        return Bound(lo + 128, hi + 128, T.UINT8)
    if min(b.lo for b in x) < 0 or any(b.bits for b in x):
        raise Unproven("combines the bits of negative numbers, which has no bound here")
    return Bound(0, 2 ** max(b.hi.bit_length() for b in x) - 1, x[0].dtype)


def _range(walk: Known, op: Op, x: Operands) -> Bound:
    start, stop, step = x
    if not step.is_constant or step.lo < 1:
        raise Unproven("counts by other than a positive constant")
    return Bound(start.lo, max(stop.hi - 1, start.lo), start.dtype)


# -- conditions and choices -----------------------------------------------------------------------------------------------


def _truth(never: bool, always: bool) -> Bound:
    return Bound(int(always), int(not never), T.BOOL)


def _greater(walk: Known, op: Op, x: Operands) -> Bound:
    return _truth(x[0].hi <= x[1].lo, x[0].lo > x[1].hi)


def _greater_or_equal(walk: Known, op: Op, x: Operands) -> Bound:
    return _truth(x[0].hi < x[1].lo, x[0].lo >= x[1].hi)


def _less(walk: Known, op: Op, x: Operands) -> Bound:
    return _greater(walk, op, x[::-1])


def _less_or_equal(walk: Known, op: Op, x: Operands) -> Bound:
    return _greater_or_equal(walk, op, x[::-1])


def _equal(walk: Known, op: Op, x: Operands) -> Bound:
    apart = x[0].hi < x[1].lo or x[1].hi < x[0].lo
    return _truth(apart, x[0].is_constant and x[0][:2] == x[1][:2])


def _and(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(min(b.lo for b in x), min(b.hi for b in x), T.BOOL)


def _or(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(max(b.lo for b in x), max(b.hi for b in x), T.BOOL)


def _not(walk: Known, op: Op, x: Operands) -> Bound:
    return Bound(1 - x[0].hi, 1 - x[0].lo, T.BOOL)


def _where(walk: Known, op: Op, x: Operands) -> Bound:
    """Choice."""
    branches = []
    for truth, name in ((True, op.inputs[1]), (False, op.inputs[2])):
        assumed = walk.assume(op.inputs[0], truth)
        branch = None if assumed is None else walk.under(name, assumed)
        if branch is not None:
            branches.append(branch._replace(peak=0))
    return hull(branches) if branches else hull(x[1:])


def _cast(walk: Known, op: Op, x: Operands) -> Bound:
    """Between int8 and uint8 it keeps the bits; else the numbers, which must fit."""
    source, target = x[0], op.attrs["to"]
    if target == T.BOOL:
        return Bound(int(source.lo > 0 or source.hi < 0), int(source.lo != 0 or source.hi != 0), T.BOOL)
    if target not in LIMITS:
        raise Unproven(f"makes {T.DataType.Name(target)}, and only integers have a range")
    if (source.dtype, target) == (T.INT8, T.UINT8) and source.lo < 0:
        return Bound(0, 255, T.UINT8, 0, (source.lo, source.hi))
    if (source.dtype, target) == (T.UINT8, T.INT8) and source.bits:
        return Bound(*source.bits, T.INT8)
    if source.bits:
        raise Unproven("reads the bits of int8 numbers as unsigned ones")
    return Bound(source.lo, source.hi, target, source.peak)


# -- moving elements, tables, reductions ----------------------------------------------------------------------------------


def _same(walk: Known, op: Op, x: Operands) -> Bound:
    return x[0]._replace(peak=0)


def _identity(walk: Known, op: Op, x: Operands) -> Bound:
    return x[0]


def _concat(walk: Known, op: Op, x: Operands) -> Bound:
    return hull([b._replace(peak=0) for b in x])


def _pad(walk: Known, op: Op, x: Operands) -> Bound:
    padding = x[2] if len(x) > 2 else Bound(0, 0, x[0].dtype)
    return hull([x[0]._replace(peak=0), padding])


def _gather(walk: Known, op: Op, x: Operands) -> Bound:
    table, size = walk.constants.get(op.inputs[0]), walk.shape(op.inputs[0])[op.attrs.get("axis", 0)]
    if x[1].lo < 0 or isinstance(size, str) or x[1].hi >= size:
        raise Unproven(f"its index may be {x[1].lo}..{x[1].hi}, and its table has {size} entries")
    return x[0]._replace(peak=0) if table is None or table.ndim != 1 else of_array(table[x[1].lo : x[1].hi + 1])


def _reduced(walk: Known, op: Op) -> list[int]:
    """The axes that a reduction runs over, from 0."""
    rank = len(walk.shape(op.inputs[0]))
    if len(op.inputs) < 2 or not op.inputs[1]:
        return list(range(rank))
    axes = walk.constants.get(op.inputs[1])
    if axes is None:
        raise Unproven("reduces over axes that are not constant")
    return [int(a) % rank for a in axes.ravel()]


def _reduce_max(walk: Known, op: Op, x: Operands) -> Bound:
    is_total = len(_reduced(walk, op)) == len(walk.shape(op.inputs[0]))
    if walk.elementwise and is_total:
        raise Unproven("reduces over elements that were told apart")
    attained = is_total and x[0].lo >= 0
    return Bound(max(x[0].lo, x[0].peak) if attained else x[0].lo, x[0].hi, x[0].dtype)


def _reduce_min(walk: Known, op: Op, x: Operands) -> Bound:
    if walk.elementwise and len(_reduced(walk, op)) == len(walk.shape(op.inputs[0])):
        raise Unproven("reduces over elements that were told apart")
    return x[0]._replace(peak=0)


def _reduce_sum(walk: Known, op: Op, x: Operands) -> Bound:
    axes, shape = _reduced(walk, op), walk.shape(op.inputs[0])
    counted = _count(walk, op, axes)
    if counted:
        return Bound(*counted, x[0].dtype)
    sizes = [shape[a] for a in axes]
    if any(isinstance(s, str) for s in sizes):
        raise Unproven(f"adds over a dimension of unknown size {next(s for s in sizes if isinstance(s, str))!r}")
    number = math.prod(s for s in sizes if not isinstance(s, str))
    _held(x[0], number, EXACT_SUMS.get(x[0].dtype, 0), "sum")
    return Bound(number * x[0].lo, number * x[0].hi, x[0].dtype)


def _count(walk: Known, op: Op, axes: list[int]) -> tuple[int, int] | None:
    """How many entries of a table x reaches, where ``op`` adds x >= table over the table's axis."""
    compared = walk.maker(walk.origin(op.inputs[0]))
    if compared is None or compared.op != "GreaterOrEqual":
        return None
    x, table = walk.bounds[compared.inputs[0]], walk.constants.get(compared.inputs[1])
    shape = walk.shape(compared.inputs[0])
    if table is None or table.ndim != 1 or shape[-1:] not in ((), (1,)) or axes != [max(len(shape), 1) - 1]:
        return None
    return int((table <= x.lo).sum()), int((table <= x.hi).sum())


def _arg_max(walk: Known, op: Op, x: Operands) -> Bound:
    size = walk.shape(op.inputs[0])[op.attrs.get("axis", 0)]
    return Bound(0, size - 1 if isinstance(size, int) else 2**31 - 1, T.INT64)


# -- products -------------------------------------------------------------------------------------------------------------


def _convolution(walk: Known, op: Op, x: Operands) -> Bound:
    """Of the weights [O, C/G, KH, KW], an output sees those of one channel: its group's inputs only."""
    return _product(x, walk.shape(op.inputs[1])[1:])


def _matrix_product(walk: Known, op: Op, x: Operands) -> Bound:
    return _product(x, walk.shape(op.inputs[0])[-1:])


def _product(x: Operands, inner: tuple[int | str, ...]) -> Bound:
    """Sums of as many products as ``inner`` holds; where a window overlaps padding, of fewer."""
    if any(isinstance(size, str) for size in inner):
        raise Unproven(f"multiplies over an inner dimension of unknown size {inner}")
    if x[0].dtype == T.UINT8 and x[1].dtype == T.INT8 and x[0].hi > PAIRED_LIMIT:
        raise Unproven(f"its uint8 operand may be {x[0].hi} beside int8, and is inexact beyond {PAIRED_LIMIT} without VNNI")
    zero = Bound(0, 0, x[0].dtype)
    a, b = ((p.lo - z.hi, p.hi - z.lo) for p, z in zip(x[:2], [*x[2:], zero, zero], strict=False))
    corners = [p * q for p in a for q in b]
    number = math.prod(size for size in inner if not isinstance(size, str))
    one = Bound(min(*corners, 0), max(*corners, 0), T.INT32)
    _held(one, number, ACCUMULATOR, "accumulator")
    return Bound(number * one.lo, number * one.hi, T.INT32)


def _held(term: Bound, number: int, limit: int, what: str) -> None:
    """Hold every partial sum of ``number`` terms to ``limit``."""
    if number * term.magnitude > limit:
        raise Unproven(f"its {what} of {number} terms may reach {number * term.magnitude}, and is exact up to {limit}")


def _quantized_product(walk: Known, op: Op, x: Operands) -> Bound:
    """An int32 sum of products and a bias, scaled and saturated. ``x`` has no scales: x, zero point, w, zero point, ..."""
    bias = x[5] if op.op == "QLinearConv" else x[4]
    total = _product([x[0], x[2], x[1], x[3]], walk.shape(op.inputs[3])[1:])
    _held(Bound(0, total.magnitude + bias.magnitude, T.INT32), 1, ACCUMULATOR, "accumulator")
    return whole(x[1].dtype)


def _saturated(walk: Known, op: Op, x: Operands) -> Bound:
    return whole(x[0].dtype)


TRANSFER: dict[str, Transfer] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Neg": _negate,
    "Abs": _absolute,
    "Max": _maximum,
    "Min": _minimum,
    "Clip": _clip,
    "BitwiseAnd": _bitwise_and,
    "BitwiseXor": _bitwise_xor,
    "Range": _range,
    "Greater": _greater,
    "GreaterOrEqual": _greater_or_equal,
    "Less": _less,
    "LessOrEqual": _less_or_equal,
    "Equal": _equal,
    "And": _and,
    "Or": _or,
    "Not": _not,
    "Where": _where,
    "Cast": _cast,
    **dict.fromkeys(["Reshape", "Flatten", "Transpose", "Slice", "Unsqueeze", "Expand", "MaxPool"], _same),
    "Identity": _identity,
    "Concat": _concat,
    "Pad": _pad,
    "Gather": _gather,
    "ReduceMax": _reduce_max,
    "ReduceMin": _reduce_min,
    "ReduceSum": _reduce_sum,
    "ArgMax": _arg_max,
    "ConvInteger": _convolution,
    "MatMulInteger": _matrix_product,
    **dict.fromkeys(["QLinearConv", "QGemm"], _quantized_product),
    **dict.fromkeys(["QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu"], _saturated),
}
ELEMENTWISE = frozenset(["Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "BitwiseAnd", "BitwiseXor", "Cast"])
CAN_GROW = frozenset(["Add", "Sub", "Mul", "Neg", "Abs", "ReduceSum", "ConvInteger", "MatMulInteger"])  # beyond its operands
MOVES = ["Reshape", "Flatten", "Transpose", "Slice", "Unsqueeze", "Expand", "Identity", "Concat", "Pad"]
READS_BITS = frozenset([*MOVES, "BitwiseXor", "Cast", "Where"])  # what may take the bits of int8 numbers as uint8

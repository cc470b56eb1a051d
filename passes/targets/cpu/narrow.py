"""Weight gradients in int32 where weight decay leaves them that small, which a comparison of one exponent says at run time.

The canonical step holds gradient plus decay in int64, since the exponent of the error may be anything. In training it hardly ever
is so small that decay is shifted by less than 17; for the steps in which it is, the canonical nodes stay in the other branch of
an If.
"""

from __future__ import annotations

import onnx

from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.cpu.halves import HIGH, LOW, REACH, halves, with_halves
from wageubn_onnx.quantizers import tables
from wageubn_onnx.quantizers.text import function

LIMIT = 1_500_000_000  # |gradient + decay|: below 2^30.5, so that its range is at most 2^30 and no sum below passes 2^31
LEAST = 17  # the shortest shift of a decay
DEEPEST = 45  # a longer shift of a decay gives 0, as this one does
LARGEST = 2**15  # factors of a decay are below

_THRESHOLDS = [t for t in tables.WIDE_THRESHOLDS if t < 2**31]
# w * factor / 2^shift is half an odd number where w is: with shift = 16 + steps, where low is 0 and the upper half, signed, is
# 2^(steps-1) times an odd number. Times 2^(7-steps), in 8 bits, that is 64 or 192, of which one is rounded up.
_TIES = [0] + [2 ** (7 - steps) for steps in range(1, 8)] + [0] * (DEEPEST - 16 - 7)


def _table(values: list[int]) -> str:
    return ", ".join(map(str, values))


NARROW = function(
    "ConstantQuantizeNarrow", ("factor", "residue"), "(high, low, dw, shift, dr, random) => (q)",
    # dw, random int32; Sr(dr * x/R), |q| < dr, of x = dw + round(w * factor / 2^shift), 17 <= shift, |x| <= LIMIT, w by its
    # halves, factor odd. The decay is floor((high * factor + floor((low * factor + 2^16-1) / 2^16) + 2^(shift-17) - 1) /
    # 2^(shift-16)), which rounds ties down; low is 1 more where a tie is to go up.
    # With fine = ceil(|x| / 2^(s-16)), the size in 1/2^16 of a unit, q = floor((fine + 2^16-1 - random) / 2^16); the two
    # divisions by powers of two are one.
    f"""
    factor64 = Constant <value_int: int = @factor> ()
    factor = Cast <to: int = 6> (factor64)
    residue64 = Constant <value_int: int = @residue> ()
    residue = Cast <to: int = 2> (residue64)
    deepest = Constant <value: tensor = int32 {{{DEEPEST}}}> ()
    lift = Constant <value: tensor = int32 {{{2**29}}}> ()
    zero = Constant <value: tensor = int32 {{0}}> ()
    one = Constant <value: tensor = int32 {{1}}> ()
    sixteen = Constant <value: tensor = int32 {{16}}> ()
    unit = Constant <value: tensor = int32 {{65536}}> ()
    nearly = Constant <value: tensor = int32 {{65535}}> ()
    middle = Constant <value: tensor = int32 {{128}}> ()
    flip = Constant <value: tensor = uint8 {{128}}> ()
    none = Constant <value: tensor = uint16 {{0}}> ()
    two = Constant <value: tensor = int8 {{2}}> ()
    plus = Constant <value: tensor = int8 {{1}}> ()
    powers = Constant <value: tensor = int32[{len(tables.POWERS)}] {{{_table(tables.POWERS)}}}> ()
    ties = Constant <value: tensor = uint8[{len(_TIES)}] {{{_table(_TIES)}}}> ()
    limits = Constant <value: tensor = int32[{len(_THRESHOLDS)}] {{{_table(_THRESHOLDS)}}}> ()
    ranges = Constant <value: tensor = int32[7] {{2, 4, 8, 16, 32, 64, 128}}> ()
    near = Min (shift, deepest)
    steps = Sub (near, sixteen)
    fewer = Sub (steps, one)
    decay_unit = Gather (powers, steps)
    half = Gather (powers, fewer)
    tie_factor = Gather (ties, steps)
    signed_high = Add (high, flip)
    scaled_high = Mul (signed_high, tie_factor)
    is_residue = Equal (scaled_high, residue)
    is_whole = Equal (low, none)
    is_up = And (is_residue, is_whole)
    up8 = Cast <to: int = 2> (is_up)
    up16 = Cast <to: int = 4> (up8)
    raised_low = Add (low, up16)
    low32 = Cast <to: int = 6> (raised_low)
    low_product = Mul (low32, factor)
    low_raised = Add (low_product, nearly)
    below = Div (low_raised, unit)
    high32 = Cast <to: int = 6> (high)
    high_product = Mul (high32, factor)
    centre = Mul (factor, middle)
    from_centre = Sub (lift, centre)
    nearly_half = Sub (half, one)
    base = Add (from_centre, nearly_half)
    high_raised = Add (high_product, base)
    sum = Add (high_raised, below)
    lifted_decay = Div (sum, decay_unit)
    offset = Div (lift, decay_unit)
    decay = Sub (lifted_decay, offset)
    x = Add (dw, decay)
    size = Abs (x)
    greatest = ReduceMax <keepdims: int = 0> (size)
    reached = GreaterOrEqual (greatest, limits)
    ones = Cast <to: int = 6> (reached)
    log = ReduceSum <keepdims: int = 0> (ones)
    within = GreaterOrEqual (dr, ranges)
    bits = Cast <to: int = 6> (within)
    dr_log = ReduceSum <keepdims: int = 0> (bits)
    s = Sub (log, dr_log)
    fine_shift = Sub (s, sixteen)
    minus = Sub (zero, fine_shift)
    left = Max (minus, zero)
    right = Max (fine_shift, zero)
    by = Gather (powers, left)
    fine_unit = Gather (powers, right)
    divisor = Mul (fine_unit, unit)
    most = Sub (divisor, one)
    chance = Mul (random, fine_unit)
    scaled = Mul (size, by)
    raised = Add (scaled, most)
    numerator = Sub (raised, chance)
    kept = Div (numerator, divisor)
    kept8 = Cast <to: int = 2> (kept)
    limit = Sub (dr, one)
    limit8 = Cast <to: int = 2> (limit)
    bounded = Min (kept8, limit8)
    bounded8 = Cast <to: int = 3> (bounded)
    is_negative = Less (x, zero)
    negative = Cast <to: int = 3> (is_negative)
    twice = Mul (negative, two)
    sign = Sub (plus, twice)
    q = Mul (bounded8, sign)
    """,
)  # fmt: skip


def narrow_gradients(edit: Edit) -> None:
    """The same gradients; where a sum of products may pass the limit by itself, the nodes stay as they are."""
    small = with_halves(edit.model)
    found = False
    for node in edit.nodes:
        if node.op_type == "ConstantQuantizeStochastic":
            found |= _narrowed(edit, node, small)
    if found:
        edit.functions([HIGH, LOW, NARROW])


def _narrowed(edit: Edit, node: onnx.NodeProto, small: set[str]) -> bool:
    """Whether ``node`` quantizes int32 products plus the decay of a state, and is an If now."""
    total = edit.maker(node.input[0], "Add")
    wide = edit.maker(total.input[0], "Cast") if total is not None else None
    decay = edit.maker(total.input[1], "DirectQuantizeWide") if total is not None else None
    scaled = edit.maker(decay.input[0], "Mul") if decay is not None else None
    if total is None or wide is None or decay is None or scaled is None or edit.dtype(wide.input[0]) != onnx.TensorProto.INT32:
        return False
    if any(len(edit.readers[n.output[0]]) > 1 for n in (total, decay)):
        return False  # health counters, which want these numbers
    weight, factor = (edit.maker(name, "Cast") for name in scaled.input)
    bound = _products(edit, wide.input[0])
    times = edit.scalar(factor.input[0]) if factor is not None else None
    if weight is None or not times or bound is None or weight.input[0] not in small:
        return False
    twos = (times & -times).bit_length() - 1
    odd = times >> twos
    if not 0 < odd < LARGEST or bound + (REACH * odd >> LEAST) + 1 > LIMIT:
        return False
    shift = decay.input[1]
    if twos:
        shift = edit.before(node, "Sub", [shift, edit.put(twos, "int32")])
    passed = {"factor": odd, "residue": 64 if odd % 4 == 3 else 192}
    operands = [*halves(edit, node, weight.input[0]), wide.input[0], shift, *node.input[1:]]
    is_small = edit.before(node, "GreaterOrEqual", [shift, edit.put(LEAST, "int32")])
    edit.choose(node, is_small, f"wageubn.{NARROW.name}", operands, **passed)
    return True


def _products(edit: Edit, name: str) -> int | None:
    """A bound of the sums of products that ``name`` holds."""
    maker = edit.maker(name)
    while maker is not None and maker.op_type in ("Reshape", "Transpose"):
        maker = edit.maker(maker.input[0])
    if maker is None or maker.op_type != "MatMulInteger":
        return None
    sides = [
        128
        if edit.scalar(maker.input[2 + i]) or edit.dtype(maker.input[i]) == onnx.TensorProto.INT8
        else edit.bound(maker.input[i]) or 255
        for i in range(2)
    ]
    return edit.shape(maker.input[0])[-1] * sides[0] * sides[1]

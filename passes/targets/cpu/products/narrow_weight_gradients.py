"""Weight gradients in int32 where weight decay leaves them that small, which a comparison of one exponent says at run time.

    ConstantQuantizeStochastic(Cast(gradient, int64) + DirectQuantizeWide(w * factor, shift), ...)
    ->  If(shift >= 17, ConstantQuantizeNarrow(HighHalf(w), LowHalf(w), gradient, shift, ...), as before)

The canonical step holds gradient plus decay in int64, since the exponent of the error may be anything. In training it hardly ever
is so small that decay is shifted by less than 17; for the steps in which it is, the canonical nodes stay in the other branch of
an If.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.composites import kind_of
from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.trace import (
    Int32,
    Uint8,
    Uint16,
    Value,
    cast,
    equal,
    function,
    gather,
    maximum,
    minimum,
    reduce_max,
)
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.products.int8_images import WEIGHT_GRADIENTS
from wageubn_onnx.passes.targets.cpu.products.split_weights_high_low import HIGH, LOW, REACH, halves, with_halves
from wageubn_onnx.quantizers.integer import LIFT, POWERS, RANGES, WIDE_THRESHOLDS, reached

T = onnx.TensorProto
LIMIT = 1_500_000_000  # |gradient + decay|: below 2^30.5, so that its range is at most 2^30 and no sum below passes 2^31
LEAST = 17  # the shortest shift of a decay
DEEPEST = 45  # a longer shift of a decay gives 0, as this one does
LARGEST = 2**15  # factors of a decay are below

THRESHOLDS = WIDE_THRESHOLDS[WIDE_THRESHOLDS < 2**31].astype(np.int32)
# w * factor / 2^shift is half an odd number where w is: with shift = 16 + steps, where low is 0 and the upper half, signed, is
# 2^(steps-1) times an odd number. Times 2^(7-steps), in 8 bits, that is 64 or 192, of which one is rounded up.
TIES = np.array([0, *(2 ** (7 - steps) for steps in range(1, 8)), *[0] * (DEEPEST - 16 - 7)], np.uint8)


def _decay(high: Value, low: Value, shift: Value, factor: Value, residue: Value) -> Value:
    """round(w * factor / 2^shift), w by its halves, factor odd, 17 <= shift.

    floor((high * factor + floor((low * factor + 2^16-1) / 2^16) + 2^(shift-17) - 1) / 2^(shift-16)) rounds ties down; low is 1
    more where a tie is to go up.
    """
    steps = minimum(shift, DEEPEST) - 16
    unit, half = gather(POWERS, steps), gather(POWERS, steps - 1)
    scaled_high = (high + 128) * gather(TIES, steps)
    is_up = equal(scaled_high, residue) & equal(low, 0)
    raised_low = low + cast(cast(is_up, np.uint8), np.uint16)
    below = (cast(raised_low, np.int32) * factor + (2**16 - 1)) // 2**16
    base = LIFT - factor * 128 + (half - 1)
    lifted = cast(high, np.int32) * factor + base + below
    return lifted // unit - LIFT // unit


@function("ConstantQuantizeNarrow", "q")
def NARROW(
    high: Uint8, low: Uint16, dw: Int32, shift: Int32, dr: Int32, random: Int32, *, factor: Int32, residue: Uint8
) -> Value:
    """q = Sr(dr * x/R), |q| < dr, int8, of x = dw + round(w * factor / 2^shift), w by its halves; |x| <= `LIMIT`. See `_decay`.

    With fine = ceil(|x| / 2^(s-16)), the size in 1/2^16 of a unit, |q| = floor((fine + 2^16-1 - random) / 2^16); the two
    divisions by powers of two are one.
    """
    x = dw + _decay(high, low, shift, factor, residue)
    size = abs(x)
    greatest = reduce_max(size, keepdims=0)
    fine_shift = reached(greatest, THRESHOLDS) - reached(dr, RANGES) - 16
    by, fine_unit = gather(POWERS, maximum(0 - fine_shift, 0)), gather(POWERS, maximum(fine_shift, 0))
    divisor = fine_unit * 2**16
    chance = random * fine_unit
    kept = (size * by + (divisor - 1) - chance) // divisor
    bounded = minimum(cast(kept, np.uint8), cast(dr - 1, np.uint8))
    sign = 1 - cast(x < 0, np.int8) * 2
    return cast(bounded, np.int8) * sign


def narrow_weight_gradients(edit: Edit) -> None:
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
    """A bound of the sums of products that ``name``, a weight gradient, holds."""
    call = edit.maker(name)
    if call is None or kind_of(call.op_type) not in WEIGHT_GRADIENTS:
        return None
    x, dy = call.input
    positions = edit.shape(dy)[0] * math.prod(edit.shape(dy)[2:])
    return positions * math.prod(128 if edit.dtype(side) == T.INT8 else edit.bound(side) or 255 for side in (x, dy))


PASS = Form(
    "narrow-weight-gradients",
    "gradient plus weight decay in int32 where one exponent says that it fits",
    narrow_weight_gradients,
    needs=(Kernel.UNSIGNED,),
)

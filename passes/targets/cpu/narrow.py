"""Weight gradients in int32 where weight decay leaves them that small, which a comparison of one exponent says at run time.

The canonical step holds gradient plus decay in int64, since the exponent of the error may be anything. In training it never is
so small that decay needs more than 32 bits; for the steps in which it is, the canonical nodes stay in the other branch of an If.
"""

from __future__ import annotations

import json

import onnx

from wageubn_onnx.graph import PREFIX
from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.quantizers import tables
from wageubn_onnx.quantizers.text import function

LIMIT = 1_500_000_000  # |gradient + decay|: below 2^30.5, so that its range is at most 2^30 and no sum below passes 2^31
DEEPEST = 50  # a longer shift of a decay below 2^50 gives 0, as this one does

_THRESHOLDS = [t for t in tables.WIDE_THRESHOLDS if t < 2**31]

NARROW = function(
    "ConstantQuantizeNarrow", ("factor",), "(w, dw, shift, dr, random) => (q)",
    # w, dw, random int32; Sr(dr * x/R), |q| < dr, of x = dw + round(w * factor / 2^shift), 1 <= shift, |x| <= LIMIT.
    # With fine = ceil(|x| / 2^(s-16)), the size in 1/2^16 of a unit, q = floor((fine + 2^16-1 - random) / 2^16); the two
    # divisions by powers of two are one.
    f"""
    factor = Constant <value_int: int = @factor> ()
    deepest = Constant <value: tensor = int32 {{{DEEPEST}}}> ()
    bias64 = Constant <value: tensor = int64 {{{2**52}}}> ()
    one64 = Constant <value: tensor = uint64 {{1}}> ()
    zero = Constant <value: tensor = int32 {{0}}> ()
    one = Constant <value: tensor = int32 {{1}}> ()
    sixteen = Constant <value: tensor = int32 {{16}}> ()
    unit = Constant <value: tensor = int32 {{65536}}> ()
    powers = Constant <value: tensor = int32[{len(tables.POWERS)}] {{{", ".join(map(str, tables.POWERS))}}}> ()
    limits = Constant <value: tensor = int32[{len(_THRESHOLDS)}] {{{", ".join(map(str, _THRESHOLDS))}}}> ()
    ranges = Constant <value: tensor = int32[7] {{2, 4, 8, 16, 32, 64, 128}}> ()
    w64 = Cast <to: int = 7> (w)
    product = Mul (w64, factor)
    lifted64 = Add (product, bias64)
    lifted = Cast <to: int = 13> (lifted64)
    near = Min (shift, deepest)
    amount = Cast <to: int = 13> (near)
    before = Sub (amount, one64)
    half = BitShift <direction: string = "LEFT"> (one64, before)
    nearly = Sub (half, one64)
    whole64 = BitShift <direction: string = "RIGHT"> (lifted, amount)
    parity64 = BitwiseAnd (whole64, one64)
    b64 = Add (lifted, nearly)
    c64 = Add (b64, parity64)
    r64 = BitShift <direction: string = "RIGHT"> (c64, amount)
    biasu = Cast <to: int = 13> (bias64)
    offsetu = BitShift <direction: string = "RIGHT"> (biasu, amount)
    offset = Cast <to: int = 7> (offsetu)
    rounded = Cast <to: int = 7> (r64)
    decay64 = Sub (rounded, offset)
    decay = Cast <to: int = 6> (decay64)
    x = Add (dw, decay)
    size = Abs (x)
    greatest = ReduceMax <keepdims: int = 0> (size)
    reached = GreaterOrEqual (greatest, limits)
    ones = Cast <to: int = 6> (reached)
    log = ReduceSum <keepdims: int = 0> (ones)
    within = GreaterOrEqual (dr, ranges)
    steps = Cast <to: int = 6> (within)
    dr_log = ReduceSum <keepdims: int = 0> (steps)
    s = Sub (log, dr_log)
    fine_shift = Sub (s, sixteen)
    minus = Sub (zero, fine_shift)
    left = Max (minus, zero)
    right = Max (fine_shift, zero)
    up = Gather (powers, left)
    fine_unit = Gather (powers, right)
    divisor = Mul (fine_unit, unit)
    most = Sub (divisor, one)
    chance = Mul (random, fine_unit)
    scaled = Mul (size, up)
    raised = Add (scaled, most)
    numerator = Sub (raised, chance)
    kept = Div (numerator, divisor)
    limit = Sub (dr, one)
    bounded = Min (kept, limit)
    sign = Sign (x)
    signed = Mul (bounded, sign)
    q = Cast <to: int = 3> (signed)
    """,
)  # fmt: skip


def narrow_gradients(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same gradients; where a sum of products may pass the limit by itself, the nodes stay as they are."""
    edit = Edit(model, "narrow-gradients")
    ranges = json.loads(next((p.value for p in model.metadata_props if p.key == PREFIX + "ranges"), "{}"))
    found = False
    for node in model.graph.node:
        if node.op_type == "ConstantQuantizeStochastic":
            found |= _narrowed(edit, node, ranges)
    if found:
        edit.functions([NARROW])
    return edit.done()


def _narrowed(edit: Edit, node: onnx.NodeProto, ranges: dict[str, list[int]]) -> bool:
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
    if weight is None or times is None or bound is None or weight.input[0] not in ranges:
        return False
    reach = max(map(abs, ranges[weight.input[0]])) * times
    least = next((s for s in range(1, DEEPEST) if bound + (reach >> s) + 1 <= LIMIT), None)
    if least is None or reach >= 2**DEEPEST:
        return False
    operands = [weight.input[0], wide.input[0], decay.input[1], *node.input[1:]]
    own = [n for n in (weight, scaled, wide) if len(edit.readers[n.output[0]]) == 1]  # of no use but to the canonical nodes
    is_small = edit.before(node, "GreaterOrEqual", [decay.input[1], edit.put(least, "int32")])
    edit.choose(node, is_small, ("wageubn.ConstantQuantizeNarrow", operands, {"factor": times}), [*own, decay, total, node])
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

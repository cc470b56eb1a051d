"""The same quantizers on integer mantissas: the functions that `int_training` calls, under the same names.

Rounding is half to even throughout, by one identity for divisors d >= 1 and a >= 0:

    round(a / d) = floor((2a + d - 1 + (floor(a/d) mod 2)) / 2d)

(2a + d - 1 reaches the next multiple of 2d exactly above a tie; the parity of the quotient decides the tie.) Mantissas are made
non-negative first, because ONNX leaves the rounding of a negative quotient to its kernels. Shift amounts are clamped into 0..30
(int32) or 0..52 (int64), and what a larger right shift would turn to 0 is multiplied by 0. No function adds two numbers that its
stated input bound does not keep in range; `passes/lower` checks those bounds at every call.
"""

from __future__ import annotations

from wageubn_onnx.quantizers import tables
from wageubn_onnx.quantizers.text import function

INT8, UINT8, INT16, INT32, INT64 = 3, 2, 5, 6, 7  # onnx.TensorProto


def _int32(name: str, value: int) -> str:
    return f"{name} = Constant <value: tensor = int32 {{{value}}}> ()\n"


def _int64(name: str, value: int) -> str:
    return f"{name} = Constant <value: tensor = int64 {{{value}}}> ()\n"


def _list(name: str, kind: str, values: list[int]) -> str:
    return f"{name} = Constant <value: tensor = {kind}[{len(values)}] {{{', '.join(map(str, values))}}}> ()\n"


# The saturation bounds of a call, as constants of its body
BOUNDS = """
    least64 = Constant <value_int: int = @least> ()
    least = Cast <to: int = 6> (least64)
    greatest64 = Constant <value_int: int = @greatest> ()
    greatest = Cast <to: int = 6> (greatest64)
    """
WIDE_BOUNDS = """
    least = Constant <value_int: int = @least> ()
    greatest = Constant <value_int: int = @greatest> ()
    """

SHIFT_LIMIT = 28  # |mantissa| < 2^28 on entry to the int32 functions
WIDE_LIMIT = 52  # and < 2^52 to the int64 ones

ROUND_SHIFT = function(
    "RoundShift", (), "(m, shift) => (r)",
    # m int32, |m| < 2^28, |m| * 2^-shift < 2^28 where shift < 0; shift int32; r = round(m / 2^shift)
    _list("powers", "int32", tables.POWERS) + _int32("zero", 0) + _int32("one", 1) + _int32("limit", SHIFT_LIMIT)
    + _int32("deepest", 30) + _int32("bias", 2**29) + _int32("two", 2) + """
    left0 = Sub (zero, shift)
    left1 = Max (left0, zero)
    left = Min (left1, deepest)
    factor0 = Gather (powers, left)
    gone = Greater (shift, limit)
    factor = Where (gone, zero, factor0)
    right0 = Max (shift, zero)
    right = Min (right0, limit)
    divisor = Gather (powers, right)
    double = Mul (divisor, two)
    nearly = Sub (divisor, one)
    offset = Div (bias, divisor)
    scaled = Mul (m, factor)
    a = Add (scaled, bias)
    quotient = Div (a, divisor)
    parity = BitwiseAnd (quotient, one)
    a2 = Add (a, a)
    b = Add (a2, nearly)
    c = Add (b, parity)
    rounded = Div (c, double)
    r = Sub (rounded, offset)
    """,
)  # fmt: skip

ROUND_SHIFT_WIDE = function(
    "RoundShiftWide", (), "(m, shift, limit) => (r)",
    # m int64, |m| < 2^52; r = round(m / 2^shift) as int64, saturated at +-limit (< 2^53)
    _list("powers", "int64", [2**k for k in range(WIDE_LIMIT + 1)]) + _int32("zero32", 0) + _int32("deepest", WIDE_LIMIT)
    + _int64("zero", 0) + _int64("one", 1) + _int64("two", 2) + """
    left0 = Sub (zero32, shift)
    left1 = Max (left0, zero32)
    saturates = Greater (left1, deepest)
    left = Min (left1, deepest)
    factor = Gather (powers, left)
    right0 = Max (shift, zero32)
    right = Min (right0, deepest)
    divisor = Gather (powers, right)
    double = Mul (divisor, two)
    nearly = Sub (divisor, one)
    negative = Less (m, zero)
    minus = Neg (m)
    size0 = Where (negative, minus, m)
    room = Div (limit, factor)
    over0 = Greater (size0, room)
    some = Greater (size0, zero)
    far = And (saturates, some)
    over = Or (over0, far)
    shifts_left = Greater (left1, zero32)
    full = And (over, shifts_left)
    size1 = Where (full, zero, size0)
    a = Mul (size1, factor)
    quotient = Div (a, divisor)
    parity = BitwiseAnd (quotient, one)
    a2 = Add (a, a)
    b = Add (a2, nearly)
    c = Add (b, parity)
    rounded = Div (c, double)
    gone = Greater (shift, deepest)
    kept = Where (gone, zero, rounded)
    beyond0 = Greater (kept, limit)
    beyond = Or (beyond0, full)
    bounded = Where (beyond, limit, kept)
    mirrored = Neg (bounded)
    r = Where (negative, mirrored, bounded)
    """,
)  # fmt: skip

DIRECT = function(
    "DirectQuantize", ("to", "least", "greatest"), "(m, shift) => (q)",
    BOUNDS + """
    r = wageubn.RoundShift (m, shift)
    bounded = Clip (r, least, greatest)
    q = Cast <to: int = @to> (bounded)
    """,
)  # fmt: skip

DIRECT_WIDE = function(
    "DirectQuantizeWide", ("to", "least", "greatest"), "(m, shift) => (q)",
    # m int64, |m| < 2^52; any bounds below 2^53: saturated at the farther of them first, on both sides
    WIDE_BOUNDS + """
    depth = Neg (least)
    deeper = Greater (depth, greatest)
    limit = Where (deeper, depth, greatest)
    r = wageubn.RoundShiftWide (m, shift, limit)
    over = Greater (r, greatest)
    lowered = Where (over, greatest, r)
    under = Less (lowered, least)
    bounded = Where (under, least, lowered)
    q = Cast <to: int = @to> (bounded)
    """,
)  # fmt: skip

DIRECT_RATIO = function(
    "DirectQuantizeRatio", ("to", "least", "greatest"), "(m, divisor) => (q)",
    # m, divisor int32, divisor >= 1: round(m / divisor); (4 * greatest + 5) * divisor < 2^31
    _int32("one", 1) + _int32("two", 2) + BOUNDS + """
    bottom = Mul (least, divisor)
    top = Mul (greatest, divisor)
    m0 = Max (m, bottom)
    m1 = Min (m0, top)
    odd = BitwiseAnd (greatest, one)
    even = Add (greatest, odd)
    lift = Mul (even, divisor)
    double = Mul (divisor, two)
    nearly = Sub (divisor, one)
    a = Add (m1, lift)
    quotient = Div (a, divisor)
    parity = BitwiseAnd (quotient, one)
    a2 = Add (a, a)
    b = Add (a2, nearly)
    c = Add (b, parity)
    rounded = Div (c, double)
    r = Sub (rounded, even)
    q = Cast <to: int = @to> (r)
    """,
)  # fmt: skip

DIRECT_RATIO_WIDE = function(
    "DirectQuantizeRatioWide", ("to", "least", "greatest"), "(m, divisor) => (q)",
    # m, divisor int64, divisor >= 1, |m| < 2^52: round(m / divisor)
    _int64("zero", 0) + _int64("one", 1) + _int64("two", 2) + WIDE_BOUNDS + """
    double = Mul (divisor, two)
    nearly = Sub (divisor, one)
    negative = Less (m, zero)
    minus = Neg (m)
    a = Where (negative, minus, m)
    quotient = Div (a, divisor)
    parity = BitwiseAnd (quotient, one)
    a2 = Add (a, a)
    b = Add (a2, nearly)
    c = Add (b, parity)
    rounded = Div (c, double)
    mirrored = Neg (rounded)
    r = Where (negative, mirrored, rounded)
    over = Greater (r, greatest)
    r1 = Where (over, greatest, r)
    under = Less (r1, least)
    r2 = Where (under, least, r1)
    q = Cast <to: int = @to> (r2)
    """,
)  # fmt: skip


def _square_root() -> str:
    """floor(sqrt(v)) for 0 <= v < 2^32, bit by bit from the top."""
    lines = [_int64("root16", 0)]
    for bit in reversed(range(16)):
        lines.append(_int64(f"bit{bit}", 2**bit))
        lines.append(
            f"try{bit} = Add (root{bit + 1}, bit{bit})\n"
            f"square{bit} = Mul (try{bit}, try{bit})\n"
            f"fits{bit} = GreaterOrEqual (v, square{bit})\n"
            f"root{bit} = Where (fits{bit}, try{bit}, root{bit + 1})\n"
        )
    return "".join(lines)


DIRECT_ROOT = function(
    "DirectQuantizeRoot", ("to", "least", "greatest"), "(total, count, factor, offset) => (q)",
    # int64; q = round(sqrt(total/count * factor + offset) / 2): the radicand is in quarters of q's unit squared. A tie is an odd
    # root without rest, and goes to the even neighbour. count * factor < 2^52, offset < 2^62; a greater radicand than 2^32 counts
    # as 2^32 - 1, so greatest <= 32767.
    _int64("zero", 0) + _int64("one", 1) + _int64("two", 2) + _int64("most", 2**32 - 1) + WIDE_BOUNDS + """
    whole = Div (total, count)
    covered = Mul (whole, count)
    rest = Sub (total, covered)
    room = Div (most, factor)
    beyond = Greater (whole, room)
    kept = Where (beyond, zero, whole)
    whole_scaled = Mul (kept, factor)
    rest_scaled = Mul (rest, factor)
    rest_whole = Div (rest_scaled, count)
    mean = Add (whole_scaled, rest_whole)
    radicand = Add (mean, offset)
    large0 = Greater (radicand, most)
    large = Or (beyond, large0)
    v = Where (large, most, radicand)
    """ + _square_root() + """
    above = Add (root0, one)
    half_up = Div (above, two)
    covered_rest = Mul (rest_whole, count)
    square = Mul (root0, root0)
    no_rest = Equal (covered_rest, rest_scaled)
    is_square = Equal (square, v)
    is_exact = And (no_rest, is_square)
    odd_root = BitwiseAnd (root0, one)
    odd_up = BitwiseAnd (half_up, one)
    is_odd = Mul (odd_root, odd_up)
    step_back = Where (is_exact, is_odd, zero)
    r = Sub (half_up, step_back)
    over = Greater (r, greatest)
    r1 = Where (over, greatest, r)
    under = Less (r1, least)
    r2 = Where (under, least, r1)
    q = Cast <to: int = @to> (r2)
    """,
)  # fmt: skip

DIRECT_IMAGE = function(
    "DirectQuantizeImage", ("to", "least", "greatest"), "(pixels, factor, offset, shift) => (q)",
    # pixels uint8; round((pixel * factor + offset) / 2^shift), factor and offset int32 [1, C, 1, 1]
    BOUNDS + """
    p = Cast <to: int = 6> (pixels)
    scaled = Mul (p, factor)
    m = Add (scaled, offset)
    r = wageubn.RoundShift (m, shift)
    bounded = Clip (r, least, greatest)
    q = Cast <to: int = @to> (bounded)
    """,
)  # fmt: skip

RANGE = function(
    "PowerOfTwoRange", (), "(m) => (log, greatest)",
    # m int32: round(log2 max|m|), 0 for an all-zero m, and max|m|
    _list("limits", "int32", tables.THRESHOLDS) + """
    size = Abs (m)
    greatest = ReduceMax <keepdims: int = 0> (size)
    reached = GreaterOrEqual (greatest, limits)
    ones = Cast <to: int = 6> (reached)
    log = ReduceSum <keepdims: int = 0> (ones)
    """,
)  # fmt: skip

SHIFT = function(
    "ShiftQuantize", ("to", "least", "greatest", "fraction"), "(m) => (q, shift)",
    BOUNDS + """
    log, greatest_m = wageubn.PowerOfTwoRange (m)
    fraction64 = Constant <value_int: int = @fraction> ()
    fraction = Cast <to: int = 6> (fraction64)
    shift = Sub (log, fraction)
    r = wageubn.RoundShift (m, shift)
    bounded = Clip (r, least, greatest)
    q = Cast <to: int = @to> (bounded)
    """,
)  # fmt: skip

FLAG = function(
    "FlagQuantize", (), "(m) => (high, low, shift)",
    # shift is the low part's; the high part's unit is 2^7 of them. |low| = 128 carries: high is then +-1.
    _int32("seven", 7) + _int32("fourteen", 14) + _int32("carry", 128) + _int32("zero", 0) + _int32("least", -127)
    + _int32("greatest", 127) + """
    log, greatest_m = wageubn.PowerOfTwoRange (m)
    shift = Sub (log, fourteen)
    high_shift = Sub (log, seven)
    coarse = wageubn.RoundShift (m, high_shift)
    bounded = Clip (coarse, least, greatest)
    fine = wageubn.RoundShift (m, shift)
    size = Abs (fine)
    is_high = GreaterOrEqual (size, carry)
    high32 = Where (is_high, bounded, zero)
    low32 = Where (is_high, zero, fine)
    high = Cast <to: int = 3> (high32)
    low = Cast <to: int = 3> (low32)
    """,
)  # fmt: skip

ALIGN = function(
    "AlignQuantize", ("least", "greatest", "fraction"), "(a, a_exponent, b, b_exponent) => (qa, qb, exponent)",
    # an all-zero operand has no say in the common exponent
    _int32("zero", 0) + _int32("far", 4096) + BOUNDS + """
    a_log, a_greatest = wageubn.PowerOfTwoRange (a)
    b_log, b_greatest = wageubn.PowerOfTwoRange (b)
    a_range0 = Add (a_log, a_exponent)
    b_range0 = Add (b_log, b_exponent)
    a_none = Equal (a_greatest, zero)
    b_none = Equal (b_greatest, zero)
    a_out = Sub (b_range0, far)
    a_range = Where (a_none, a_out, a_range0)
    b_out = Sub (a_range0, far)
    b_range = Where (b_none, b_out, b_range0)
    range0 = Max (a_range, b_range)
    none = And (a_none, b_none)
    range = Where (none, a_range0, range0)
    fraction64 = Constant <value_int: int = @fraction> ()
    fraction = Cast <to: int = 6> (fraction64)
    exponent = Sub (range, fraction)
    a_shift = Sub (exponent, a_exponent)
    ra = wageubn.RoundShift (a, a_shift)
    ca = Clip (ra, least, greatest)
    qa = Cast <to: int = 5> (ca)
    b_shift = Sub (exponent, b_exponent)
    rb = wageubn.RoundShift (b, b_shift)
    cb = Clip (rb, least, greatest)
    qb = Cast <to: int = 5> (cb)
    """,
)  # fmt: skip

PAIR = function(
    "GridQuantizePair", ("drop",), "(high, low) => (q)",
    # int32 accumulators of a flag pair's parts: round((128*high + low) / 2^drop) for 1 <= drop <= 6. The high part is then an
    # even multiple of the unit, so the tie rule sees the low part alone.
    _int32("seven", 7) + _list("powers", "int32", tables.POWERS) + """
    drop64 = Constant <value_int: int = @drop> ()
    drop = Cast <to: int = 6> (drop64)
    up = Sub (seven, drop)
    factor = Gather (powers, up)
    raised = Mul (high, factor)
    rounded = wageubn.RoundShift (low, drop)
    q = Add (raised, rounded)
    """,
)  # fmt: skip

CONSTANT = function(
    "ConstantQuantize", (), "(m, dr, random) => (q)",
    # m int64, |m| < 2^52; dr int32, a power of two in 2..128; random int32 of 16 bits. max|m| is found in two 26-bit halves,
    # since int64 maxima beyond 2^31 are wrong in onnxruntime 1.31. The size in 1/2^16 of a unit is rounded up: then its low 16
    # bits exceed the random bits exactly where the true fraction does.
    _list("powers", "int64", [2**k for k in range(53)]) + _list("ranges", "int32", [2, 4, 8, 16, 32, 64, 128])
    + _list("limits", "int64", tables.WIDE_THRESHOLDS)
    + _int64("zero", 0) + _int64("one", 1) + _int64("half", 2**26) + _int64("unit", 2**16) + _int64("low_bits", 2**16 - 1)
    + _int32("zero32", 0) + _int32("sixteen", 16) + """
    negative = Less (m, zero)
    minus = Neg (m)
    size = Where (negative, minus, m)
    top64 = Div (size, half)
    top_part = Mul (top64, half)
    bottom64 = Sub (size, top_part)
    top = Cast <to: int = 6> (top64)
    bottom = Cast <to: int = 6> (bottom64)
    top_greatest = ReduceMax <keepdims: int = 0> (top)
    leads = Equal (top, top_greatest)
    candidates = Where (leads, bottom, zero32)
    bottom_greatest = ReduceMax <keepdims: int = 0> (candidates)
    top_wide = Cast <to: int = 7> (top_greatest)
    bottom_wide = Cast <to: int = 7> (bottom_greatest)
    high_part = Mul (top_wide, half)
    greatest = Add (high_part, bottom_wide)
    reached = GreaterOrEqual (greatest, limits)
    ones = Cast <to: int = 6> (reached)
    log = ReduceSum <keepdims: int = 0> (ones)
    within = GreaterOrEqual (dr, ranges)
    steps = Cast <to: int = 6> (within)
    dr_log = ReduceSum <keepdims: int = 0> (steps)
    gain = Add (sixteen, dr_log)
    shift = Sub (log, gain)
    right0 = Max (shift, zero32)
    divisor = Gather (powers, right0)
    left0 = Sub (zero32, shift)
    left = Max (left0, zero32)
    factor = Gather (powers, left)
    raised = Mul (size, factor)
    nearly = Sub (divisor, one)
    lifted = Add (raised, nearly)
    fine = Div (lifted, divisor)
    whole = Div (fine, unit)
    fraction = BitwiseAnd (fine, low_bits)
    random64 = Cast <to: int = 7> (random)
    up = Greater (fraction, random64)
    carry = Cast <to: int = 7> (up)
    rounded = Add (whole, carry)
    dr64 = Cast <to: int = 7> (dr)
    limit = Sub (dr64, one)
    over = Greater (rounded, limit)
    bounded = Where (over, limit, rounded)
    mirrored = Neg (bounded)
    signed = Where (negative, mirrored, bounded)
    q = Cast <to: int = 3> (signed)
    """,
)  # fmt: skip

EXPONENTIAL = function(
    "ExponentialTable", (), "(t) => (y)",
    # t int32 <= 0 in 1/2^8; y int32 in 1/2^15
    _list("table", "int32", tables.EXP_TABLE) + _list("powers", "int32", tables.POWERS) + _int32("zero", 0)
    + _int32("size", 2**tables.EXP_INDEX) + _int32("deepest", 16) + """
    fall = Sub (zero, t)
    whole = Div (fall, size)
    covered = Mul (whole, size)
    rest = Sub (fall, covered)
    entry = Gather (table, rest)
    shift = Min (whole, deepest)
    divisor = Gather (powers, shift)
    y = Div (entry, divisor)
    """,
)  # fmt: skip

LOGARITHM = function(
    "LogarithmTable", (), "(x) => (y)",
    # x int32 >= 2^15 in 1/2^15; y int32 = log2 x in 1/2^12
    _list("table", "int32", tables.LOG_TABLE) + _list("powers", "int32", tables.POWERS) + _int32("one", 1)
    + _int32("index_bits", tables.LOG_INDEX) + _int32("size", 2**tables.LOG_INDEX)
    + _int32("unit", 2**tables.LOG_FRACTION) + _int32("point", tables.EXP_BITS) + """
    axis = Constant <value_ints: ints = [-1]> ()
    column = Unsqueeze (x, axis)
    reached = GreaterOrEqual (column, powers)
    ones = Cast <to: int = 6> (reached)
    count = ReduceSum <keepdims: int = 0> (ones, axis)
    log = Sub (count, one)
    drop = Sub (log, index_bits)
    divisor = Gather (powers, drop)
    leading = Div (x, divisor)
    index = Sub (leading, size)
    entry = Gather (table, index)
    whole = Sub (log, point)
    scaled = Mul (whole, unit)
    y = Add (scaled, entry)
    """,
)  # fmt: skip

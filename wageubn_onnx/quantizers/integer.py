"""The same quantizers on integer mantissas: the functions that `int_training` calls, under the same names.

A table such as `DIRECT` holds one function a rounding: half_even (ties to even), half_up (ties upward) and, where 16 random bits
an element are at hand, stochastic (on the magnitude). Division rounds half to even by one identity for d >= 1 and a >= 0:

    round(a / d) = floor((2a + d - 1 + (floor(a/d) mod 2)) / 2d)

(2a + d - 1 reaches the next multiple of 2d exactly above a tie; the parity of the quotient decides the tie.) Mantissas are made
non-negative first, because ONNX leaves the rounding of a negative quotient to its kernels. Shift amounts are clamped into 0..30
(int32) or 0..52 (int64), and what a larger right shift would turn to 0 is multiplied by 0. No function adds two numbers that its
stated input bound does not keep in range; `passes/lower` checks those bounds at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from wageubn_onnx.profiles import ROUNDINGS
from wageubn_onnx.quantizers import tables
from wageubn_onnx.quantizers.text import SUFFIX, function

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

# Clip of int64 is wrong beyond 2^31 in onnxruntime, so choices bound it
WIDE_CLIP = """
    over = Greater (r, greatest)
    lowered = Where (over, greatest, r)
    under = Less (lowered, least)
    bounded = Where (under, least, lowered)
    q = Cast <to: int = @to> (bounded)
    """

SHIFT_LIMIT = 28  # |mantissa| < 2^28 on entry to the int32 functions
WIDE_LIMIT = 52  # and < 2^52 to the int64 ones

Variants = dict[str, onnx.FunctionProto]  # by rounding
DETERMINISTIC = ("half_even", "half_up")


def _variants(build: Callable[[str], onnx.FunctionProto], roundings: Sequence[str] = ROUNDINGS) -> Variants:
    return {rounding: build(rounding) for rounding in roundings}


def _random(rounding: str) -> str:
    """The last operand of a stochastic function."""
    return ", random" if rounding == "stochastic" else ""


def _round_shift(rounding: str) -> onnx.FunctionProto:
    """r = round(m / 2^shift); m int32, |m| < 2^28, |m| * 2^-shift < 2^28 where shift < 0; shift int32, one or one a channel."""
    if rounding == "stochastic":  # 16 bits below the unit count, so it needs int64
        return function(
            "RoundShiftStochastic", (), "(m, shift, random) => (r)",
            _int64("limit", 2**SHIFT_LIMIT) + """
            wide = Cast <to: int = 7> (m)
            rounded = wageubn.RoundShiftWideStochastic (wide, shift, limit, random)
            r = Cast <to: int = 6> (rounded)
            """,
        )  # fmt: skip
    scale = (
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
        offset = Div (bias, divisor)
        scaled = Mul (m, factor)
        """
    )  # fmt: skip
    if rounding == "half_up":
        return function(
            "RoundShiftHalfUp", (), "(m, shift) => (r)",
            scale + """
            half = Div (divisor, two)
            lift = Add (bias, half)
            a = Add (scaled, lift)
            rounded = Div (a, divisor)
            r = Sub (rounded, offset)
            """,
        )  # fmt: skip
    return function(
        "RoundShift", (), "(m, shift) => (r)",
        scale + """
        double = Mul (divisor, two)
        nearly = Sub (divisor, one)
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


ROUND_SHIFT = _variants(_round_shift)

# What the deterministic wide functions share: sizes on the way to 2a, and which of them saturate before they could overflow
_WIDE_SIZE = """
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
    """


def _wide_end(limit: str) -> str:
    """Saturation, and the sign again."""
    return f"""
    beyond0 = Greater (kept, {limit})
    beyond = Or (beyond0, full)
    bounded = Where (beyond, {limit}, kept)
    mirrored = Neg (bounded)
    r = Where (negative, mirrored, bounded)
    """


# c / 2d rounds a / d: up from a tie, where the size is that of a negative number down to it; or to even
_WIDE_ROUND = {
    "half_up": """
    nearly = Sub (divisor, one)
    just = Where (negative, nearly, divisor)
    a2 = Add (a, a)
    c = Add (a2, just)
    """,
    "half_even": """
    nearly = Sub (divisor, one)
    quotient = Div (a, divisor)
    parity = BitwiseAnd (quotient, one)
    a2 = Add (a, a)
    b = Add (a2, nearly)
    c = Add (b, parity)
    """,
}


def _round_shift_wide(rounding: str) -> onnx.FunctionProto:
    """r = round(m / 2^shift) as int64, saturated at +-limit (< 2^53; stochastic: < 2^36); m int64, |m| < 2^52."""
    powers = _list("powers", "int64", [2**k for k in range(WIDE_LIMIT + 1)])
    constants = _int32("zero32", 0) + _int32("deepest", WIDE_LIMIT) + _int64("zero", 0) + _int64("one", 1) + _int64("two", 2)
    if rounding == "stochastic":
        # The size in 1/2^16 of a unit is rounded up: then its low 16 bits exceed the random bits exactly where the true fraction
        # does. A right shift beyond 52 + 16 leaves 1/2^16 of any size, as it should.
        return function(
            "RoundShiftWideStochastic", (), "(m, shift, limit0, random) => (r)",
            powers + constants + _int32("sixteen", 16) + _int64("unit", 2**16) + _int64("low_bits", 2**16 - 1) + """
            fine_shift = Sub (shift, sixteen)
            limit = Mul (limit0, unit)
            left0 = Sub (zero32, fine_shift)
            left1 = Max (left0, zero32)
            saturates = Greater (left1, deepest)
            left = Min (left1, deepest)
            factor = Gather (powers, left)
            right0 = Max (fine_shift, zero32)
            right = Min (right0, deepest)
            divisor = Gather (powers, right)
            nearly = Sub (divisor, one)
            """ + _WIDE_SIZE + """
            lifted = Add (a, nearly)
            fine = Div (lifted, divisor)
            whole = Div (fine, unit)
            fraction = BitwiseAnd (fine, low_bits)
            random64 = Cast <to: int = 7> (random)
            up = Greater (fraction, random64)
            carry = Cast <to: int = 7> (up)
            kept = Add (whole, carry)
            """ + _wide_end("limit0"),
        )  # fmt: skip
    return function(
        f"RoundShiftWide{SUFFIX[rounding]}", (), "(m, shift, limit) => (r)",
        powers + constants + """
        left0 = Sub (zero32, shift)
        left1 = Max (left0, zero32)
        saturates = Greater (left1, deepest)
        left = Min (left1, deepest)
        factor = Gather (powers, left)
        right0 = Max (shift, zero32)
        right = Min (right0, deepest)
        divisor = Gather (powers, right)
        double = Mul (divisor, two)
        """ + _WIDE_SIZE + _WIDE_ROUND[rounding] + """
        rounded = Div (c, double)
        gone = Greater (shift, deepest)
        kept = Where (gone, zero, rounded)
        """ + _wide_end("limit"),
    )  # fmt: skip


ROUND_SHIFT_WIDE = _variants(_round_shift_wide)


def _direct(rounding: str) -> onnx.FunctionProto:
    return function(
        f"DirectQuantize{SUFFIX[rounding]}", ("to", "least", "greatest"), f"(m, shift{_random(rounding)}) => (q)",
        BOUNDS + f"""
        r = wageubn.RoundShift{SUFFIX[rounding]} (m, shift{_random(rounding)})
        bounded = Clip (r, least, greatest)
        q = Cast <to: int = @to> (bounded)
        """,
    )  # fmt: skip


DIRECT = _variants(_direct)


def _direct_wide(rounding: str) -> onnx.FunctionProto:
    """m int64, |m| < 2^52; any bounds below 2^53: saturated at the farther of them first, on both sides."""
    return function(
        f"DirectQuantizeWide{SUFFIX[rounding]}", ("to", "least", "greatest"), f"(m, shift{_random(rounding)}) => (q)",
        WIDE_BOUNDS + f"""
        depth = Neg (least)
        deeper = Greater (depth, greatest)
        limit = Where (deeper, depth, greatest)
        r = wageubn.RoundShiftWide{SUFFIX[rounding]} (m, shift, limit{_random(rounding)})
        """ + WIDE_CLIP,
    )  # fmt: skip


DIRECT_WIDE = _variants(_direct_wide)


def _grid(rounding: str) -> onnx.FunctionProto:
    """To a grid found at run time: any shift, one or one a channel; bounds within +-2^15. Saturates before it shifts left."""
    return function(
        f"GridQuantize{SUFFIX[rounding]}", ("to", "least", "greatest"), f"(m, shift{_random(rounding)}) => (q)",
        _list("powers", "int32", tables.POWERS) + _int32("zero", 0) + _int32("farthest", -20) + _int32("most", 2**SHIFT_LIMIT - 1)
        + BOUNDS + f"""
        near = Max (shift, farthest)
        left0 = Sub (zero, near)
        left = Max (left0, zero)
        factor = Gather (powers, left)
        room = Div (most, factor)
        depth = Sub (zero, room)
        m0 = Max (m, depth)
        m1 = Min (m0, room)
        r = wageubn.RoundShift{SUFFIX[rounding]} (m1, near{_random(rounding)})
        bounded = Clip (r, least, greatest)
        q = Cast <to: int = @to> (bounded)
        """,
    )  # fmt: skip


GRID = _variants(_grid)
GRID_BOUND = 2**15


def _direct_ratio(rounding: str) -> onnx.FunctionProto:
    """m, divisor int32, divisor >= 1: round(m / divisor); (4 * greatest + 5) * divisor < 2^31."""
    numerator = {
        "half_even": """
        nearly = Sub (divisor, one)
        quotient = Div (a, divisor)
        parity = BitwiseAnd (quotient, one)
        b = Add (a2, nearly)
        c = Add (b, parity)
        """,
        "half_up": "c = Add (a2, divisor)\n",
    }
    return function(
        f"DirectQuantizeRatio{SUFFIX[rounding]}", ("to", "least", "greatest"), "(m, divisor) => (q)",
        _int32("one", 1) + _int32("two", 2) + BOUNDS + """
        bottom = Mul (least, divisor)
        top = Mul (greatest, divisor)
        m0 = Max (m, bottom)
        m1 = Min (m0, top)
        odd = BitwiseAnd (greatest, one)
        even = Add (greatest, odd)
        lift = Mul (even, divisor)
        double = Mul (divisor, two)
        a = Add (m1, lift)
        a2 = Add (a, a)
        """ + numerator[rounding] + """
        rounded = Div (c, double)
        r = Sub (rounded, even)
        q = Cast <to: int = @to> (r)
        """,
    )  # fmt: skip


DIRECT_RATIO = _variants(_direct_ratio, DETERMINISTIC)


def _direct_ratio_wide(rounding: str) -> onnx.FunctionProto:
    """m, divisor int64, divisor >= 1, |m| < 2^52: round(m / divisor)."""
    return function(
        f"DirectQuantizeRatioWide{SUFFIX[rounding]}", ("to", "least", "greatest"), "(m, divisor) => (q)",
        _int64("zero", 0) + _int64("one", 1) + _int64("two", 2) + WIDE_BOUNDS + """
        double = Mul (divisor, two)
        negative = Less (m, zero)
        minus = Neg (m)
        a = Where (negative, minus, m)
        """ + _WIDE_ROUND[rounding] + """
        rounded = Div (c, double)
        mirrored = Neg (rounded)
        r = Where (negative, mirrored, rounded)
        """ + WIDE_CLIP,
    )  # fmt: skip


DIRECT_RATIO_WIDE = _variants(_direct_ratio_wide, DETERMINISTIC)


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


# v = total/count * factor + offset, rounded down, or most where it is greater; int64, of constants zero and most
RADICAND = """
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
        """


def _direct_root(rounding: str) -> onnx.FunctionProto:
    """q = round(sqrt(total/count * factor + offset) / 2), int64: the radicand is in quarters of q's unit squared.

    A tie is an odd root without rest. count * factor < 2^52, offset < 2^62; a greater radicand than 2^32 counts as 2^32 - 1, so
    greatest <= 32767.
    """
    tie = {
        "half_even": """
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
        """,
        "half_up": "r = Identity (half_up)\n",
    }
    return function(
        f"DirectQuantizeRoot{SUFFIX[rounding]}", ("to", "least", "greatest"), "(total, count, factor, offset) => (q)",
        _int64("zero", 0) + _int64("one", 1) + _int64("two", 2) + _int64("most", 2**32 - 1)
        + WIDE_BOUNDS + RADICAND + _square_root() + """
        above = Add (root0, one)
        half_up = Div (above, two)
        """ + tie[rounding] + """
        """ + WIDE_CLIP,
    )  # fmt: skip


DIRECT_ROOT = _variants(_direct_root, DETERMINISTIC)


def _direct_image(rounding: str) -> onnx.FunctionProto:
    """pixels uint8; round((pixel * factor + offset) / 2^shift), factor and offset int32 [1, C, 1, 1]."""
    return function(
        f"DirectQuantizeImage{SUFFIX[rounding]}", ("to", "least", "greatest"), "(pixels, factor, offset, shift) => (q)",
        BOUNDS + f"""
        p = Cast <to: int = 6> (pixels)
        scaled = Mul (p, factor)
        m = Add (scaled, offset)
        r = wageubn.RoundShift{SUFFIX[rounding]} (m, shift)
        bounded = Clip (r, least, greatest)
        q = Cast <to: int = @to> (bounded)
        """,
    )  # fmt: skip


DIRECT_IMAGE = _variants(_direct_image, DETERMINISTIC)

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

GUARD = function(
    "GuardExponent", (), "(log, greatest, fraction) => (exponent)",
    # the exponent of a grid R / 2^fraction for R = 2^log, kept within the guard; R of an all-zero tensor counts as 1
    _int32("zero", 0) + _int32("least", tables.RANGE_LEAST) + _int32("most", tables.RANGE_GREATEST) + """
    none = Equal (greatest, zero)
    raised = Max (log, least)
    guarded = Min (raised, most)
    range = Where (none, zero, guarded)
    exponent = Sub (range, fraction)
    """,
)  # fmt: skip

FRACTION = """
    fraction64 = Constant <value_int: int = @fraction> ()
    fraction = Cast <to: int = 6> (fraction64)
    """


def _shift(rounding: str) -> onnx.FunctionProto:
    """m int32 on 2^exponent; q on the grid R / 2^fraction, whose exponent it returns."""
    return function(
        f"ShiftQuantize{SUFFIX[rounding]}", ("to", "least", "greatest", "fraction"),
        f"(m, m_exponent{_random(rounding)}) => (q, exponent)",
        BOUNDS + FRACTION + f"""
        log, greatest_m = wageubn.PowerOfTwoRange (m)
        shift = Sub (log, fraction)
        r = wageubn.RoundShift{SUFFIX[rounding]} (m, shift{_random(rounding)})
        bounded = Clip (r, least, greatest)
        q = Cast <to: int = @to> (bounded)
        range = Add (log, m_exponent)
        exponent = wageubn.GuardExponent (range, greatest_m, fraction)
        """,
    )  # fmt: skip


SHIFT = _variants(_shift)

LIMBS = function(
    "Limbs", (), "(m) => (high, low)",
    # int16 as 2^8 * high + low: high int8, low uint8
    _int32("mask", 255) + _int32("base", 256) + """
    wide = Cast <to: int = 6> (m)
    low32 = BitwiseAnd (wide, mask)
    whole = Sub (wide, low32)
    high32 = Div (whole, base)
    high = Cast <to: int = 3> (high32)
    low = Cast <to: int = 2> (low32)
    """,
)  # fmt: skip


def _flag(rounding: str) -> onnx.FunctionProto:
    """The exponent is the low part's; the high part's unit is 2^7 of that. |low| = 128 carries: high is then +-1."""
    return function(
        f"FlagQuantize{SUFFIX[rounding]}", (), f"(m, m_exponent{_random(rounding)}) => (high, low, exponent)",
        _int32("seven", 7) + _int32("fourteen", 14) + _int32("carry", 128) + _int32("zero", 0) + _int32("least", -127)
        + _int32("greatest", 127) + f"""
        log, greatest_m = wageubn.PowerOfTwoRange (m)
        shift = Sub (log, fourteen)
        high_shift = Sub (log, seven)
        coarse = wageubn.RoundShift{SUFFIX[rounding]} (m, high_shift{_random(rounding)})
        bounded = Clip (coarse, least, greatest)
        fine = wageubn.RoundShift{SUFFIX[rounding]} (m, shift{_random(rounding)})
        size = Abs (fine)
        is_high = GreaterOrEqual (size, carry)
        high32 = Where (is_high, bounded, zero)
        low32 = Where (is_high, zero, fine)
        high = Cast <to: int = 3> (high32)
        low = Cast <to: int = 3> (low32)
        range = Add (log, m_exponent)
        exponent = wageubn.GuardExponent (range, greatest_m, fourteen)
        """,
    )  # fmt: skip


FLAG = _variants(_flag, DETERMINISTIC)


def _align(rounding: str) -> onnx.FunctionProto:
    """Both operands on R / 2^fraction, R the greater of their ranges; an all-zero operand has no say."""
    return function(
        f"AlignQuantize{SUFFIX[rounding]}", ("least", "greatest", "fraction"),
        "(a, a_exponent, b, b_exponent) => (qa, qb, exponent)",
        _int32("zero", 0) + _int32("far", 4096) + BOUNDS + FRACTION + f"""
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
        own = Sub (range, fraction)
        a_shift = Sub (own, a_exponent)
        ra = wageubn.RoundShift{SUFFIX[rounding]} (a, a_shift)
        ca = Clip (ra, least, greatest)
        qa = Cast <to: int = 5> (ca)
        b_shift = Sub (own, b_exponent)
        rb = wageubn.RoundShift{SUFFIX[rounding]} (b, b_shift)
        cb = Clip (rb, least, greatest)
        qb = Cast <to: int = 5> (cb)
        greatest_m = Max (a_greatest, b_greatest)
        exponent = wageubn.GuardExponent (range, greatest_m, fraction)
        """,
    )  # fmt: skip


ALIGN = _variants(_align, DETERMINISTIC)


def _pair(rounding: str) -> onnx.FunctionProto:
    """round((2^base*high + low) / 2^drop) of int32 accumulators of two parts, 1 <= drop < base.

    The high part is then an even multiple of the unit, so the tie rule sees the low part alone.
    """
    return function(
        f"GridQuantizePair{SUFFIX[rounding]}", ("drop", "base"), "(high, low) => (q)",
        _list("powers", "int32", tables.POWERS) + f"""
        drop64 = Constant <value_int: int = @drop> ()
        drop = Cast <to: int = 6> (drop64)
        base64 = Constant <value_int: int = @base> ()
        base = Cast <to: int = 6> (base64)
        up = Sub (base, drop)
        factor = Gather (powers, up)
        raised = Mul (high, factor)
        rounded = wageubn.RoundShift{SUFFIX[rounding]} (low, drop)
        q = Add (raised, rounded)
        """,
    )  # fmt: skip


PAIR = _variants(_pair, DETERMINISTIC)


def _constant(rounding: str) -> onnx.FunctionProto:
    """CQ: round(dr * m/R), |q| < dr; m int64, |m| < 2^52; dr int32, a power of two in 2..128.

    max|m| is found in two 26-bit halves, since int64 maxima beyond 2^31 are wrong in onnxruntime 1.31.
    """
    return function(
        f"ConstantQuantize{SUFFIX[rounding]}", (), f"(m, dr{_random(rounding)}) => (q)",
        _list("ranges", "int32", [2, 4, 8, 16, 32, 64, 128]) + _list("limits", "int64", tables.WIDE_THRESHOLDS)
        + _int64("zero", 0) + _int64("one", 1) + _int64("half", 2**26) + _int32("zero32", 0) + f"""
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
        shift = Sub (log, dr_log)
        dr64 = Cast <to: int = 7> (dr)
        limit = Sub (dr64, one)
        r = wageubn.RoundShiftWide{SUFFIX[rounding]} (m, shift, limit{_random(rounding)})
        q = Cast <to: int = 3> (r)
        """,
    )  # fmt: skip


CONSTANT = _variants(_constant)


def _follow(name: str, reduction: str) -> onnx.FunctionProto:
    """The exponent that a delayed quantizer holds for its next step, from the mantissas that ``held`` gave."""
    return function(
        name, ("greatest", "small", "up", "lowest", "highest"), "(q, held) => (next)",
        _int32("zero", 0) + _int32("two", 2) + _int32("three", 3) + _int32("eight", 8) + reduction + """
        greatest64 = Constant <value_int: int = @greatest> ()
        greatest = Cast <to: int = 6> (greatest64)
        lowest64 = Constant <value_int: int = @lowest> ()
        lowest = Cast <to: int = 6> (lowest64)
        highest64 = Constant <value_int: int = @highest> ()
        highest = Cast <to: int = 6> (highest64)
        most = Cast <to: int = 6> (most_q)
        fewest = Cast <to: int = 6> (fewest_q)
        depth = Sub (zero, fewest)
        top = Max (most, depth)
        small64 = Constant <value_int: int = @small> ()
        small = Cast <to: int = 6> (small64)
        up64 = Constant <value_int: int = @up> ()
        up32 = Cast <to: int = 6> (up64)
        saturated = GreaterOrEqual (top, greatest)
        eighth = Div (small, eight)
        least_part = Div (eighth, eight)
        is_small = GreaterOrEqual (small, top)
        is_smaller = GreaterOrEqual (eighth, top)
        is_least = GreaterOrEqual (least_part, top)
        is_up = Cast <to: int = 6> (saturated)
        up = Mul (is_up, up32)
        down1 = Cast <to: int = 6> (is_small)
        down2 = Cast <to: int = 6> (is_smaller)
        down3 = Cast <to: int = 6> (is_least)
        down2x2 = Mul (down2, two)
        down3x3 = Mul (down3, three)
        down12 = Add (down1, down2x2)
        down = Add (down12, down3x3)
        raised = Add (held, up)
        moved = Sub (raised, down)
        above = Max (moved, lowest)
        next = Min (above, highest)
        """,
    )  # fmt: skip


FOLLOW = _follow("FollowExponent", "most_q = ReduceMax <keepdims: int = 0> (q)\nfewest_q = ReduceMin <keepdims: int = 0> (q)\n")
FOLLOW_CHANNELS = _follow(
    "FollowExponents",
    """
    axes = Constant <value_ints: ints = [0, 2, 3]> ()
    most_q = ReduceMax <keepdims: int = 1> (q, axes)
    fewest_q = ReduceMin <keepdims: int = 1> (q, axes)
    """,
)

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

# What the functions above call, each after what it calls itself: every model has them at hand, and keeps those that it uses
LIBRARY = {f.name: f for f in (*ROUND_SHIFT_WIDE.values(), *ROUND_SHIFT.values(), RANGE, GUARD)}

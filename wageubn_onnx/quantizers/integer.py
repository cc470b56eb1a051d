"""The same quantizers on integer mantissas: the functions that `int_training` calls, under the same names.

A table such as `DIRECT` holds one function a rounding: half_even (ties to even), half_up (ties upward) and, where 16 random bits
an element are at hand, stochastic (on the magnitude). Division rounds half to even by one identity for d >= 1 and a >= 0:

    round(a / d) = floor((2a + d - 1 + (floor(a/d) mod 2)) / 2d)

(2a + d - 1 reaches the next multiple of 2d exactly above a tie; the parity of the quotient decides the tie.) Mantissas are made
non-negative first, because ONNX leaves the rounding of a negative quotient to its kernels. Shift amounts are clamped into 0..30
(int32) or 0..52 (int64), and what a larger right shift would turn to 0 is multiplied by 0. No function adds two numbers that its
stated input bound does not keep in range; `passes/lower` checks those bounds at every call.

``m`` are mantissas, ``shift`` is one number or one a channel, ``to``, ``least`` and ``greatest`` are a result's dtype and bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx

from wageubn_onnx.onnxir.trace import (
    Int,
    Int16,
    Int32,
    Int64,
    Operand,
    Uint8,
    Value,
    call,
    cast,
    clip,
    equal,
    function,
    gather,
    maximum,
    minimum,
    op,
    reduce_max,
    reduce_sum,
    variants,
    where,
)
from wageubn_onnx.quantizers import tables

SHIFT_LIMIT = 28  # |mantissa| < 2^28 on entry to the int32 functions
WIDE_LIMIT = 52  # and < 2^52 to the int64 ones
LIFT = 2**29  # makes an int32 mantissa positive; an even multiple of every divisor, so that parities stay
POWERS = np.array(tables.POWERS, np.int32)
WIDE_POWERS = np.array([2**k for k in range(WIDE_LIMIT + 1)], np.int64)
THRESHOLDS = np.array(tables.THRESHOLDS, np.int32)
WIDE_THRESHOLDS = np.array(tables.WIDE_THRESHOLDS, np.int64)
RANGES = np.array([2, 4, 8, 16, 32, 64, 128], np.int32)  # dr of a constant quantizer

DETERMINISTIC = ("half_even", "half_up")


# -- what bodies share ----------------------------------------------------------------------------------------------------


def reached(x: Value, thresholds: Operand) -> Value:
    """How many thresholds a scalar reaches: int32."""
    return reduce_sum(cast(x >= thresholds, np.int32), keepdims=0)


def bounded(x: Value, least: Operand, greatest: Value, to: Int) -> Value:
    """An int32 x saturated, in its result's dtype."""
    return cast(clip(x, least, greatest), to)


def _bounded_wide(x: Value, least: Value, greatest: Value, to: Int) -> Value:
    """An int64 x saturated: Clip of int64 is wrong beyond 2^31 in onnxruntime, so choices bound it."""
    lowered = where(x > greatest, greatest, x)
    return cast(where(lowered < least, least, lowered), to)


def _rounded(rounding: str, a: Value, divisor: Value, negative: Value | None = None) -> Value:
    """round(a / divisor), a >= 0; half up, where a is the size of a ``negative`` number, a tie rounds down to it."""
    if rounding == "half_up":
        just = divisor if negative is None else where(negative, divisor - 1, divisor)
        c = a + a + just
    else:
        parity = a // divisor & 1
        c = a + a + (divisor - 1) + parity
    return c // (divisor * 2)


# -- shifts ---------------------------------------------------------------------------------------------------------------


class _Sizes(NamedTuple):
    """Magnitudes on the way to a wide rounding: a = |m| * 2^left, 0 where that is ``full``: it saturates before it overflows."""

    a: Value
    negative: Value
    full: Value

    def signed(self, kept: Value, limit: Value) -> Value:
        """What is kept, saturated at +-limit, with its sign again."""
        beyond = (kept > limit) | self.full
        bounded = where(beyond, limit, kept)
        return where(self.negative, -bounded, bounded)


def _sizes(m: Value, shift: Value, limit: Value) -> _Sizes:
    """Of m * 2^-shift, if shift < 0."""
    left = maximum(0 - shift, 0)
    saturates = left > WIDE_LIMIT
    factor = gather(WIDE_POWERS, minimum(left, WIDE_LIMIT))
    negative = m < 0
    size = where(negative, -m, m)
    over = (size > limit // factor) | (saturates & (size > 0))
    full = over & (left > 0)
    a = where(full, 0, size) * factor
    return _Sizes(a, negative, full)


def _divisor(shift: Value) -> Value:
    """2^shift where 0 <= shift <= 52, else that of the closer end: int64."""
    return gather(WIDE_POWERS, minimum(maximum(shift, 0), WIDE_LIMIT))


@function("RoundShiftWideStochastic", "r")
def _ROUND_SHIFT_WIDE_STOCHASTIC(m: Int64, shift: Int32, limit0: Int64, random: Int32) -> Value:
    """r = round(m / 2^shift), on the magnitude, saturated at +-limit0 < 2^36; |m| < 2^52.

    The size in 1/2^16 of a unit is rounded up: then its low 16 bits exceed the random bits exactly where the true fraction does.
    A right shift beyond 52 + 16 leaves 1/2^16 of any size, as it should.
    """
    unit = 2**16
    fine_shift = shift - 16
    sizes = _sizes(m, fine_shift, limit0 * unit)
    divisor = _divisor(fine_shift)
    fine = (sizes.a + (divisor - 1)) // divisor
    up = (fine & (unit - 1)) > cast(random, np.int64)
    kept = fine // unit + cast(up, np.int64)
    return sizes.signed(kept, limit0)


@variants("RoundShiftWide", "r")
def ROUND_SHIFT_WIDE(rounding: str, m: Int64, shift: Int32, limit: Int64) -> Value:
    """r = round(m / 2^shift), saturated at +-limit < 2^53; |m| < 2^52."""
    sizes = _sizes(m, shift, limit)
    rounded = _rounded(rounding, sizes.a, _divisor(shift), sizes.negative)
    kept = where(shift > WIDE_LIMIT, 0, rounded)
    return sizes.signed(kept, limit)


ROUND_SHIFT_WIDE["stochastic"] = _ROUND_SHIFT_WIDE_STOCHASTIC


@variants("RoundShift", "r")
def ROUND_SHIFT(rounding: str, m: Int32, shift: Int32, *random: Int32) -> Value:
    """r = round(m / 2^shift); |m| < 2^28, and |m| * 2^-shift < 2^28 where shift < 0."""
    if random:  # 16 bits below the unit count, so it needs int64
        rounded = call(ROUND_SHIFT_WIDE[rounding], cast(m, np.int64), shift, 2**SHIFT_LIMIT, *random)[0]
        return cast(rounded, np.int32)
    left = minimum(maximum(0 - shift, 0), 30)
    factor = where(shift > SHIFT_LIMIT, 0, gather(POWERS, left))
    divisor = gather(POWERS, minimum(maximum(shift, 0), SHIFT_LIMIT))
    offset = LIFT // divisor
    scaled = m * factor
    if rounding == "half_up":
        a = scaled + (LIFT + divisor // 2)
        return a // divisor - offset
    return _rounded(rounding, scaled + LIFT, divisor) - offset


def _round_shift(rounding: str, m: Value, shift: Value, *random: Value) -> Value:
    return call(ROUND_SHIFT[rounding], m, shift, *random)[0]


@variants("DirectQuantize", "q")
def DIRECT(rounding: str, m: Int32, shift: Int32, *random: Int32, to: Int, least: Int32, greatest: Int32) -> Value:
    """q = round(m / 2^shift) in least..greatest; operands as of `RoundShift`."""
    r = _round_shift(rounding, m, shift, *random)
    return bounded(r, least, greatest, to)


@variants("DirectQuantizeWide", "q")
def DIRECT_WIDE(rounding: str, m: Int64, shift: Int32, *random: Int32, to: Int, least: Int64, greatest: Int64) -> Value:
    """q = round(m / 2^shift) in least..greatest, below 2^53: saturated at the farther one first, on both sides. |m| < 2^52."""
    depth = -least
    limit = where(depth > greatest, depth, greatest)
    r = call(ROUND_SHIFT_WIDE[rounding], m, shift, limit, *random)[0]
    return _bounded_wide(r, least, greatest, to)


@variants("GridQuantize", "q")
def GRID(rounding: str, m: Int32, shift: Int32, *random: Int32, to: Int, least: Int32, greatest: Int32) -> Value:
    """q = round(m / 2^shift) in least..greatest within +-2^15, for any shift: saturates before it shifts left. |m| < 2^28."""
    near = maximum(shift, -20)
    room = (2**SHIFT_LIMIT - 1) // gather(POWERS, maximum(0 - near, 0))
    within = minimum(maximum(m, 0 - room), room)
    r = _round_shift(rounding, within, near, *random)
    return bounded(r, least, greatest, to)


GRID_BOUND = 2**15


@variants("DirectQuantizeImage", "q")
def DIRECT_IMAGE(
    rounding: str, pixels: Uint8, factor: Int32, offset: Int32, shift: Int32, *, to: Int, least: Int32, greatest: Int32
) -> Value:
    """q = round((pixels * factor + offset) / 2^shift) in least..greatest; factor and offset [1, C, 1, 1]."""
    m = cast(pixels, np.int32) * factor + offset
    r = _round_shift(rounding, m, shift)
    return bounded(r, least, greatest, to)


@variants("GridQuantizePair", "q")
def PAIR(rounding: str, high: Int32, low: Int32, *, drop: Int32, base: Int32) -> Value:
    """q = round((2^base * high + low) / 2^drop) of accumulators of two parts, 1 <= drop < base.

    The high part is then an even multiple of the unit, so the tie rule sees the low part alone.
    """
    raised = high * gather(POWERS, base - drop)
    return raised + _round_shift(rounding, low, drop)


# -- quotients and roots --------------------------------------------------------------------------------------------------


@variants("DirectQuantizeRatio", "q")
def DIRECT_RATIO(rounding: str, m: Int32, divisor: Int32, *, to: Int, least: Int32, greatest: Int32) -> Value:
    """q = round(m / divisor) in least..greatest; divisor >= 1, (4 * greatest + 5) * divisor < 2^31."""
    within = minimum(maximum(m, least * divisor), greatest * divisor)
    even = greatest + (greatest & 1)
    a = within + even * divisor
    r = _rounded(rounding, a, divisor) - even
    return cast(r, to)


@variants("DirectQuantizeRatioWide", "q")
def DIRECT_RATIO_WIDE(rounding: str, m: Int64, divisor: Int64, *, to: Int, least: Int64, greatest: Int64) -> Value:
    """q = round(m / divisor) in least..greatest; divisor >= 1, |m| < 2^52."""
    negative = m < 0
    a = where(negative, -m, m)
    rounded = _rounded(rounding, a, divisor, negative)
    r = where(negative, -rounded, rounded)
    return _bounded_wide(r, least, greatest, to)


class Radicand(NamedTuple):
    """total/count * factor + offset as ``v``, rounded down, or ``most`` where it is greater; rest / count is what was rounded."""

    v: Value
    rest_whole: Value
    rest_scaled: Value


def radicand(total: Value, count: Value, factor: Value, offset: Value, most: int) -> Radicand:
    """All int64 and at least 0; count >= 1, count * factor < 2^52, offset < 2^62."""
    whole = total // count
    rest = total - whole * count
    beyond = whole > most // factor
    kept = where(beyond, 0, whole)
    rest_scaled = rest * factor
    rest_whole = rest_scaled // count
    v = kept * factor + rest_whole + offset
    return Radicand(where(beyond | (v > most), most, v), rest_whole, rest_scaled)


def _square_root(v: Value) -> Value:
    """floor(sqrt(v)) for 0 <= v < 2^32, bit by bit from the top."""
    root = where(v >= 2**30, np.int64(2**15), np.int64(0))
    for bit in reversed(range(15)):
        trial = root + 2**bit
        root = where(v >= trial * trial, trial, root)
    return root


@variants("DirectQuantizeRoot", "q")
def DIRECT_ROOT(
    rounding: str, total: Int64, count: Int64, factor: Int64, offset: Int64, *, to: Int, least: Int64, greatest: Int64
) -> Value:
    """q = round(sqrt(total/count * factor + offset) / 2): the radicand is in quarters of q's unit squared.

    A tie is an odd root without rest. A greater radicand than 2^32 counts as 2^32 - 1, so greatest <= 32767. See `radicand`.
    """
    v, rest_whole, rest_scaled = radicand(total, count, factor, offset, 2**32 - 1)
    root = _square_root(v)
    r = (root + 1) // 2
    if rounding == "half_even":
        is_exact = equal(rest_whole * count, rest_scaled) & equal(root * root, v)
        is_odd = (root & 1) * (r & 1)
        r = r - where(is_exact, is_odd, 0)
    return _bounded_wide(r, least, greatest, to)


# -- ranges that are found at run time ------------------------------------------------------------------------------------


@function("PowerOfTwoRange", "log", "greatest")
def RANGE(m: Int32) -> tuple[Value, Value]:
    """round(log2 max|m|), 0 for an all-zero m, and max|m|: scalars."""
    greatest = reduce_max(abs(m), keepdims=0)
    return reached(greatest, THRESHOLDS), greatest


@function("GuardExponent", "exponent")
def GUARD(log: Int32, greatest: Int32, fraction: Int32) -> Value:
    """The exponent of a grid R / 2^fraction for R = 2^log, kept within the guard; R of an all-zero tensor counts as 1."""
    guarded = minimum(maximum(log, tables.RANGE_LEAST), tables.RANGE_GREATEST)
    return where(equal(greatest, 0), 0, guarded) - fraction


@variants("ShiftQuantize", "q", "exponent")
def SHIFT(
    rounding: str, m: Int32, m_exponent: Int32, *random: Int32, to: Int, least: Int32, greatest: Int32, fraction: Int32
) -> tuple[Value, Value]:
    """q * 2^exponent = m * 2^m_exponent rounded to the grid R / 2^fraction, R = 2^round(log2 max) of it; |m| < 2^28."""
    log, greatest_m = call(RANGE, m)
    r = _round_shift(rounding, m, log - fraction, *random)
    (exponent,) = call(GUARD, log + m_exponent, greatest_m, fraction)
    return bounded(r, least, greatest, to), exponent


@function("Limbs", "high", "low")
def LIMBS(m: Int16) -> tuple[Value, Value]:
    """m = 2^8 * high + low: high int8, low uint8."""
    wide = cast(m, np.int32)
    low = wide & 255
    return cast((wide - low) // 256, np.int8), cast(low, np.uint8)


@variants("FlagQuantize", "high", "low", "exponent")
def FLAG(rounding: str, m: Int32, m_exponent: Int32) -> tuple[Value, Value, Value]:
    """(2^7 * high + low) * 2^exponent: 7 bits and a sign of R / 2^7 where |m| reaches that, of R / 2^14 below; both int8.

    |low| = 128 carries: high is then +-1. |m| < 2^28, R as in `SHIFT`.
    """
    log, greatest_m = call(RANGE, m)
    coarse = clip(_round_shift(rounding, m, log - 7), -127, 127)
    fine = _round_shift(rounding, m, log - 14)
    is_high = abs(fine) >= 128
    (exponent,) = call(GUARD, log + m_exponent, greatest_m, 14)
    return cast(where(is_high, coarse, 0), np.int8), cast(where(is_high, 0, fine), np.int8), exponent


@variants("AlignQuantize", "qa", "qb", "exponent")
def ALIGN(
    rounding: str, a: Int32, a_exponent: Int32, b: Int32, b_exponent: Int32, *, least: Int32, greatest: Int32, fraction: Int32
) -> tuple[Value, Value, Value]:
    """Both operands on R / 2^fraction, int16, R the greater of their ranges; an all-zero operand has no say. |a|, |b| < 2^28."""
    a_log, a_greatest = call(RANGE, a)
    b_log, b_greatest = call(RANGE, b)
    a_own, b_own = a_log + a_exponent, b_log + b_exponent
    a_none, b_none = equal(a_greatest, 0), equal(b_greatest, 0)
    a_range = where(a_none, b_own - 4096, a_own)
    b_range = where(b_none, a_own - 4096, b_own)
    log = where(a_none & b_none, a_own, maximum(a_range, b_range))
    unit = log - fraction
    ra = _round_shift(rounding, a, unit - a_exponent)
    rb = _round_shift(rounding, b, unit - b_exponent)
    qa, qb = (cast(clip(r, least, greatest), np.int16) for r in (ra, rb))
    (exponent,) = call(GUARD, log, maximum(a_greatest, b_greatest), fraction)
    return qa, qb, exponent


@variants("ConstantQuantize", "q")
def CONSTANT(rounding: str, m: Int64, dr: Int32, *random: Int32) -> Value:
    """CQ: q = round(dr * m/R), |q| < dr, int8; |m| < 2^52; dr a power of two in 2..128, scalar.

    max|m| is found in two 26-bit halves, since int64 maxima beyond 2^31 are wrong in onnxruntime 1.31.
    """
    half = 2**26
    size = where(m < 0, -m, m)
    top64 = size // half
    top, bottom = cast(top64, np.int32), cast(size - top64 * half, np.int32)
    top_greatest = reduce_max(top, keepdims=0)
    candidates = where(equal(top, top_greatest), bottom, 0)
    bottom_greatest = reduce_max(candidates, keepdims=0)
    greatest = cast(top_greatest, np.int64) * half + cast(bottom_greatest, np.int64)
    shift = reached(greatest, WIDE_THRESHOLDS) - reached(dr, RANGES)
    limit = cast(dr, np.int64) - 1
    r = call(ROUND_SHIFT_WIDE[rounding], m, shift, limit, *random)[0]
    return cast(r, np.int8)


# -- exponents that a state holds -----------------------------------------------------------------------------------------


def _follow(name: str, extreme: Callable[[str, Value], Value]) -> onnx.FunctionProto:
    """extreme: of a reduction's kind and a tensor, its result."""

    @function(name, "next")
    def body(q: Value, held: Int32, *, greatest: Int32, small: Int32, up: Int32, lowest: Int32, highest: Int32) -> Value:
        """The exponent that a delayed quantizer holds for its next step, from the mantissas q that ``held`` gave.

        held + up where max|q| reaches ``greatest``; held - 1, - 3, - 6 where it is at most ``small``, an eighth, a 64th of it.
        """
        most, fewest = cast(extreme("ReduceMax", q), np.int32), cast(extreme("ReduceMin", q), np.int32)
        top = maximum(most, 0 - fewest)
        eighth = small // 8
        least_part = eighth // 8
        saturated, is_small, is_smaller, is_least = (
            cast(c, np.int32) for c in (top >= greatest, small >= top, eighth >= top, least_part >= top)
        )
        down = is_small + is_smaller * 2 + is_least * 3
        moved = held + saturated * up - down
        return minimum(maximum(moved, lowest), highest)

    return body


FOLLOW = _follow("FollowExponent", lambda kind, q: op(kind, q, keepdims=0))
FOLLOW_CHANNELS = _follow("FollowExponents", lambda kind, q: op(kind, q, np.array([0, 2, 3], np.int64), keepdims=1))


# -- tables ---------------------------------------------------------------------------------------------------------------


@function("ExponentialTable", "y")
def EXPONENTIAL(t: Int32) -> Value:
    """y = 2^t, t <= 0 in 1/2^8, y in 1/2^15."""
    size = 1 << tables.EXP_INDEX
    fall = 0 - t
    whole = fall // size
    rest = fall - whole * size
    entry = gather(np.array(tables.EXP_TABLE, np.int32), rest)
    return entry // gather(POWERS, minimum(whole, 16))


@function("LogarithmTable", "y")
def LOGARITHM(x: Int32) -> Value:
    """y = log2 x, x >= 1 in 1/2^15, y in 1/2^12."""
    axis = np.array([-1], np.int64)
    ones = cast(op("Unsqueeze", x, axis) >= POWERS, np.int32)
    log = reduce_sum(ones, axis, keepdims=0) - 1
    leading = x // gather(POWERS, log - tables.LOG_INDEX)
    entry = gather(np.array(tables.LOG_TABLE, np.int32), leading - 2**tables.LOG_INDEX)
    return (log - tables.EXP_BITS) * (1 << tables.LOG_FRACTION) + entry


# What the functions above call, each after what it calls itself: every model has them at hand, and keeps those that it uses
LIBRARY = {f.name: f for f in (*ROUND_SHIFT_WIDE.values(), *ROUND_SHIFT.values(), RANGE, GUARD)}

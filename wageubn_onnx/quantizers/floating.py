"""The quantizers of `quant_training`: float functions whose results lie on quantized grids.

Each function below builds one call; ``step`` is the grid's power of two. Sources: the numerics table in docs/numerics.md.
A dynamic quantizer's second output is its step, so that what must share its grid can.

In the bodies ``lo`` and ``hi`` are the bounds of mantissas, ``random`` is 16 bits an element.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import onnx

from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.onnxir.infer import TensorType
from wageubn_onnx.onnxir.trace import (
    Float,
    Int32,
    Int64,
    Value,
    call,
    cast,
    clip,
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
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import tables
from wageubn_onnx.symbols import symbol

# -- fixed grids ----------------------------------------------------------------------------------------------------------


def _rounded(rounding: str, x: Value, *random: Value) -> Value:
    """Ties to even, ties upward, or |x| up where its fraction exceeds random/2^16. Exact for any x."""
    if rounding == "half_even":
        return op("Round", x)
    size = abs(x) if random else x
    whole = op("Floor", size)
    fraction = size - whole
    if rounding == "half_up":
        return whole + cast(fraction >= 0.5, np.floating)
    up = fraction > cast(random[0], np.floating) / 2**16
    return (whole + cast(up, np.floating)) * op("Sign", x)


def _mantissas(rounding: str, scaled: Value, lo: Value, hi: Value, *random: Value) -> Value:
    """Rounded, within lo..hi."""
    return clip(_rounded(rounding, scaled, *random), lo, hi)


@variants("DirectQuantize", "y")
def DIRECT(rounding: str, x: Float, *random: Int32, lo: Float, hi: Float, step: Float) -> Value:
    """y = clip(round(x / step), lo, hi) * step."""
    return _mantissas(rounding, x / step, lo, hi, *random) * step


@variants("GridQuantize", "y")
def GRID(rounding: str, x: Float, step: Float, *random: Int32, lo: Float, hi: Float) -> Value:
    """y = clip(round(x / step), lo, hi) * step, for a step found at run time."""
    return _mantissas(rounding, x / step, lo, hi, *random) * step


# -- grids from the range R of a tensor -----------------------------------------------------------------------------------


@function("PowerOfTwoRange", "R", "greatest")
def RANGE(x: Float) -> tuple[Value, Value]:
    """R = 2^round(log2 max|x|), 1 for an all-zero x, and max|x|: scalars."""
    limits, powers = (np.array(values, np.float32) for values in tables.float_thresholds(np.float32))
    greatest = reduce_max(abs(x), keepdims=0)
    reached = greatest >= op("CastLike", limits, x, dtype=np.floating)
    index = reduce_sum(cast(reached, np.int64), keepdims=0)
    power = cast(gather(powers, index), np.floating)
    return where(greatest > 0, power, 1), greatest


def _guarded(span: Value) -> Value:
    """R within its guard: what a dynamic quantizer says its grid is, so that its whole tensor is scaled where R lies beyond."""
    return clip(span, 2.0**tables.RANGE_LEAST, 2.0**tables.RANGE_GREATEST)


@variants("ShiftQuantize", "y", "step")
def SHIFT(rounding: str, x: Float, *random: Int32, lo: Float, hi: Float, unit: Float) -> tuple[Value, Value]:
    """y = clip(round(x / (R unit)), lo, hi) * step; step = R unit, but for R's guard."""
    span, _ = call(RANGE, x)
    step = _guarded(span) * unit
    return _mantissas(rounding, x / (span * unit), lo, hi, *random) * step, step


@variants("FlagQuantize", "y", "step")
def FLAG(rounding: str, x: Float, *random: Int32, lo: Float, hi: Float) -> tuple[Value, Value]:
    """y = clip(round(x / s), lo, hi) * s where |x| >= s = R / 2^7, else a multiple of step = s / 2^7; but for R's guard."""
    span, _ = call(RANGE, x)
    unit = 2.0**-7
    coarse = span * unit
    fine = coarse * unit
    high = _mantissas(rounding, x / coarse, lo, hi, *random) * coarse
    low = _rounded(rounding, x / fine, *random) * fine
    gain = _guarded(span) / span
    return where(abs(x) >= coarse, high, low) * gain, fine * gain


@variants("AlignQuantize", "qa", "qb", "step")
def ALIGN(rounding: str, a: Float, b: Float, *, lo: Float, hi: Float, unit: Float) -> tuple[Value, Value, Value]:
    """Both as by `SHIFT`, by the greater R; an all-zero operand has no say."""
    a_span, a_greatest = call(RANGE, a)
    b_span, b_greatest = call(RANGE, b)
    span = where(a_greatest > 0, where(b_greatest > 0, maximum(a_span, b_span), a_span), b_span)
    own, step = span * unit, _guarded(span) * unit
    qa = _mantissas(rounding, a / own, lo, hi) * step
    qb = _mantissas(rounding, b / own, lo, hi) * step
    return qa, qb, step


@variants("ConstantQuantize", "y")
def CONSTANT(rounding: str, x: Float, dr: Float, *random: Int32, step: Float) -> Value:
    """y = round(dr * x/R) * step, at most (dr - 1) * step."""
    span, _ = call(RANGE, x)
    reach = cast(dr, np.floating)
    rounded = _rounded(rounding, x / span * reach, *random)
    limit = reach - 1
    return maximum(minimum(rounded, limit), -limit) * step


# -- grids that a state holds ---------------------------------------------------------------------------------------------

POWER_LIMIT = 96  # greater than any exponent that a state may hold


@function("PowerOfTwo", "step")
def POWER(exponent: Int32, like: Float) -> Value:
    """step = 2^exponent, exponent in -96..96."""
    powers = np.array([2.0**e for e in range(-POWER_LIMIT, POWER_LIMIT + 1)], np.float32)
    return cast(gather(powers, exponent + POWER_LIMIT), np.floating)


def _follow(name: str, greatest: Callable[[Value], Value]) -> onnx.FunctionProto:
    """greatest: of |m|."""

    @function(name, "next")
    def body(y: Float, step: Float, held: Int32, *, hi: Float, small: Float, up: Int32, lowest: Int32, highest: Int32) -> Value:
        """The exponent for the next step, from mantissas y / step: see `follow`."""
        top = greatest(abs(y / step))
        eighth = small / 8
        least_part = eighth / 8
        saturated, is_small, is_smaller, is_least = (
            cast(c, np.int32) for c in (top >= hi, top <= small, top <= eighth, top <= least_part)
        )
        down = is_small + is_smaller * 2 + is_least * 3
        moved = held + saturated * up - down
        return minimum(maximum(moved, lowest), highest)

    return body


FOLLOW = _follow("FollowExponent", lambda sizes: reduce_max(sizes, keepdims=0))
FOLLOW_CHANNELS = _follow("FollowExponents", lambda sizes: reduce_max(sizes, np.array([0, 2, 3], np.int64), keepdims=1))


# -- tables ---------------------------------------------------------------------------------------------------------------


@function("ExponentialTable", "y")
def EXPONENTIAL(t: Float) -> Value:
    """y = 2^t, t <= 0 on the grid 2^-8, y on the grid 2^-15, truncated."""
    table, powers = np.array(tables.EXP_TABLE, np.float32), np.array(tables.POWERS[:17], np.float32)
    fall = -t
    whole = op("Floor", fall)
    index = cast((fall - whole) * 2**tables.EXP_INDEX, np.int64)
    shift = cast(minimum(whole, 16), np.int64)
    truncated = op("Floor", gather(table, index) / gather(powers, shift))
    return cast(truncated * 2.0**-tables.EXP_BITS, np.floating)


@function("LogarithmTable", "y")
def LOGARITHM(x: Float) -> Value:
    """y = log2 x, x >= 1 on the grid 2^-15, y on the grid 2^-12."""
    table, axis = np.array(tables.LOG_TABLE, np.float32), np.array([-1], np.int64)
    powers = op("CastLike", np.array(tables.POWERS[:16], np.float32), x, dtype=np.floating)
    reached = op("Unsqueeze", x, axis) >= powers
    whole = reduce_sum(cast(reached, np.int64), axis, keepdims=0) - 1
    size = 2**tables.LOG_INDEX
    position = op("Floor", x / gather(powers, whole) * size) - size
    fraction = gather(table, cast(position, np.int64)) * 2.0**-tables.LOG_FRACTION
    return cast(whole, np.floating) + cast(fraction, np.floating)


# -- random bits ----------------------------------------------------------------------------------------------------------

MASK = 2**32 - 1  # counters and hashes are of 32 bits, in int64
FACTOR = 73244475  # of the hash's mixing steps


@function("HashMix", "y")
def MIX(x: Int64) -> Value:
    """The 32 bits of x, mixed."""
    for _ in range(2):
        x = (x // 2**16 ^ x) * FACTOR & MASK
    return x // 2**16 ^ x


def mixed(x: Value) -> Value:
    """`HashMix` of the lowest 32 bits of x."""
    return call(MIX, x & MASK)[0]


def step_hash(seed: Value, number: Value) -> Value:
    """What seed and number of a step make of each other, int64."""
    return mixed(mixed(cast(seed, np.int64)) + cast(number, np.int64))


@function("RandomBits", "bits")
def RANDOM(seed: Int32, number: Int32, *, tensor: Int64, count: Int64) -> Value:
    """16 bits an element, int32 [count]: the upper half of a hash of seed, step number, ``tensor`` and the element's index."""
    first = mixed(step_hash(seed, number) + tensor)
    hashed = mixed(first + op("Range", 0, count, 1))
    return cast(hashed // 2**16, np.int32)


def _describe(role: str, bits: int, lo: float, hi: float, rounding: str) -> dict[str, object]:
    return {"role": role, "bits": bits, "lo": float(lo), "hi": float(hi), "rounding": rounding}


def _like(x: Tensor) -> TensorType:
    return TensorType(x.dtype, x.shape)


def direct(
    g: Model,
    x: Tensor,
    role: str,
    f: Format,
    exponent: int,
    lo: int | None = None,
    hi: int | None = None,
    random: Tensor | None = None,
) -> Tensor:
    """clip(round(x / 2^exponent), lo, hi) * 2^exponent; bounds default to the format's."""
    low, high = (own if given is None else given for own, given in zip(f.bounds, (lo, hi), strict=True))
    attrs = _describe(role, f.bits, low, high, f.rounding) | {"exponent": exponent, "step": 2.0**exponent}
    return g.call(DIRECT[f.rounding], _with(random, x), [_like(x)], symbol(role), role, attrs)[0]


def grid(
    g: Model,
    x: Tensor,
    step: Tensor,
    role: str,
    f: Format,
    lo: int | None = None,
    hi: int | None = None,
    random: Tensor | None = None,
) -> Tensor:
    """clip(round(x / step), lo, hi) * step, for a step found at run time: one, or one a channel."""
    low, high = (f.least if lo is None else lo), (f.greatest if hi is None else hi)
    attrs = _describe(role, f.bits, low, high, f.rounding)
    return g.call(GRID[f.rounding], _with(random, x, step), [_like(x)], symbol(role), role, attrs)[0]


def shift(g: Model, x: Tensor, role: str, f: Format, random: Tensor | None = None, room: int = 0) -> tuple[Tensor, Tensor]:
    """SQ: the grid is R(x) / 2^(bits-1-room). Returns value and step.

    max|x| reaches sqrt(2) R: with room = 1 nothing saturates, for what must not at the price of a bit.
    """
    g.functions.setdefault("PowerOfTwoRange", RANGE)
    attrs = _describe(role, f.bits, f.least, f.greatest, f.rounding) | {"unit": 2.0 ** (1 + room - f.bits)}
    types = [_like(x), TensorType(x.dtype, [])]
    value, step = g.call(SHIFT[f.rounding], _with(random, x), types, symbol(role), role, attrs)
    return value, step


def flag(g: Model, x: Tensor, role: str, f: Format) -> tuple[Tensor, Tensor]:
    """Flag quantization: 8 bits of R/2^7 where |x| reaches that, 8 bits of R/2^14 below. Returns value and the finer step."""
    g.functions.setdefault("PowerOfTwoRange", RANGE)
    types = [_like(x), TensorType(x.dtype, [])]
    value, step = g.call(FLAG[f.rounding], [x], types, symbol(role), role, _describe(role, 8, -127, 127, f.rounding))
    return value, step


def align(g: Model, a: Tensor, b: Tensor, role: str, f: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Both operands on the grid max(R(a), R(b)) / 2^(bits-2): their sum needs no further alignment. Returns both and the step.

    One bit less than SQ's, since max|x| reaches sqrt(2) R: what is to be summed must not saturate.
    """
    g.functions.setdefault("PowerOfTwoRange", RANGE)
    types = [_like(a), _like(b), TensorType(a.dtype, [])]
    attrs = _describe(role, f.bits, f.least, f.greatest, f.rounding) | {"unit": 2.0 ** (2 - f.bits)}
    qa, qb, step = g.call(ALIGN[f.rounding], [a, b], types, symbol(role), role, attrs)
    return qa, qb, step


def constant(g: Model, x: Tensor, dr: Tensor, role: str, f: Format, random: Tensor | None = None) -> Tensor:
    """CQ: round(dr*x/R), at most dr-1, in units of 2^-fraction."""
    g.functions.setdefault("PowerOfTwoRange", RANGE)
    attrs = _describe(role, 8, -127, 127, f.rounding) | {"exponent": f.exponent, "step": 2.0**f.exponent}
    return g.call(CONSTANT[f.rounding], _with(random, x, dr), [_like(x)], symbol(role), role, attrs)[0]


def _with(random: Tensor | None, *operands: Tensor) -> list[Tensor]:
    return [*operands, *([] if random is None else [random])]


def power(g: Model, exponent: Tensor, like: Tensor) -> Tensor:
    """2^exponent in the dtype of ``like``, for an int32 exponent within -96..96: the step of a grid that a state holds."""
    return g.call(POWER, [exponent, like], [TensorType(like.dtype, exponent.shape)], "step", "", {})[0]


def follow(g: Model, y: Tensor, step: Tensor, held: Tensor, f: Format, small: int, up: int, lowest: int, highest: int) -> Tensor:
    """The int32 exponent for the next step, from a tensor that was quantized with the ``held`` one: [] or [1, C, 1, 1].

    held + up where a mantissa saturated; held - 1 where none passes ``small``, - 3 where none passes an eighth of that, - 6 where
    none a 64th; else held. Within lowest..highest.
    """
    attrs = {"lo": float(f.least), "hi": float(f.greatest), "small": float(small), "up": up, "lowest": lowest, "highest": highest}
    types = [TensorType(held.dtype, held.shape)]
    return g.call(FOLLOW_CHANNELS if held.shape else FOLLOW, [y, step, held], types, "next_exponent", "", attrs)[0]


def random_bits(g: Model, seed: Tensor, number: Tensor, key: str, shape: list[int]) -> Tensor:
    """16 random bits an element as int32 of ``shape``: an integer hash of (seed, step number, state key, element index)."""
    g.functions.setdefault("HashMix", MIX)
    count = int(np.prod(shape))
    types = [TensorType(np.dtype(np.int32), [count])]
    flat = g.call(RANDOM, [seed, number], types, "random", "", {"tensor": zlib.crc32(key.encode()), "count": count, "bits": 16})[
        0
    ]
    return g.op("Reshape", flat, g.ints(*shape), name="random")


def exponential(g: Model, t: Tensor) -> Tensor:
    """2^t for t <= 0 on the grid 2^-8, on the grid 2^-15, truncated."""
    return g.call(EXPONENTIAL, [t], [TensorType(t.dtype, t.shape)], "exp2", "S.exp", {})[0]


def logarithm(g: Model, x: Tensor) -> Tensor:
    """log2 x for x >= 1 on the grid 2^-15, on the grid 2^-12."""
    return g.call(LOGARITHM, [x], [TensorType(x.dtype, x.shape)], "log2", "S.log", {})[0]

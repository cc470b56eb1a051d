"""The numeric truth of every quantizer, in Python integers and without ONNX: what the float and the integer functions must equal.

A tensor is (mantissa, exponent): value = mantissa * 2^exponent, an integer array of any shape beside one int. Mantissas may be
given in any integer dtype, or as Python integers in an object array where they are long; they return as int64. Nothing but the
results is bounded: all arithmetic in between is on Python integers, and no logarithm or root is ever taken in floating point.

Sources: the table of WAGEUBN's data paths in docs/numerics.md, in its integer reading.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[Any]  # int64, or Python integers where dtype is object
Fixed = tuple[Integers, int]  # mantissa, exponent
RANGE_LEAST, RANGE_GREATEST = -64, 64  # log2 of the range of a quantized error; said again here, on purpose, as all of this file
FLAG_BITS = 7  # between the units of a flag pair's parts


def exact(m: npt.ArrayLike) -> Integers:
    """The same integers as Python integers, which never wrap."""
    return np.asarray(m, dtype=object)


def dyadic(x: npt.ArrayLike) -> Fixed:
    """Finite floats as (mantissa, exponent), exactly; mantissas are Python integers, since some may be long."""
    parts = [float(v).as_integer_ratio() for v in np.ravel(x)]
    exponent = -max(denominator.bit_length() - 1 for _, denominator in parts)
    mantissas = [numerator * (2**-exponent // denominator) for numerator, denominator in parts]
    return np.array(mantissas, dtype=object).reshape(np.shape(x)), exponent


# -- rounding -------------------------------------------------------------------------------------------------------------


def half_even(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Integers:
    """round(numerator / denominator), a tie to the even neighbour; denominator >= 1. Python integers."""
    n, d = np.broadcast_arrays(exact(numerator), exact(denominator))
    below, rest = n // d, n % d
    up = (2 * rest > d) | ((2 * rest == d) & (below % 2 == 1))
    rounded: Integers = np.where(up, below + 1, below)
    return rounded


def half_up(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Integers:
    """floor(numerator / denominator + 1/2): a tie goes up; denominator >= 1. Python integers."""
    n, d = np.broadcast_arrays(exact(numerator), exact(denominator))
    rounded: Integers = (2 * n + d) // (2 * d)
    return rounded


def stochastic(numerator: npt.ArrayLike, denominator: npt.ArrayLike, random: npt.ArrayLike) -> Integers:
    """The magnitude, up where its fraction exceeds random/2^16; random int32 in 0..2^16-1. Python integers."""
    n, d, r = np.broadcast_arrays(exact(numerator), exact(denominator), exact(random))
    whole, rest = abs(n) // d, abs(n) % d
    rounded: Integers = np.sign(n) * np.where(rest * 2**16 > r * d, whole + 1, whole)
    return rounded


def divide(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, rounding: str = "half_even", random: npt.ArrayLike | None = None
) -> Integers:
    """round(numerator / denominator) by the rounding of that name; ``random`` belongs to stochastic alone."""
    if rounding == "stochastic":
        assert random is not None
        return stochastic(numerator, denominator, random)
    return {"half_even": half_even, "half_up": half_up}[rounding](numerator, denominator)


def rescale(m: npt.ArrayLike, shift: int, rounding: str = "half_even", random: npt.ArrayLike | None = None) -> Integers:
    """round(m / 2^shift); exact where ``shift`` is negative. Python integers."""
    return divide(exact(m) * 2 ** max(-shift, 0), 2 ** max(shift, 0), rounding, random)


def clip(m: Integers, least: int, greatest: int) -> Integers:
    """m saturated at least..greatest, as int64."""
    return np.asarray(np.where(m < least, least, np.where(m > greatest, greatest, m))).astype(np.int64)


def range_log2(m: npt.ArrayLike) -> int:
    """round(log2 max|m|), the exponent of WAGEUBN's range R in m's unit; 0 for all zeros.

    2^(j-1/2) <= g < 2^(j+1/2) is 2^(2j) <= 2*g^2 < 2^(2j+2), so the length of 2*g^2 tells j; g is never exactly between.
    """
    greatest = int(np.max(abs(exact(m))))
    return ((2 * greatest * greatest).bit_length() - 1) // 2 if greatest else 0


def signed(bits: int) -> int:
    """The greatest mantissa of a symmetric format."""
    return int(2 ** (bits - 1)) - 1


# -- WAGEUBN, direct quantization Q ----------------------------------------------------------------------------------------


def direct(
    m: npt.ArrayLike,
    exponent: int,
    target: int,
    least: int,
    greatest: int,
    rounding: str = "half_even",
    random: npt.ArrayLike | None = None,
) -> Fixed:
    """clip(round(m * 2^exponent / 2^target), least, greatest) on the grid 2^target, static or found elsewhere."""
    return clip(rescale(m, target - exponent, rounding, random), least, greatest), target


def ratio(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    exponent: int,
    target: int,
    least: int,
    greatest: int,
    rounding: str = "half_even",
) -> Fixed:
    """Direct quantization of numerator/denominator * 2^exponent, rounded once; denominator >= 1."""
    up, down = 2 ** max(exponent - target, 0), 2 ** max(target - exponent, 0)
    return clip(divide(exact(numerator) * up, exact(denominator) * down, rounding), least, greatest), target


def root(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    exponent: int,
    target: int,
    least: int,
    greatest: int,
    rounding: str = "half_even",
) -> Fixed:
    """Direct quantization of sqrt(numerator/denominator * 2^exponent), rounded once; numerator >= 0, denominator >= 1.

    With v = n/d in squared units, q = floor(sqrt v) = isqrt(floor v), and sqrt v exceeds q + 1/2 where 4n > (2q + 1)^2 d.
    """
    up, down = 2 ** max(exponent - 2 * target, 0), 2 ** max(2 * target - exponent, 0)
    n, d = np.broadcast_arrays(exact(numerator) * up, exact(denominator) * down)
    below = np.array([math.isqrt(v) for v in np.ravel(n // d)], dtype=object).reshape(n.shape)
    middle = (2 * below + 1) ** 2 * d
    up_one = (4 * n > middle) | ((4 * n == middle) & ((below % 2 == 1) | (rounding == "half_up")))
    return clip(np.where(up_one, below + 1, below), least, greatest), target


def image(
    pixels: npt.ArrayLike,
    factor: npt.ArrayLike,
    offset: npt.ArrayLike,
    exponent: int,
    target: int,
    least: int,
    greatest: int,
    rounding: str = "half_even",
) -> Fixed:
    """Direct quantization of (pixels*factor + offset) * 2^exponent: pixels uint8 [N, C, H, W], factor and offset [1, C, 1, 1]."""
    return direct(exact(pixels) * exact(factor) + exact(offset), exponent, target, least, greatest, rounding)


# -- WAGEUBN, quantization of errors ---------------------------------------------------------------------------------------


def guard(m: npt.ArrayLike, log: int) -> int:
    """log2 R of a quantized tensor's grid: 0 for a tensor of zeros; beyond 2^-64..2^64 the tensor is scaled to that end."""
    return min(max(log, RANGE_LEAST), RANGE_GREATEST) if np.any(exact(m)) else 0


def shift(
    m: npt.ArrayLike,
    exponent: int,
    bits: int,
    rounding: str = "half_even",
    random: npt.ArrayLike | None = None,
    bounds: tuple[int, int] | None = None,
) -> Fixed:
    """SQ: direct quantization on the grid R / 2^(bits-1), R the range of the whole tensor; ``bounds``: else symmetric."""
    log, (least, greatest) = range_log2(m), bounds or (-signed(bits), signed(bits))
    q, _ = direct(m, 0, log - (bits - 1), least, greatest, rounding, random)
    return q, guard(m, exponent + log) - (bits - 1)


def follow(q: npt.ArrayLike, held: int, greatest: int, small: int, up: int, lowest: int, highest: int) -> int:
    """The exponent that a delayed quantizer holds for its next step, from the mantissas that ``held`` gave.

    ``up`` more where a mantissa is +-greatest; 1 less where none passes ``small``, 3 where none passes an eighth of that, 6 where
    none a 64th; always within lowest..highest.
    """
    top = int(np.max(abs(exact(q))))
    down = 6 if 64 * top <= small else 3 if 8 * top <= small else 1 if top <= small else 0
    moved = held + (up if top >= greatest else -down)
    return min(max(moved, lowest), highest)


def limbs(m: npt.ArrayLike) -> tuple[Integers, Integers]:
    """(high, low) with m = 2^8 * high + low, low in 0..255."""
    m = np.asarray(m).astype(np.int64)
    return m >> 8, m & 255


def flag(m: npt.ArrayLike, exponent: int, rounding: str = "half_even") -> tuple[Integers, Integers, int]:
    """Flag quantization: (high, low, exponent) with value = (2^7*high + low) * 2^exponent, one of the parts 0.

    With s = R/2^7: where |x| >= s, high = clip(round(x/s), -127, 127); below, low = round(x / (s/2^7)), and a low that rounds to
    +-2^7 is carried into high as +-1. The exponent is that of s/2^7.
    """
    log, m = range_log2(m), exact(m)
    coarse, fine = (
        clip(rescale(m, log - FLAG_BITS, rounding), -127, 127),
        clip(rescale(m, log - 2 * FLAG_BITS, rounding), -128, 128),
    )
    is_coarse, carries = abs(m) * 2**FLAG_BITS >= 2**log, abs(fine) == 2**FLAG_BITS
    high = np.where(is_coarse, coarse, np.where(carries, np.sign(fine), 0))
    low = np.where(is_coarse | carries, 0, fine)
    return high, low, guard(m, exponent + log) - 2 * FLAG_BITS


def align(
    a: npt.ArrayLike, a_exponent: int, b: npt.ArrayLike, b_exponent: int, bits: int, rounding: str = "half_even"
) -> tuple[Integers, Integers, int]:
    """Both operands of a sum on the grid max(R(a), R(b)) / 2^(bits-2), symmetric bounds of ``bits`` bits.

    An operand of zeros only has no range and no say; with two of them R is 1.
    """
    operands = ((a, a_exponent), (b, b_exponent))
    ranges = [e + range_log2(m) for m, e in operands if np.any(exact(m))] or [0]
    target = max(ranges) - (bits - 2)
    qa, qb = (direct(m, e, target, -signed(bits), signed(bits), rounding)[0] for m, e in operands)
    return qa, qb, guard([np.any(exact(a)), np.any(exact(b))], max(ranges)) - (bits - 2)


# -- WAGEUBN, constant quantization of weight gradients --------------------------------------------------------------------


def constant(m: npt.ArrayLike, dr: int, random: npt.ArrayLike | None, fraction: int, rounding: str = "stochastic") -> Fixed:
    """CQ: round(dr*m/R), at most dr - 1 in magnitude, on the grid 2^-fraction, whatever the exponent of m was."""
    rounded = divide(dr * exact(m), 2 ** range_log2(m), rounding, random)
    return clip(rounded, 1 - dr, dr - 1), -fraction


def mix(x: Integers) -> Integers:
    """A bijection of 32 bits: two rounds of xor-shift and multiplication modulo 2^32, and a third xor-shift. uint32 arrays."""
    for _ in range(2):
        x = np.multiply(x ^ (x >> 16), np.uint32(0x45D9F3B))
    mixed: Integers = x ^ (x >> 16)
    return mixed


def random_bits(seed: int, step: int, tensor: int, count: int) -> Integers:
    """The 16 random bits of elements 0..count-1 (row-major) of a tensor at a step: int64 [count] in 0..2^16-1.

    tensor is the CRC-32 of the parameter's key. bits = mix(start + index) / 2^16, start = mix(mix(mix(seed) + step) + tensor).
    """

    seed32, step32, tensor32 = (np.array([v % 2**32], np.uint32) for v in (seed, step, tensor))
    start = mix(mix(mix(seed32) + step32) + tensor32)
    bits: Integers = mix(start + np.arange(count, dtype=np.uint32)) >> 16
    return bits.astype(np.int64)


# -- softmax and cross-entropy ---------------------------------------------------------------------------------------------


@functools.cache
def exponential_table() -> list[int]:
    """round(2^15 * 2^(-r/256)) for r in 0..255: the 256th root as eight square roots, one more bit to round with."""

    def root256(value: int) -> int:
        return functools.reduce(lambda v, _: math.isqrt(v), range(8), value)

    return [(root256(2 ** (16 * 256 - r)) + 1) // 2 for r in range(256)]


@functools.cache
def logarithm_table() -> list[int]:
    """round(2^12 * log2(1 + (i + 1/2)/1024)) for i in 0..1023: floor(2^13 * log2 x) is the length of x^(2^13), less one."""
    lengths = [((2049 + 2 * i) ** 2**13).bit_length() - 1 - 11 * 2**13 for i in range(1024)]
    return [(twice + 1) // 2 for twice in lengths]


def exponential(t: npt.ArrayLike) -> Fixed:
    """2^(t/2^8) for t <= 0, on the grid 2^-15: the table's entry of the fraction, shifted by the whole part and truncated."""
    fall = -exact(t)
    entry = exact(exponential_table())[np.asarray(fall % 256).astype(np.int64)]
    return np.asarray(entry // 2 ** (fall // 256)).astype(np.int64), -15


def logarithm(x: npt.ArrayLike) -> Fixed:
    """log2(x/2^15) for x >= 2^15, on the grid 2^-12: the leading bit's place, and the table's entry of the 10 bits below it."""
    x = exact(x)
    place = np.array([v.bit_length() - 1 for v in np.ravel(x)], dtype=object).reshape(x.shape)
    index = np.asarray(x * 2**10 // 2**place - 2**10).astype(np.int64)
    return np.asarray((place - 15) * 2**12 + exact(logarithm_table())[index]).astype(np.int64), -12

"""The numeric truth of every quantizer, in Python integers and without ONNX: what the float and the integer functions must equal.

A tensor is (mantissa, exponent): value = mantissa * 2^exponent, an integer array of any shape beside one int. Mantissas may be
given in any integer dtype, or as Python integers in an object array where they are long; they return as int64. Nothing here is
bounded but the results: all arithmetic in between is on Python integers, and no logarithm or root is ever taken in floating point.

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
FLAG_BITS = 7  # between the units of a flag pair's parts


def exact(m: npt.ArrayLike) -> Integers:
    """The same integers as Python integers, which never wrap."""
    return np.asarray(m).astype(object)


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
    return np.where(up, below + 1, below)


def rescale(m: npt.ArrayLike, shift: int) -> Integers:
    """round(m / 2^shift), half to even; exact where ``shift`` is negative. Python integers."""
    return half_even(exact(m) * 2 ** max(-shift, 0), 2 ** max(shift, 0))


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


def direct(m: npt.ArrayLike, exponent: int, target: int, least: int, greatest: int) -> Fixed:
    """clip(round(m * 2^exponent / 2^target), least, greatest) on the grid 2^target, static or found elsewhere."""
    return clip(rescale(m, target - exponent), least, greatest), target


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike, exponent: int, target: int, least: int, greatest: int) -> Fixed:
    """Direct quantization of numerator/denominator * 2^exponent, rounded once; denominator >= 1."""
    up, down = 2 ** max(exponent - target, 0), 2 ** max(target - exponent, 0)
    return clip(half_even(exact(numerator) * up, exact(denominator) * down), least, greatest), target


def root(numerator: npt.ArrayLike, denominator: npt.ArrayLike, exponent: int, target: int, least: int, greatest: int) -> Fixed:
    """Direct quantization of sqrt(numerator/denominator * 2^exponent), rounded once; numerator >= 0, denominator >= 1.

    With v = n/d in squared units, q = floor(sqrt v) = isqrt(floor v), and sqrt v exceeds q + 1/2 where 4n > (2q + 1)^2 d.
    """
    up, down = 2 ** max(exponent - 2 * target, 0), 2 ** max(2 * target - exponent, 0)
    n, d = np.broadcast_arrays(exact(numerator) * up, exact(denominator) * down)
    below = np.array([math.isqrt(v) for v in np.ravel(n // d)], dtype=object).reshape(n.shape)
    middle = (2 * below + 1) ** 2 * d
    up_one = (4 * n > middle) | ((4 * n == middle) & (below % 2 == 1))
    return clip(np.where(up_one, below + 1, below), least, greatest), target


def image(
    pixels: npt.ArrayLike, factor: npt.ArrayLike, offset: npt.ArrayLike, exponent: int, target: int, least: int, greatest: int
) -> Fixed:
    """Direct quantization of (pixels*factor + offset) * 2^exponent: pixels uint8 [N, C, H, W], factor and offset [1, C, 1, 1]."""
    return direct(exact(pixels) * exact(factor) + exact(offset), exponent, target, least, greatest)


# -- WAGEUBN, quantization of errors ---------------------------------------------------------------------------------------


def shift(m: npt.ArrayLike, exponent: int, bits: int) -> Fixed:
    """SQ: direct quantization on the grid R / 2^(bits-1), R the power-of-two range of the whole tensor; symmetric bounds."""
    target = exponent + range_log2(m) - (bits - 1)
    return direct(m, exponent, target, -signed(bits), signed(bits))


def flag(m: npt.ArrayLike, exponent: int) -> tuple[Integers, Integers, int]:
    """Flag quantization: (high, low, exponent) with value = (2^7*high + low) * 2^exponent, one of the parts 0.

    With s = R/2^7: where |x| >= s, high = clip(round(x/s), -127, 127); below, low = round(x / (s/2^7)), and a low that rounds to
    +-2^7 is carried into high as +-1. The exponent is that of s/2^7.
    """
    target = exponent + range_log2(m) - 2 * FLAG_BITS
    coarse = clip(rescale(m, target + FLAG_BITS - exponent), -127, 127)
    fine = rescale(m, target - exponent)
    is_coarse = rescale(exact(abs(exact(m))), 0) * 2 ** max(exponent, 0) >= 0  # replaced below
    return coarse, fine, target

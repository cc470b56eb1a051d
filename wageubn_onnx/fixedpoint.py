"""What a float tensor of `quant_training` is in `int_training`: mantissas, a power-of-two exponent, and proven bounds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from wageubn_onnx.graph import Model, Tensor


@dataclass(frozen=True)
class Exponent:
    """static + the sum of run-time int32 scalars."""

    static: int = 0
    terms: tuple[Tensor, ...] = ()

    def __add__(self, other: Exponent | int) -> Exponent:
        if isinstance(other, int):
            return Exponent(self.static + other, self.terms)
        return Exponent(self.static + other.static, self.terms + other.terms)

    def same_terms(self, other: Exponent) -> bool:
        """Whether the two differ by a static amount."""
        return Counter(t.name for t in self.terms) == Counter(t.name for t in other.terms)

    def tensor(self, g: Model) -> Tensor:
        """As one int32 scalar tensor."""
        if not self.terms:
            return g.scalar(self.static, np.int32)
        total = self.terms[0]
        for term in self.terms[1:]:
            total = g.op("Add", total, term, name="exponent")
        return g.op("Add", total, g.scalar(self.static, np.int32), name="exponent") if self.static else total

    def distance(self, g: Model, source: Exponent) -> Tensor:
        """self - source as an int32 scalar tensor: how far a mantissa on ``source`` must shift right to come here."""
        mine, theirs = Counter(t.name for t in self.terms), Counter(t.name for t in source.terms)
        plus = _take(self.terms, mine - theirs)
        minus = _take(source.terms, theirs - mine)
        total = Exponent(self.static - source.static, plus).tensor(g)
        for term in minus:
            total = g.op("Sub", total, term, name="shift")
        return total


def _take(terms: tuple[Tensor, ...], wanted: Counter[str]) -> tuple[Tensor, ...]:
    left, taken = Counter(wanted), []
    for term in terms:
        if left[term.name] > 0:
            left[term.name] -= 1
            taken.append(term)
    return tuple(taken)


@dataclass(frozen=True)
class Fixed:
    """value = tensor * 2^exponent, every mantissa in lo..hi."""

    tensor: Tensor
    exponent: Exponent
    lo: int
    hi: int

    @property
    def bound(self) -> int:
        return max(abs(self.lo), abs(self.hi))


@dataclass(frozen=True)
class Pair:
    """A tensor in two 8-bit parts: value = (2^base * high + low) * 2^low.exponent; or the int32 sums of products of one.

    base is 7 for a flag-quantized tensor, one part of which is always 0, and 8 for the limbs of 16 bits.
    """

    high: Fixed
    low: Fixed
    base: int = 7


@dataclass(frozen=True)
class Ratio:
    """value = numerator / denominator, not yet rounded; denominators are at least 1."""

    numerator: Fixed
    denominator: Fixed

    @property
    def exponent(self) -> Exponent:
        return self.numerator.exponent + Exponent(-self.denominator.exponent.static)


@dataclass(frozen=True)
class Offset:
    """value = ratio + a constant, not yet rounded."""

    ratio: Ratio
    constant: Constant


@dataclass(frozen=True)
class Root:
    """value = sqrt(radicand), not yet rounded."""

    radicand: Offset


@dataclass(frozen=True)
class Step:
    """A power of two that is known at run time: a grid."""

    exponent: Exponent


@dataclass(frozen=True)
class Constant:
    """A constant of the float graph, exact."""

    values: np.ndarray[Any, Any]

    @property
    def is_power_of_two(self) -> bool:
        return self.values.size == 1 and math.frexp(float(self.values.ravel()[0]))[0] == 0.5

    @property
    def log2(self) -> int:
        return math.frexp(float(self.values.ravel()[0]))[1] - 1


@dataclass(frozen=True)
class Raw:
    """A tensor that is no number on a grid: labels, indices, conditions, random bits."""

    tensor: Tensor


@dataclass(frozen=True)
class Pixels:
    """The uint8 images, to be normalised by their quantizer."""

    tensor: Tensor


Value = Fixed | Pair | Ratio | Offset | Root | Step | Constant | Raw | Pixels


def dtype_for(lo: int, hi: int) -> Any:
    """The narrowest dtype that holds lo..hi; a tensor that is never negative and fits 8 bits is uint8."""
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64):
        info = np.iinfo(dtype)
        if info.min <= lo and hi <= info.max:
            return np.dtype(dtype)
    raise ValueError(f"{lo}..{hi} does not fit 64 bits")


def mantissas(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """Exact integers and the exponent with values = integers * 2^exponent, the exponent as great as can be."""
    exponent = 0
    nonzero = [float(v) for v in np.ravel(values) if v != 0]
    if nonzero:
        exponent = min(_trailing(v) for v in nonzero)
    return np.array([round(math.ldexp(float(v), -exponent)) for v in np.ravel(values)], dtype=object).reshape(
        values.shape
    ), exponent


def _trailing(value: float) -> int:
    """The exponent of a float's last set bit."""
    mantissa, exponent = math.frexp(value)
    whole = int(math.ldexp(mantissa, 53))
    return exponent - 53 + (whole & -whole).bit_length() - 1

"""What a float tensor of `quant_training` is in `int_training`: mantissas, a power-of-two exponent, and proven bounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.graph import Model, Tensor


@dataclass(frozen=True)
class Exponent:
    """static + the sum of ``terms`` - the sum of ``minus``: int32 tensors of the step, [] or one a channel, [1, C, 1, 1]."""

    static: int = 0
    terms: tuple[Tensor, ...] = ()
    minus: tuple[Tensor, ...] = ()

    def __add__(self, other: Exponent | int) -> Exponent:
        """What one adds and the other subtracts is gone."""
        if isinstance(other, int):
            return Exponent(self.static + other, self.terms, self.minus)
        terms, minus = self.terms + other.terms, self.minus + other.minus
        return Exponent(self.static + other.static, _without(terms, minus), _without(minus, terms))

    def __sub__(self, other: Exponent) -> Exponent:
        return self + Exponent(-other.static, other.minus, other.terms)

    @property
    def is_static(self) -> bool:
        return not self.terms and not self.minus

    @property
    def is_per_channel(self) -> bool:
        return any(t.shape for t in (*self.terms, *self.minus))

    def same_terms(self, other: Exponent) -> bool:
        """Whether the two differ by a static amount."""
        return (self - other).is_static

    def tensor(self, g: Model) -> Tensor:
        """As one int32 tensor."""
        total: Tensor | None = None
        for term in self.terms:
            total = term if total is None else g.op("Add", total, term, name="exponent")
        if self.static or total is None:
            static = g.scalar(self.static, np.int32)
            total = static if total is None else g.op("Add", total, static, name="exponent")
        for term in self.minus:
            total = g.op("Sub", total, term, name="exponent")
        return total


def _without(terms: tuple[Tensor, ...], gone: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    left, kept = Counter(t.name for t in gone), []
    for term in terms:
        if left[term.name] > 0:
            left[term.name] -= 1
        else:
            kept.append(term)
    return tuple(kept)


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
        return self.numerator.exponent - self.denominator.exponent


@dataclass(frozen=True)
class Offset:
    """value = ratio + a constant, which a run-time grid makes a tensor; not yet rounded."""

    ratio: Ratio
    constant: Constant | Fixed


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


def _parts(value: Value) -> list[Value]:
    """What a value is made of; nothing of one that holds tensors itself."""
    return [part for f in fields(value) if isinstance(part := getattr(value, f.name), (Fixed, Ratio, Offset, Constant))]


def tensors_of(value: Value) -> list[Tensor]:
    """The tensors of mantissas, or of what is on no grid, that hold ``value``."""
    if isinstance(value, (Fixed, Raw, Pixels)):
        return [value.tensor]
    return [tensor for part in _parts(value) for tensor in tensors_of(part)]


def terms_of(value: Value) -> list[Tensor]:
    """The tensors that its exponents are made of."""
    own = [*value.exponent.terms, *value.exponent.minus] if isinstance(value, (Fixed, Step)) else []
    return own + [tensor for part in _parts(value) for tensor in terms_of(part)]


def renamed(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """``value`` with these tensors in the place of those of these names."""
    if isinstance(value, gs.Tensor):
        return tensors.get(value.name, value)
    if isinstance(value, tuple):
        return tuple(renamed(part, tensors) for part in value)
    if isinstance(value, (Fixed, Pair, Ratio, Offset, Root, Step, Raw, Pixels, Exponent)):
        return replace(value, **{f.name: renamed(getattr(value, f.name), tensors) for f in fields(value)})
    return value


def signature(value: Any, places: Mapping[str, str]) -> Hashable:
    """What tells values apart, by the ``places`` of their tensors and not by their names; of constants their contents."""
    if isinstance(value, gs.Constant):
        return value.values.dtype.str, value.values.shape, value.values.tobytes()
    if isinstance(value, gs.Tensor):
        return places[value.name]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return tuple(signature(part, places) for part in value)
    if is_dataclass(value):
        return type(value).__name__, *(signature(getattr(value, f.name), places) for f in fields(value))
    hash(value)
    return value  # type: ignore[no-any-return]


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

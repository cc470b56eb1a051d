"""What every function of the project requires of its operands, and by which cases its body is proven.

A contract says which operands a body is exact for (``requires``), and by which cases of one operand, together all of them, plain
intervals see why nothing overflows. In a case a shift amount is one number, and so are the factor and the divisor that a table
gives for it. ``bands`` of max|m| do that where the shift is derived from m itself: a band's end bounds every |m|, and all of a
band has one round(log2 max|m|).

To add a function: a Contract beside these. Without one, the file is refused and a test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from wageubn_onnx.proofs.intervals import Bound
from wageubn_onnx.quantizers import floating, integer, tables

Interval = tuple[int, int]
Attributes = Mapping[str, Any]
Requirements = Callable[[Attributes], dict[str, Interval]]


@dataclass(frozen=True)
class Split:
    """Cases of one operand that cover all its values. elementwise: a case is about single elements, not the whole tensor."""

    operand: str
    cases: Callable[[Bound], list[Bound]]
    elementwise: bool = False


@dataclass(frozen=True)
class Contract:
    """Of ``function``. requires: operand -> least and greatest, given the call's attributes; the others may be anything.

    splits: each is a complete case analysis; a node is proven where one of them proves it in all its cases. relative: operands in
    which linear bounds are kept. lemmas: tensor -> its range from the operands' bounds; they hold for this body only.
    """

    function: onnx.FunctionProto
    requires: Requirements
    splits: tuple[Split, ...] = ()
    relative: tuple[str, ...] = ()
    lemmas: Mapping[str, Callable[[Mapping[str, Bound]], Interval]] = field(default_factory=dict)


# -- ranges of operands ---------------------------------------------------------------------------------------------------


def _symmetric(limit: int) -> Interval:
    return -limit, limit


NARROW = _symmetric(2**integer.SHIFT_LIMIT - 1)
WIDE = _symmetric(2**integer.WIDE_LIMIT - 1)
INT32 = _symmetric(2**31 - 1)


def _takes(**ranges: Interval) -> Requirements:
    """The same for every call."""
    return lambda attributes: ranges


# -- cases ----------------------------------------------------------------------------------------------------------------


def values(operand: str, least: int, greatest: int) -> Split:
    """Each of least..greatest, all below, all above."""

    def cases(x: Bound) -> list[Bound]:
        singles = [(v, v) for v in range(max(least, x.lo), min(greatest, x.hi) + 1)]
        parts = [(x.lo, least - 1), *singles, (greatest + 1, x.hi)]
        return [part for lo, hi in parts if (part := x.meet(lo, hi)) is not None]

    return Split(operand, cases, elementwise=True)


def octaves(operand: str) -> Split:
    """2^k <= x < 2^(k+1), for x >= 1."""

    def cases(x: Bound) -> list[Bound]:
        parts = (x.meet(2**k, 2 ** (k + 1) - 1) for k in range(x.hi.bit_length()))
        return [part for part in parts if part is not None]

    return Split(operand, cases, elementwise=True)


def bands(operand: str, thresholds: Sequence[int]) -> Split:
    """max|m| = 0, or from one threshold of round(log2 max|m|) to below the next."""
    edges = [0, 1, *thresholds]

    def cases(m: Bound) -> list[Bound]:
        found = []
        for least, after in zip(edges, [*edges[1:], m.magnitude + 1], strict=True):
            part = m.meet(1 - after, after - 1)
            if part is not None and max(least, m.peak) <= part.magnitude:
                found.append(part._replace(peak=max(least, m.peak)))
        return found

    return Split(operand, cases)


BANDS = tables.THRESHOLDS
WIDE_BANDS = tables.WIDE_THRESHOLDS


# -- the contracts --------------------------------------------------------------------------------------------------------


def _ratio(attributes: Attributes) -> dict[str, Interval]:
    return {"m": INT32, "divisor": (1, (2**31 - 1) // (4 * int(attributes["greatest"]) + 5))}


def _greatest_magnitude(bounds: Mapping[str, Bound]) -> Interval:
    """Two-part maximum: the greatest upper half, and the greatest lower half of those that have it, are the greatest number's."""
    m = bounds["m"]
    return m.peak, m.magnitude


_CONTRACTS = (
    Contract(integer.ROUND_SHIFT, _takes(m=NARROW, shift=INT32), (values("shift", -31, integer.SHIFT_LIMIT),)),
    Contract(
        integer.ROUND_SHIFT_WIDE,
        _takes(m=WIDE, shift=INT32, limit=(0, 2**53 - 1)),
        (values("shift", -integer.WIDE_LIMIT - 1, integer.WIDE_LIMIT),),
    ),
    Contract(integer.DIRECT, _takes(m=NARROW, shift=INT32)),
    Contract(integer.DIRECT_WIDE, _takes(m=WIDE, shift=INT32)),
    Contract(integer.DIRECT_RATIO, _ratio, relative=("divisor",)),
    Contract(integer.DIRECT_RATIO_WIDE, _takes(m=WIDE, divisor=(1, 2**52))),
    Contract(
        integer.DIRECT_ROOT,
        _takes(total=(0, 2**52 - 1), count=(1, 2**52 - 1), factor=(1, 2**52 - 1), offset=(0, 2**62 - 1)),
    ),
    Contract(integer.DIRECT_IMAGE, _takes(pixels=(0, 255), factor=NARROW, offset=NARROW, shift=INT32)),
    Contract(integer.RANGE, _takes(m=INT32)),
    Contract(integer.SHIFT, _takes(m=NARROW), (bands("m", BANDS),)),
    Contract(integer.FLAG, _takes(m=NARROW), (bands("m", BANDS),)),
    Contract(
        integer.ALIGN,
        _takes(a=NARROW, b=NARROW, a_exponent=_symmetric(2**29), b_exponent=_symmetric(2**29)),
        (bands("a", BANDS), bands("b", BANDS)),
        relative=("a_exponent", "b_exponent"),
    ),
    Contract(integer.PAIR, _takes(high=NARROW, low=NARROW)),
    Contract(
        integer.CONSTANT,
        _takes(m=WIDE, dr=(2, 128), random=(0, 2**16 - 1)),
        (bands("m", WIDE_BANDS),),
        lemmas={"greatest": _greatest_magnitude},
    ),
    Contract(integer.EXPONENTIAL, _takes(t=(-(2**31) + 1, 0))),
    Contract(integer.LOGARITHM, _takes(x=(2**tables.EXP_BITS, 2**30)), (octaves("x"),)),
    Contract(floating.MIX, _takes(x=(0, 2**32 - 1))),
    Contract(floating.RANDOM, _takes(number=(0, 2**31 - 1))),
)
CONTRACTS: dict[str, Contract] = {c.function.name: c for c in _CONTRACTS}

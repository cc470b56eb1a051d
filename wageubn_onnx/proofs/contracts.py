"""What every function of the project requires of its operands, and by which cases its body is proven.

A contract says which operands a body is exact for (``requires``), and by which cases of one operand, together all of them, plain
intervals see why nothing overflows. In a case a shift amount is one number, and so are the factor and the divisor that a table
gives for it. ``bands`` of max|m| do that where the shift is derived from m itself: a band's end bounds every |m|, and all of a
band has one round(log2 max|m|).

To add a function: a Contract beside these. Without one, the file is refused and a test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from wageubn_onnx.onnxir.trace import Variants
from wageubn_onnx.proofs.bounds import Bound
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
    which linear bounds are kept.
    """

    function: onnx.FunctionProto
    requires: Requirements
    splits: tuple[Split, ...] = ()
    relative: tuple[str, ...] = ()


# -- ranges of operands ---------------------------------------------------------------------------------------------------


def _symmetric(limit: int) -> Interval:
    return -limit, limit


NARROW = _symmetric(2**integer.SHIFT_LIMIT - 1)
WIDE = _symmetric(2**integer.WIDE_LIMIT - 1)
INT32 = _symmetric(2**31 - 1)
SHIFT = _symmetric(2**30)
EXPONENT = _symmetric(2**28)


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


def bands(operand: str) -> Split:
    """max|m| = 0, or from one threshold of round(log2 max|m|) to below the next."""
    edges = [0, 1, *tables.THRESHOLDS]

    def cases(m: Bound) -> list[Bound]:
        found = []
        for least, after in zip(edges, [*edges[1:], m.magnitude + 1], strict=True):
            part = m.meet(1 - after, after - 1)
            if part is not None and max(least, m.peak) <= part.magnitude:
                found.append(part._replace(peak=max(least, m.peak)))
        return found

    return Split(operand, cases)


# -- the contracts --------------------------------------------------------------------------------------------------------


def _ratio(attributes: Attributes) -> dict[str, Interval]:
    return {"m": INT32, "divisor": (1, (2**31 - 1) // (4 * int(attributes["greatest"]) + 5))}


def _each(variants: Variants, *splits: Split, relative: tuple[str, ...] = (), **ranges: Interval) -> list[Contract]:
    """Contracts of one function in several roundings; a stochastic one also takes random bits."""
    found = []
    for function in variants.values():
        random = {"random": (0, 2**16 - 1)} if "random" in function.input else {}
        found.append(Contract(function, _takes(**ranges, **random), splits, relative))
    return found


EXACT_WIDE = {rounding: integer.ROUND_SHIFT_WIDE[rounding] for rounding in integer.DETERMINISTIC}
RANDOM_WIDE = {"stochastic": integer.ROUND_SHIFT_WIDE["stochastic"]}  # shifts by 16 bits less
DEEPEST = integer.WIDE_LIMIT
_CONTRACTS = (
    *_each(integer.ROUND_SHIFT, values("shift", -31, integer.SHIFT_LIMIT), m=NARROW, shift=SHIFT),
    *_each(EXACT_WIDE, values("shift", -DEEPEST - 1, DEEPEST), m=WIDE, shift=SHIFT, limit=(0, 2**53 - 1)),
    *_each(RANDOM_WIDE, values("shift", 15 - DEEPEST, 16 + DEEPEST), m=WIDE, shift=SHIFT, limit0=(0, 2**36 - 1)),
    *_each(integer.DIRECT, m=NARROW, shift=SHIFT),
    *_each(integer.GRID, values("shift", -20, integer.SHIFT_LIMIT), m=NARROW, shift=SHIFT),
    *_each(integer.DIRECT_WIDE, m=WIDE, shift=SHIFT),
    *(Contract(function, _ratio, relative=("divisor",)) for function in integer.DIRECT_RATIO.values()),
    *_each(integer.DIRECT_RATIO_WIDE, m=WIDE, divisor=(1, 2**52)),
    *_each(integer.DIRECT_ROOT, total=(0, 2**52 - 1), count=(1, 2**52 - 1), factor=(1, 2**52 - 1), offset=(0, 2**62 - 1)),
    *_each(integer.DIRECT_IMAGE, pixels=(0, 255), factor=NARROW, offset=NARROW, shift=SHIFT),
    Contract(integer.RANGE, _takes(m=INT32)),
    Contract(integer.GUARD, _takes(log=INT32, fraction=(0, 30))),
    *_each(integer.SHIFT, bands("m"), m=NARROW, m_exponent=EXPONENT),
    Contract(integer.LIMBS, _takes()),
    *_each(integer.FLAG, bands("m"), m=NARROW, m_exponent=EXPONENT),
    *_each(
        integer.ALIGN,
        bands("a"),
        bands("b"),
        a=NARROW,
        a_exponent=EXPONENT,
        b=NARROW,
        b_exponent=EXPONENT,
        relative=("a_exponent", "b_exponent"),
    ),
    *_each(integer.PAIR, high=NARROW, low=NARROW),
    *_each(integer.CONSTANT, m=WIDE, dr=(2, 128)),
    *(Contract(function, _takes(q=NARROW, held=EXPONENT)) for function in (integer.FOLLOW, integer.FOLLOW_CHANNELS)),
    Contract(integer.EXPONENTIAL, _takes(t=(-(2**31) + 1, 0))),
    Contract(integer.LOGARITHM, _takes(x=(2**tables.EXP_BITS, 2**30)), (octaves("x"),)),
    Contract(floating.MIX, _takes(x=(0, 2**32 - 1))),
    Contract(floating.RANDOM, _takes(number=(0, 2**31 - 1))),
)
CONTRACTS: dict[str, Contract] = {c.function.name: c for c in _CONTRACTS}

"""Bounds of a tensor as lines in one of a function's operands: p*s + q <= x <= r*s + t for every value of s.

Plain intervals forget that the x of x/s, or of x - s, was made from s itself; a line does not. Kept where a contract asks for it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from wageubn_onnx.proofs.bounds import Known, Op


class Line(NamedTuple):
    """slope * s + offset."""

    slope: int
    offset: int

    def at(self, s: int) -> int:
        return self.slope * s + self.offset

    def plus(self, other: Line, sign: int = 1) -> Line:
        return Line(self.slope + sign * other.slope, self.offset + sign * other.offset)

    def times(self, factor: int) -> Line:
        return Line(self.slope * factor, self.offset * factor)


Between = tuple[Line, Line]  # lower, upper
Lines = dict[str, dict[str, Between]]  # symbol -> tensor -> its lines


def line_rule(walk: Known, op: Op, symbol: str, known: dict[str, Between]) -> Between | None:
    """The lines of a node's result in ``symbol``; None where they would say no more than its interval."""
    if not any(name in known for name in op.inputs):
        return None
    operands = [known.get(name) or _flat(walk, name) for name in op.inputs]
    (low, high), *rest = operands
    if op.op in ("Cast", "Identity"):
        return low, high
    if op.op == "Where":
        condition = walk.bounds[op.inputs[0]]
        return operands[1 if condition.lo else 2] if condition.is_constant else None
    if len(rest) != 1:
        return None
    ((other_low, other_high),) = rest
    if op.op == "Add":
        return low.plus(other_low), high.plus(other_high)
    if op.op == "Sub":
        return low.plus(other_high, -1), high.plus(other_low, -1)
    if op.op == "Mul":
        return _scaled(walk, op, operands)
    ends = walk.bounds[symbol].lo, walk.bounds[symbol].hi
    if op.op == "Max":  # either lower line holds
        return _chosen(low, other_low, ends, 1), _dominating(high, other_high, ends, 1) or _flat(walk, *op.inputs)[1]
    if op.op == "Min":
        return _dominating(low, other_low, ends, -1) or _flat(walk, *op.inputs)[0], _chosen(high, other_high, ends, -1)
    if op.op == "Div":
        return _quotient(low, high, other_low, other_high, ends)
    return None


def _flat(walk: Known, *names: str) -> Between:
    """Constant lines around some tensors."""
    return Line(0, min(walk.bounds[n].lo for n in names)), Line(0, max(walk.bounds[n].hi for n in names))


def _scaled(walk: Known, op: Op, operands: list[Between]) -> Between | None:
    for (low, high), name in zip(operands, op.inputs[::-1], strict=True):
        factor = walk.bounds[name]
        if factor.is_constant:
            scaled = low.times(factor.lo), high.times(factor.lo)
            return scaled if factor.lo >= 0 else scaled[::-1]
    return None


def _dominating(a: Line, b: Line, ends: tuple[int, int], sign: int) -> Line | None:
    """The one that is nowhere below the other (sign -1: above); lines that are so at both ends are so between them."""
    for one, other in ((a, b), (b, a)):
        if all(sign * one.at(s) >= sign * other.at(s) for s in ends):
            return one
    return None


def _chosen(a: Line, b: Line, ends: tuple[int, int], sign: int) -> Line:
    """Of two lines that both hold: the closer one, else the one that is no constant."""
    return _dominating(a, b, ends, sign) or (a if a.slope else b)


def _quotient(low: Line, high: Line, divisor: Line, same: Line, ends: tuple[int, int]) -> Between | None:
    """Of floor(x / (k*s)) for s >= 1: (p*s + q) / (k*s) lies between its values at the two ends."""
    if divisor != same or divisor.offset or divisor.slope < 1 or ends[0] < 1:
        return None

    def over(line: Line) -> list[Fraction]:
        return [Fraction(line.at(s), divisor.at(s)) for s in ends]

    return Line(0, math.floor(min(over(low)))), Line(0, math.floor(max(over(high))))

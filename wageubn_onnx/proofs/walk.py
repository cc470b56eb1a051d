"""The walk over a graph's or a function body's nodes that gives every tensor a bound, and every doubtful node a failure.

After a failure the walk goes on with any value of the result's dtype, so that each failure stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.proofs.bounds import LIMITS, Bound, Op, Shape, Unproven, of_array, whole
from wageubn_onnx.proofs.intervals import ELEMENTWISE, READS_BITS, TRANSFER
from wageubn_onnx.proofs.linear import Line, Lines, line_rule
from wageubn_onnx.proofs.targets import FORBIDDEN, MICROSOFT, SCALES

T = onnx.TensorProto
REFINED = 3  # nodes that a choice's condition is followed back through


@dataclass
class Walk:
    """Bounds of every tensor that ``ops`` make from the tensors already in ``bounds``.

    constants: values of tensors that have one, which are in ``bounds`` too. shape: a tensor's dimensions, a str for one without a
    number; raises Unproven where it is not known. call: the bounds of a function call's outputs, and why they are in doubt
    (empty: proven). symbols: tensors relative to which linear bounds are kept too (linear.py). elementwise: operands were bounded
    element by element, so nothing may reduce over elements.
    """

    ops: Sequence[Op]
    bounds: dict[str, Bound]
    constants: dict[str, np.ndarray[Any, Any]]
    shape: Callable[[str], Shape]
    call: Callable[[Op, list[Bound]], tuple[list[Bound], str]]
    symbols: tuple[str, ...] = ()
    elementwise: bool = False
    failures: dict[int, str] = field(default_factory=dict)  # index of the node -> why
    lines: Lines = field(default_factory=dict)
    _makers: dict[str, Op] = field(default_factory=dict)

    def run(self) -> Walk:
        """Walk; what went wrong is in ``failures``."""
        for symbol in self.symbols:
            self.lines[symbol] = {symbol: (Line(1, 0), Line(1, 0))}
        for index, op in enumerate(self.ops):
            for name in op.outputs:
                self._makers[name] = op
            self._step(index, op)
        return self

    def _step(self, index: int, op: Op) -> None:
        try:
            if op.op == "Constant":
                if op.outputs[0] in self.constants:
                    return
                value = constant_value(op)
                self.constants[op.outputs[0]] = value
                self.bounds[op.outputs[0]] = of_array(value)
                return
            operands = self._operands(op)
            if op.domain not in ("", MICROSOFT):
                results, doubt = self.call(op, operands)
                self.bounds.update(zip(op.outputs, results, strict=False))
                if doubt:
                    raise Unproven(doubt)
                return
            self.bounds[op.outputs[0]] = self._result(op, operands)
        except Unproven as reason:
            self.failures[index] = str(reason)
            for name, bound in self._unknown(op):
                self.bounds.setdefault(name, bound)

    def _operands(self, op: Op) -> list[Bound]:
        """All but the float scales, which the audit looks at."""
        if "" in op.inputs:
            raise Unproven("leaves out an operand in the middle")
        scales = SCALES.get(op.op, ())
        try:
            operands = [self.bounds[name] for i, name in enumerate(op.inputs) if i not in scales]
        except KeyError as missing:
            raise Unproven(f"reads {missing.args[0]!r}, which nothing makes before it") from None
        if op.op not in READS_BITS or op.domain:
            for bound in operands:
                if bound.bits:
                    raise Unproven("reads the bits of int8 numbers as unsigned ones")
        return operands

    def _result(self, op: Op, operands: list[Bound]) -> Bound:
        """The transfer function's bound, tightened by lines, held to the dtype."""
        transfer = TRANSFER.get(op.op)
        if transfer is None:
            raise Unproven("has no transfer function (proofs/intervals.py)")
        if len(op.outputs) > 1:
            raise Unproven("has a second output, which has no transfer function")
        reason = FORBIDDEN.get((op.op, operands[0].dtype))
        if reason:
            raise Unproven(reason)
        try:
            bound = transfer(self, op, operands)
        except (LookupError, TypeError, ValueError) as error:  # another number of operands, another rank or attribute
            raise Unproven(f"has a form that its transfer function does not know ({error})") from None
        if self.lines:
            bound = self._on_lines(op, bound)
        least, greatest = LIMITS[bound.dtype]
        if bound.lo < least or bound.hi > greatest:
            reach, limit = (bound.hi, greatest) if bound.hi > greatest else (bound.lo, least)
            raise Unproven(f"may reach {reach}, beyond {limit} of {T.DataType.Name(bound.dtype).lower()}")
        return bound

    def _unknown(self, op: Op) -> list[tuple[str, Bound]]:
        """Whatever a node without proof may return: any value of its dtype."""
        if op.domain:
            return [(name, whole(T.INT64)) for name in op.outputs]
        operands = [self.bounds[name] for name in op.inputs if name in self.bounds]
        dtype = operands[0].dtype if operands else T.INT64
        if op.op == "Cast":
            dtype = op.attrs["to"]
        elif op.op in ("ConvInteger", "MatMulInteger"):
            dtype = T.INT32
        elif op.op == "Where" and len(operands) > 1:
            dtype = operands[1].dtype
        return [(name, whole(dtype if dtype in LIMITS else T.INT64)) for name in op.outputs]

    # -- what transfer functions ask -----------------------------------------------------------------------------------

    def maker(self, name: str) -> Op | None:
        """The node that makes a tensor, of those walked over so far."""
        return self._makers.get(name)

    def origin(self, name: str) -> str:
        """The tensor of the same numbers from which casts and identities made ``name``."""
        op = self._makers.get(name)
        while op is not None and op.op in ("Cast", "Identity") and self.bounds[op.inputs[0]][:2] == self.bounds[name][:2]:
            name = op.inputs[0]
            op = self._makers.get(name)
        return name

    def assume(self, condition: str, truth: bool) -> dict[str, Bound] | None:
        """What ``condition`` being ``truth`` says of tensors at one element, itself among them; None where it never is."""
        known = self.bounds[condition].meet(int(truth), int(truth))
        if known is None:
            return None
        op, found = self._makers.get(condition), {condition: known}
        if op is None:
            return found
        if op.op == "Not":
            return self._merged([found, self.assume(op.inputs[0], not truth)])
        if op.op in ("And", "Or"):
            if truth == (op.op == "And"):  # both operands are known
                return self._merged([found, *(self.assume(name, truth) for name in op.inputs)])
            for name, other in (op.inputs, op.inputs[::-1]):
                if self.bounds[name][:2] == (int(not truth), int(not truth)):  # so it is the other one's doing
                    return self._merged([found, self.assume(other, truth)])
        if op.op in COMPARISONS:
            return self._merged([found, self._compared(op, truth)])
        return found

    def _compared(self, op: Op, truth: bool) -> dict[str, Bound] | None:
        """What a comparison says of its operands; of |x|, also of x."""
        x, y = (self.bounds[name] for name in op.inputs)
        found = dict[str, Bound]()
        for name, bound, (lo, hi) in zip(op.inputs, (x, y), COMPARISONS[op.op](x, y, truth), strict=True):
            held = bound.meet(bound.lo if lo is None else lo, bound.hi if hi is None else hi)
            if held is None:
                return None
            found[name] = held
            made = self._makers.get(name)
            if made is not None and made.op == "Abs":
                inside = self.bounds[made.inputs[0]].meet(-held.hi, held.hi)
                if inside is not None:
                    found[made.inputs[0]] = inside
        return found

    def _merged(self, parts: Iterable[dict[str, Bound] | None]) -> dict[str, Bound] | None:
        found = dict[str, Bound]()
        for part in parts:
            if part is None:
                return None
            for name, bound in part.items():
                held = found[name].meet(bound.lo, bound.hi) if name in found else bound
                if held is None:
                    return None
                found[name] = held
        return found

    def under(self, name: str, assumed: Mapping[str, Bound], depth: int = REFINED) -> Bound | None:
        """The bound of ``name`` at an element where ``assumed`` holds; None where there can be none.

        Followed back through elementwise operators only: what one element is known to be says nothing of the others.
        """
        if name in assumed:
            return assumed[name]
        bound, op = self.bounds[name], self._makers.get(name)
        if op is None or depth == 0:
            return bound
        if op.op == "Where":
            condition = assumed.get(op.inputs[0], self.bounds[op.inputs[0]])
            branch = self.under(op.inputs[1 if condition.lo else 2], assumed, depth - 1) if condition.is_constant else bound
            return branch and bound.meet(branch.lo, branch.hi)
        if op.op not in ELEMENTWISE:
            return bound
        operands = [self.under(i, assumed, depth - 1) for i in op.inputs]
        known = [o for o in operands if o is not None]
        if len(known) < len(operands):
            return None
        if known == [self.bounds[i] for i in op.inputs]:
            return bound
        try:
            refined = TRANSFER[op.op](self, op, known)
        except Unproven:
            return bound
        return bound.meet(refined.lo, refined.hi)

    def _on_lines(self, op: Op, bound: Bound) -> Bound:
        """Keep the linear bounds of a result, and what they say of its range."""
        for symbol, lines in self.lines.items():
            found = line_rule(self, op, symbol, lines)
            if found is not None:
                lower, upper = lines[op.outputs[0]] = found
                ends = self.bounds[symbol].lo, self.bounds[symbol].hi
                bound = bound.meet(min(map(lower.at, ends)), max(map(upper.at, ends))) or bound
        return bound


Ends = tuple[tuple[int | None, int | None], tuple[int | None, int | None]]  # of x and of y; None: nothing new


def _above(x: Bound, y: Bound, gap: int) -> Ends:
    """x >= y + gap."""
    return (y.lo + gap, None), (None, x.hi - gap)


def _swapped(ends: Ends) -> Ends:
    return ends[1], ends[0]


def _equal_ends(x: Bound, y: Bound, truth: bool) -> Ends:
    if truth:
        return (y.lo, y.hi), (x.lo, x.hi)
    return _unequal(x, y), _unequal(y, x)


def _unequal(x: Bound, y: Bound) -> tuple[int | None, int | None]:
    """x without an end that is the one value of y."""
    if not y.is_constant:
        return None, None
    return x.lo + 1 if x.lo == y.lo else None, x.hi - 1 if x.hi == y.hi else None


COMPARISONS: dict[str, Callable[[Bound, Bound, bool], Ends]] = {
    "Greater": lambda x, y, truth: _above(x, y, 1) if truth else _swapped(_above(y, x, 0)),
    "GreaterOrEqual": lambda x, y, truth: _above(x, y, 0) if truth else _swapped(_above(y, x, 1)),
    "Less": lambda x, y, truth: _swapped(_above(y, x, 1)) if truth else _above(x, y, 0),
    "LessOrEqual": lambda x, y, truth: _swapped(_above(y, x, 0)) if truth else _above(x, y, 1),
    "Equal": _equal_ends,
}


def is_integer(op: Op) -> bool:
    """Whether a Constant node has integers that no call decides."""
    value = op.attrs.get("value")
    return "value_int" in op.attrs or "value_ints" in op.attrs or (value is not None and value.data_type in LIMITS)


def constant_value(op: Op) -> np.ndarray[Any, Any]:
    """The value of a Constant node."""
    (kind, value), *_ = op.attrs.items()
    if kind == "value":
        return numpy_helper.to_array(value)
    if kind not in ("value_int", "value_ints"):
        raise Unproven(f"is a Constant by {kind}, and only integers have a range")
    return np.asarray(value, np.int64)

"""Calls of functions: each body walked over under its contract, once for every distinct set of operand bounds and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.proofs.bounds import Bound, Op, Shape, Unproven, hull, of_array
from wageubn_onnx.proofs.contracts import CONTRACTS, Contract
from wageubn_onnx.proofs.walk import Walk, constant_value, is_integer

ELEMENTS = "elements"  # the one dimension of an operand that is no scalar: bodies treat all its elements alike
LIMIT = 10_000  # walks that a process remembers of all its models, some 10 kB each
Leaf = tuple[Walk, "dict[int, Analysis]"]  # one case: the walk, and the analyses of the calls in it by index


@dataclass
class Analysis:
    """One body under one set of operand bounds.

    outputs: bounds, in the function's order. failures: index of the node -> why it is not proven. inner: index of a call -> its
    analyses, one a case. leaves: the walks, by case analysis and case.
    """

    body: Body
    operands: tuple[Bound, ...]
    leaves: list[list[Leaf]]
    outputs: list[Bound] = field(init=False)
    failures: dict[int, str] = field(init=False)
    inner: dict[int, list[Analysis]] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = [self.bound(name) for name in self.body.outputs]
        self.failures, self.inner = {}, {}
        doubtful = {index for cases in self.leaves for walk, _ in cases for index in walk.failures}
        for index, op in enumerate(self.body.ops):
            if index not in doubtful and not op.domain:
                continue
            reasons = [next((w.failures[index] for w, _ in cases if index in w.failures), "") for cases in self.leaves]
            if all(reasons):
                self.failures[index] = reasons[0]
            elif op.domain:
                proven = self.leaves[reasons.index("")]
                self.inner[index] = list({id(calls[index]): calls[index] for _, calls in proven}.values())

    def bound(self, name: str) -> Bound:
        """Of a tensor of the body: over all cases of an analysis, the closest of what the analyses say."""
        found = [hull([walk.bounds[name] for walk, _ in cases]) for cases in self.leaves]
        lo, hi = max(b.lo for b in found), min(b.hi for b in found)
        return found[0]._replace(lo=lo, hi=hi)

    @property
    def doubt(self) -> str:
        """Why a call of it is not proven, naming the node of the body; empty where it is."""
        for index, reason in self.failures.items():
            op = self.body.ops[index]
            return f"in {self.body.name}, {op.outputs[0]} = {op.op} {reason}"
        return ""


class Body:
    """A function of the model, read once."""

    def __init__(self, function: onnx.FunctionProto) -> None:
        self.name = function.name
        self.inputs, self.outputs = tuple(function.input), tuple(function.output)
        self.defaults = {a.name: onnx.helper.get_attribute_value(a) for a in function.attribute_proto}
        self.ops = [Op.of(node) for node in function.node]
        self.constants = {op.outputs[0]: constant_value(op) for op in self.ops if op.op == "Constant" and is_integer(op)}
        self.fixed = {name: of_array(value) for name, value in self.constants.items()}
        self.read = sorted({source for op in self.ops for source in op.references.values()})


class Calls:
    """The functions of one library, and every analysis made of them so far."""

    @staticmethod
    def of(model: onnx.ModelProto) -> Calls:
        """Of the functions of ``model``. Models with the same functions, byte for byte, share what is known of them.

        What a body computes depends on nothing else, but for its contract, which is the package's.
        """
        content = tuple(f.SerializeToString(deterministic=True) for f in model.functions if f.domain == DOMAIN)
        if sum(len(calls._leaves) for calls in _shared.values()) > LIMIT:
            _shared.clear()
        if content not in _shared:
            _shared[content] = Calls(model)
        return _shared[content]

    def __init__(self, model: onnx.ModelProto) -> None:
        self.bodies = {f.name: Body(f) for f in model.functions if f.domain == DOMAIN}
        self._known: dict[Any, Analysis] = {}
        self._leaves: dict[Any, Leaf] = {}
        self._shapes: dict[Any, dict[str, Shape]] = {}

    def analyse(
        self, name: str, attributes: dict[str, Any], operands: Sequence[Bound], shapes: Sequence[Shape], elementwise: bool = False
    ) -> Analysis:
        """The analysis of one call. Raises Unproven where the function is unknown or an operand leaves what it requires."""
        contract, body = CONTRACTS.get(name), self.bodies.get(name)
        if contract is None or body is None:
            raise Unproven("calls a function without a contract (proofs/contracts.py)")
        attributes = body.defaults | {k: v for k, v in attributes.items() if k in body.read}
        scalar = tuple(not shape for shape in shapes)
        key = (name, tuple(sorted(attributes.items())), tuple(operands), scalar, elementwise)
        if key not in self._known:
            self._check(contract, body, attributes, operands)
            self._known[key] = self._analysed(contract, body, attributes, tuple(operands), scalar, elementwise)
        return self._known[key]

    def _check(self, contract: Contract, body: Body, attributes: dict[str, Any], operands: Sequence[Bound]) -> None:
        if len(operands) != len(body.inputs):
            raise Unproven(f"gives {len(operands)} operands to {body.name}, which takes {len(body.inputs)}")
        for name, (least, greatest) in contract.requires(attributes).items():
            bound = operands[body.inputs.index(name)]
            if bound.lo < least or bound.hi > greatest:
                raise Unproven(f"its operand {name} may be {bound.lo}..{bound.hi}, and {body.name} takes {least}..{greatest}")

    def _analysed(
        self,
        contract: Contract,
        body: Body,
        attributes: dict[str, Any],
        operands: tuple[Bound, ...],
        scalar: tuple[bool, ...],
        elementwise: bool,
    ) -> Analysis:
        call = body.name, tuple(sorted(attributes.items())), scalar

        def leaf(*bounds: Bound, apart: bool = elementwise) -> Leaf:
            key = call, bounds, apart
            if key not in self._leaves:
                self._leaves[key] = self._leaf(contract, body, attributes, bounds, scalar, apart)
            return self._leaves[key]

        if not contract.splits:
            return Analysis(body, operands, [[leaf(*operands)]])
        leaves = []
        for split in contract.splits:
            at = body.inputs.index(split.operand)
            apart = elementwise or (split.elementwise and not scalar[at])
            leaves.append([leaf(*operands[:at], case, *operands[at + 1 :], apart=apart) for case in split.cases(operands[at])])
        return Analysis(body, operands, leaves)

    def _leaf(
        self,
        contract: Contract,
        body: Body,
        attributes: dict[str, Any],
        operands: tuple[Bound, ...],
        scalar: tuple[bool, ...],
        elementwise: bool,
    ) -> Leaf:
        """One case: the body walked over with these bounds."""
        given = dict(zip(body.inputs, operands, strict=True))
        shapes = self.shapes(body, scalar)
        made: dict[str, Analysis] = {}

        def call(op: Op, inner: list[Bound]) -> tuple[list[Bound], str]:
            analysis = made[op.outputs[0]] = self.analyse(op.op, op.attrs, inner, [shapes[i] for i in op.inputs], elementwise)
            return analysis.outputs, analysis.doubt

        walk = Walk(
            [op.resolved(attributes) for op in body.ops],
            body.fixed | given,
            dict(body.constants),
            shapes.__getitem__,
            call,
            contract.relative,
            elementwise,
        ).run()
        return walk, {index: made[op.outputs[0]] for index, op in enumerate(body.ops) if op.outputs[0] in made}

    def shapes(self, body: Body, scalar: tuple[bool, ...]) -> dict[str, Shape]:
        """The dimensions of every tensor of a body, where each operand is a scalar or one symbolic dimension."""
        key = body.name, scalar
        if key not in self._shapes:
            shapes: dict[str, Shape] = {n: () if s else (ELEMENTS,) for n, s in zip(body.inputs, scalar, strict=True)}
            for op in body.ops:
                if op.domain and op.op in self.bodies:
                    callee = self.bodies[op.op]
                    inner = self.shapes(callee, tuple(not shapes[i] for i in op.inputs))
                    shapes |= {name: inner[o] for name, o in zip(op.outputs, callee.outputs, strict=True)}
                else:
                    shapes[op.outputs[0]] = _shape(op, shapes, body.constants)
            self._shapes[key] = shapes
        return self._shapes[key]


_shared: dict[tuple[bytes, ...], Calls] = {}


def _shape(op: Op, shapes: dict[str, Shape], constants: dict[str, np.ndarray[Any, Any]]) -> Shape:
    """Of the first output of a standard operator in a body."""
    if op.op == "Constant":
        return constants[op.outputs[0]].shape if op.outputs[0] in constants else ()
    operands = [shapes[i] for i in op.inputs]
    if op.op == "Gather":
        return operands[1]
    if op.op == "Range":
        return (ELEMENTS,)
    if op.op == "Unsqueeze":
        return (*operands[0], 1)
    if op.op in ("ReduceMax", "ReduceSum"):
        kept = op.attrs.get("keepdims", 1)
        last = len(op.inputs) > 1
        return (*operands[0][:-1], 1) if last and kept else operands[0][:-1] if last else (1,) * len(operands[0]) * kept
    return _broadcast(operands)


def _broadcast(shapes: list[Shape]) -> Shape:
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(next((d for d in dims if d != 1), 1) for dims in zip(*padded, strict=True))

"""The overflow proof: a range for every tensor of a finished integer model, for all inputs and all steps, from the file alone.

By induction over the steps: every state is assumed in the range that the file declares for it (metadata ``wageubn.ranges``), every
other input anywhere in its dtype, and every ``key.next`` must then lie in the range of ``key``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import numpy_helper

from wageubn_onnx.errors import ProofFailed
from wageubn_onnx.graph import PREFIX
from wageubn_onnx.manifest import STEP_INPUTS
from wageubn_onnx.proofs.bodies import Analysis, Calls
from wageubn_onnx.proofs.intervals import CAN_GROW, LIMITS, Bound, Unproven, hull, whole
from wageubn_onnx.proofs.targets import EXACT_SUMS
from wageubn_onnx.proofs.walk import Op, Shape, Walk

T = onnx.TensorProto
NEXT = ".next"  # a state's output is its input's name with this


@dataclass(frozen=True)
class Range:
    """What is proven of one tensor. node: of the graph, or ``function.tensor``, then over all calls of that function."""

    tensor: str
    node: str
    op: str
    dtype: str
    least: int
    greatest: int
    bits: int  # that the range needs, a sign included where the dtype has one
    headroom: int  # bits left of the dtype, or of what the target adds exactly

    @property
    def can_grow(self) -> bool:
        """Whether the operator makes greater numbers than it takes."""
        return self.op in CAN_GROW


@dataclass(frozen=True)
class Doubt:
    """A node, input or state that is not proven, and why."""

    where: str
    message: str


@dataclass
class Proof:
    """The ranges of a model. tensors counts every tensor that a node makes, bodies inlined; states those of the induction."""

    ranges: list[Range] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    tensors: int = 0
    states: int = 0

    @property
    def ok(self) -> bool:
        return not self.doubts

    @property
    def verdict(self) -> str:
        """One line."""
        if self.doubts:
            return f"{len(self.doubts)} not proven; the first: {self.doubts[0].where}: {self.doubts[0].message}"
        if self.states:
            return f"{self.tensors} tensors proven, by induction over {self.states} states"
        return f"{self.tensors} tensors proven"

    def tightest(self) -> list[Range]:
        """Those that an operator could let overflow, the least headroom first."""
        return sorted((r for r in self.ranges if r.can_grow), key=lambda r: (r.headroom, -r.bits, r.node))


def require(model: onnx.ModelProto, stage: str) -> None:
    """Raise ProofFailed, naming the node and the bound, where ``model`` is not proven."""
    proof = prove(model)
    if proof.doubts:
        first = proof.doubts[0]
        raise ProofFailed(f"{stage}: {first.where}: {first.message}; use a smaller --batch or image")


def prove(model: onnx.ModelProto) -> Proof:
    """Bound every tensor of an integer stage. Shapes are taken as the file declares them; `check_stage` has onnx infer them."""
    proof = Proof()
    calls: dict[str, Analysis] = {}  # first output of the calling node -> the function's analysis
    walk = _walked(model, calls, proof)
    for index, reason in walk.failures.items():
        op = walk.ops[index]
        proof.doubts.append(Doubt(f"node {op.name!r}", f"{op.op} {reason}"))
    _check_states(model, walk, proof)
    proof.ranges = [*_of_graph(walk), *_of_bodies(calls)]
    sizes = dict[int, int]()
    proof.tensors = sum(_inlined(calls[op.outputs[0]], sizes) if op.outputs[0] in calls else len(op.outputs) for op in walk.ops)
    return proof


def declared(model: onnx.ModelProto) -> dict[str, tuple[int, int]] | None:
    """The range of every state, as the file declares it; None where it does not."""
    texts = [p.value for p in model.metadata_props if p.key == PREFIX + "ranges"]
    return {key: (int(lo), int(hi)) for key, (lo, hi) in json.loads(texts[0]).items()} if texts else None


def _walked(model: onnx.ModelProto, calls: dict[str, Analysis], proof: Proof) -> Walk:
    """The walk over the graph itself."""
    graph, functions = model.graph, Calls(model)
    shapes = {v.name: _dimensions(v) for v in (*graph.input, *graph.output, *graph.value_info)}
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes |= {name: value.shape for name, value in constants.items()}

    def shape(name: str) -> Shape:
        if name not in shapes:
            raise Unproven(f"reads {name!r}, whose shape the file does not say")
        return shapes[name]

    def call(op: Op, operands: list[Bound]) -> tuple[list[Bound], str]:
        analysis = functions.analyse(op.op, op.attrs, operands, [shape(name) for name in op.inputs])
        calls[op.outputs[0]] = analysis
        return analysis.outputs, analysis.doubt

    return Walk([Op.of(node) for node in graph.node], _inputs(model, proof), constants, shape, call).run()


def _dimensions(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim)


def _inputs(model: onnx.ModelProto, proof: Proof) -> dict[str, Bound]:
    """The step's own inputs take any value of their dtype; every other input is a state, which must declare its range."""
    ranges = declared(model)
    if ranges is None:
        proof.doubts.append(Doubt("the model", f"does not declare the ranges of its states (metadata {PREFIX}ranges)"))
    constants = {t.name for t in model.graph.initializer}
    bounds = {}
    for value in model.graph.input:
        name, dtype = value.name, value.type.tensor_type.elem_type
        if dtype not in LIMITS:
            proof.doubts.append(Doubt(f"input {name!r}", f"is {T.DataType.Name(dtype)}, and only integers have a range"))
            dtype = T.INT64
        bounds[name] = whole(dtype)
        if name in STEP_INPUTS or name in constants:
            continue
        if ranges is not None and name not in ranges:
            proof.doubts.append(Doubt(f"input {name!r}", f"is no input of a step and has no range in metadata {PREFIX}ranges"))
        elif ranges is not None:
            least, greatest = ranges[name]
            proof.states += 1
            inside = bounds[name].meet(least, greatest)
            if inside is None or inside[:2] != (least, greatest):
                text = f"declares {least}..{greatest}, which is no range of {T.DataType.Name(dtype).lower()}"
                proof.doubts.append(Doubt(f"state {name!r}", text))
            else:
                bounds[name] = inside
    return bounds


def _check_states(model: onnx.ModelProto, walk: Walk, proof: Proof) -> None:
    """The step of the induction: what a state becomes lies in its own range."""
    inputs = {v.name for v in model.graph.input}
    for output in model.graph.output:
        key = output.name.removesuffix(NEXT)
        if key == output.name or key not in inputs or output.name not in walk.bounds:
            continue
        before, after = walk.bounds[key], walk.bounds[output.name]
        if after.lo < before.lo or after.hi > before.hi:
            text = f"may become {after.lo}..{after.hi}, outside its range {before.lo}..{before.hi}"
            proof.doubts.append(Doubt(f"state {key!r}", text))


# -- the table ------------------------------------------------------------------------------------------------------------


def _of_graph(walk: Walk) -> Iterator[Range]:
    for op in walk.ops:
        for name in op.outputs:
            yield _range(name, op.name, op, walk.bounds[name])


def _of_bodies(calls: dict[str, Analysis]) -> Iterator[Range]:
    """Every tensor of every body, over all calls that count."""
    found: dict[tuple[str, str], tuple[Op, Bound]] = {}
    pending, seen = list(calls.values()), set[int]()
    while pending:
        analysis = pending.pop()
        if id(analysis) in seen:
            continue
        seen.add(id(analysis))
        pending += [inner for analyses in analysis.inner.values() for inner in analyses]
        for op in analysis.body.ops:
            for name in op.outputs:
                key, bound = (analysis.body.name, name), analysis.bound(name)
                before = found.get(key)
                found[key] = op, bound if before is None or before[1].dtype != bound.dtype else hull([before[1], bound])
    for (function, name), (op, bound) in found.items():
        yield _range(name, f"{function}.{name}", op, bound)


def _range(tensor: str, node: str, op: Op, bound: Bound) -> Range:
    least, greatest = LIMITS[bound.dtype]
    capacity = (greatest - least).bit_length()
    bits = max(bound.hi.bit_length(), (~bound.lo).bit_length() if bound.lo < 0 else 0) + (least < 0)
    if op.op == "ReduceSum":
        capacity = EXACT_SUMS[bound.dtype].bit_length() + 1
    dtype = T.DataType.Name(bound.dtype).lower()
    return Range(tensor, node, op.op, dtype, bound.lo, bound.hi, bits, capacity - bits)


def _inlined(analysis: Analysis, sizes: dict[int, int]) -> int:
    """How many tensors the nodes of a body make, the bodies that it calls inlined."""
    if id(analysis) not in sizes:
        inner = {index: _inlined(cases[0], sizes) for index, cases in analysis.inner.items()}
        sizes[id(analysis)] = sum(inner.get(i, len(op.outputs)) for i, op in enumerate(analysis.body.ops))
    return sizes[id(analysis)]

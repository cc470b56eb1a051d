"""The overflow proof: a range for every tensor of a finished integer model, for all inputs and all steps, from the file alone.

By induction over the steps: every state is assumed in the range that the file declares for it (metadata ``wageubn.ranges``),
every other input anywhere in its dtype, and every ``key.next`` must then lie in the range of ``key``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import numpy_helper

from wageubn_onnx.artifacts.manifest import STEP_INPUTS
from wageubn_onnx.composites import expanded
from wageubn_onnx.errors import ProofFailed, WageubnError
from wageubn_onnx.graph import DOMAIN, PREFIX
from wageubn_onnx.proofs.bodies import Analysis, Calls
from wageubn_onnx.proofs.bounds import LIMITS, Bound, Op, Shape, Unproven, hull, of_array, whole
from wageubn_onnx.proofs.form import metadata
from wageubn_onnx.proofs.intervals import CAN_GROW
from wageubn_onnx.proofs.targets import EXACT_SUMS
from wageubn_onnx.proofs.walk import Walk

T = onnx.TensorProto
RANGES = PREFIX + "ranges"  # metadata: state -> [least, greatest]
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
    headroom: float  # log2 of how often the range fits into its dtype's, or into what the target adds exactly

    @property
    def can_grow(self) -> bool:
        """Whether the operator makes greater numbers than it takes."""
        return self.op in CAN_GROW


@dataclass(frozen=True)
class Doubt:
    """A node, input or state that is not proven, and why."""

    where: str
    message: str


@dataclass(frozen=True)
class Proof:
    """What `prove` found. states: of the induction; walk: over the graph; calls: a calling node's first output -> analysis."""

    doubts: list[Doubt]
    states: int
    walk: Walk
    calls: dict[str, Analysis]

    @property
    def ok(self) -> bool:
        return not self.doubts

    @cached_property
    def tensors(self) -> int:
        """How many tensors the nodes make, the functions inlined."""
        sizes = dict[int, int]()
        return sum(
            _inlined(self.calls[op.outputs[0]], sizes) if op.outputs[0] in self.calls else len(op.outputs) for op in self.walk.ops
        )

    @property
    def verdict(self) -> str:
        """One line."""
        if self.doubts:
            return f"not proven: {len(self.doubts)} doubts"
        return f"{self.tensors} tensors proven" + (f", by induction over {self.states} states" if self.states else "")

    @cached_property
    def ranges(self) -> list[Range]:
        """Of every tensor that a node of the graph or of a body makes, the least headroom first."""
        found = [*_of_graph(self.walk), *_of_bodies(self.calls)]
        return sorted(found, key=lambda r: (r.headroom, r.node))

    @property
    def growing(self) -> list[Range]:
        """Those whose operator makes greater numbers than it takes, the least headroom first."""
        return [r for r in self.ranges if r.can_grow]


def require(model: onnx.ModelProto, stage: str) -> None:
    """Raise ProofFailed, naming the node and the bound, where ``model`` is not proven."""
    for doubt in prove(model).doubts:
        raise ProofFailed(f"{stage}: {doubt.where}: {doubt.message}; use a smaller --batch or image")


def prove(model: onnx.ModelProto) -> Proof:
    """Bound every tensor of an integer stage. Shapes are taken as ``model`` has them: the audit has onnx infer them afresh."""
    model = expanded(model)
    calls: dict[str, Analysis] = {}
    bounds, states, doubts = _inputs(model)
    walk = _walked(model, bounds, calls)
    for index, reason in walk.failures.items():
        op = walk.ops[index]
        doubts.append(Doubt(f"node {op.name!r}", f"{op.op} {reason}"))
    return Proof([*doubts, *_left(model, walk, states)], len(states), walk, calls)


def declared(model: onnx.ModelProto) -> dict[str, tuple[int, int]] | None:
    """The range of every state, as the file declares it; None where it does not, or not so that it can be read."""
    try:
        found = metadata(model, "ranges")
    except WageubnError:
        return None
    return None if found is None else {key: (lo, hi) for key, (lo, hi) in found.items()}


def _walked(model: onnx.ModelProto, bounds: dict[str, Bound], calls: dict[str, Analysis]) -> Walk:
    """The walk over the graph itself, from the ``bounds`` of its inputs; fills ``calls``."""
    graph, functions = model.graph, Calls.of(model)
    typed = (*graph.input, *graph.output, *graph.value_info)
    shapes = {v.name: _dimensions(v) for v in typed if v.type.tensor_type.HasField("shape")}
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type in LIMITS and t.name not in bounds}
    shapes |= {name: value.shape for name, value in constants.items()}

    def shape(name: str) -> Shape:
        if name not in shapes:
            raise Unproven(f"reads {name!r}, whose shape the file does not say")
        return shapes[name]

    def call(op: Op, operands: list[Bound]) -> tuple[list[Bound], str]:
        if op.domain != DOMAIN:
            raise Unproven(f"is of domain {op.domain!r}, of which nothing is known")
        analysis = functions.analyse(op.op, op.attrs, operands, [shape(name) for name in op.inputs])
        calls[op.outputs[0]] = analysis
        return analysis.outputs, analysis.doubt

    bounds = bounds | {name: of_array(value) for name, value in constants.items()}
    return Walk([Op.of(node) for node in graph.node], bounds, constants, shape, call).run()


def _dimensions(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim)


def _inputs(model: onnx.ModelProto) -> tuple[dict[str, Bound], list[str], list[Doubt]]:
    """The bounds of the inputs, and the states: all but the step's own inputs, which take any value of their dtype."""
    ranges = declared(model)
    bounds, states, doubts = dict[str, Bound](), list[str](), list[Doubt]()
    if ranges is None:
        doubts.append(Doubt("the model", f"does not declare the ranges of its states (metadata {RANGES})"))
    for value in model.graph.input:
        name, dtype = value.name, value.type.tensor_type.elem_type
        if dtype not in LIMITS:
            doubts.append(Doubt(f"input {name!r}", f"is {T.DataType.Name(dtype)}, and only integers have a range"))
            dtype = T.INT64
        bounds[name] = whole(dtype)
        if ranges is None or name in STEP_INPUTS:
            continue
        states.append(name)
        if name not in ranges:
            doubts.append(Doubt(f"state {name!r}", f"has no range in metadata {RANGES}"))
            continue
        least, greatest = ranges[name]
        inside = bounds[name].meet(least, greatest)
        if inside is None or inside[:2] != (least, greatest):
            text = f"declares {least}..{greatest}, which is no range of {T.DataType.Name(dtype).lower()}"
            doubts.append(Doubt(f"state {name!r}", text))
        else:
            bounds[name] = inside
    for name in sorted((ranges or {}).keys() - states):
        doubts.append(Doubt(f"state {name!r}", f"has a range in metadata {RANGES}, and is no input"))
    return bounds, states, doubts


def _left(model: onnx.ModelProto, walk: Walk, states: Collection[str]) -> Iterator[Doubt]:
    """The step of the induction: the states that may leave their range, and those that the step does not give back.

    A model that gives back none only reads them: inference.
    """
    outputs = {o.name for o in model.graph.output}
    given = {name for name in outputs if name.endswith(NEXT)}
    for name in sorted(given - {key + NEXT for key in states}):
        yield Doubt(f"output {name!r}", "is the next value of nothing that is a state")
    for key in states if given else ():
        if key + NEXT not in outputs:
            yield Doubt(f"state {key!r}", f"has no next value {key + NEXT!r}")
            continue
        before, after = walk.bounds[key], walk.bounds[key + NEXT]
        if after.lo < before.lo or after.hi > before.hi:
            yield Doubt(f"state {key!r}", f"may become {after.lo}..{after.hi}, outside its range {before.lo}..{before.hi}")


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
    if op.op == "ReduceSum":
        least, greatest = -EXACT_SUMS[bound.dtype], EXACT_SUMS[bound.dtype]
    bits = max(bound.hi.bit_length(), (~bound.lo).bit_length() if bound.lo < 0 else 0) + (least < 0)
    above = math.log2((greatest + 1) / (bound.hi + 1)) if bound.hi > 0 else math.log2(greatest + 1)
    below = math.log2(least / bound.lo) if bound.lo < 0 else above
    dtype = T.DataType.Name(bound.dtype).lower()
    return Range(tensor, node, op.op, dtype, bound.lo, bound.hi, bits, round(min(above, below), 1))


def _inlined(analysis: Analysis, sizes: dict[int, int]) -> int:
    """How many tensors the nodes of a body make, the bodies that it calls inlined."""
    if id(analysis) not in sizes:
        inner = {index: _inlined(cases[0], sizes) for index, cases in analysis.inner.items()}
        sizes[id(analysis)] = sum(inner.get(i, len(op.outputs)) for i, op in enumerate(analysis.body.ops))
    return sizes[id(analysis)]

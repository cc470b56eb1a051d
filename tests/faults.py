"""Faults for tests to plant: one in what a pass for the CPU made, or one in a kernel of onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from wageubn_onnx.composites import expanded
from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.edit import Edit, rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import only_read
from wageubn_onnx.passes.targets import tidy
from wageubn_onnx.passes.targets.cpu import Machine, bodies_for, inlined_passes_for, passes_for
from wageubn_onnx.passes.targets.cpu.products.int8_images import LATE

T = onnx.TensorProto
NUMBERS = (T.FLOAT, T.INT8, T.UINT8, T.INT16, T.UINT16, T.INT32, T.UINT32, T.INT64)
OTHERWISE = {
    "Add": "Sub", "Sub": "Add", "Mul": "Add", "Max": "Min", "Min": "Max", "Greater": "Less", "Less": "Greater", "And": "Or",
    "GreaterOrEqual": "Less", "LessOrEqual": "Greater", "BitwiseXor": "BitwiseOr", "BitwiseAnd": "BitwiseOr",
    "ReduceMax": "ReduceMin", "ReduceMin": "ReduceMax", "Abs": "Identity",
}  # fmt: skip
PASSED = ("least", "greatest", "factor", "offset", "nearly", "half", "slope", "scale", "lift", "count", "tensor", "bottom", "top")
Session = onnxruntime.InferenceSession


def steps(step: onnx.ModelProto, machine: Machine) -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto]]:
    """For each pass in the order of `for_cpu`: its name, the step before it, and after it; inlined from `tidy` on."""
    for group in (bodies_for(machine), passes_for(machine)):
        edit = Edit(step)
        for name, rewrite in group.items():
            edit.begin(name)
            rewrite(edit)
            after = onnx.ModelProto()
            after.CopyFrom(edit.done())
            del edit.model.graph.node[:]
            yield name, step, after
            step = after
        step = expanded(step, but=LATE)
    for name, one_idea in ({tidy.PASS.name: lambda model: tidy.PASS.run(inline(model))} | inlined_passes_for(machine)).items():
        after = one_idea(step)
        yield name, step, after
        step = after


def for_cpu_with(fault: str, seed: int) -> Callable[..., onnx.ModelProto]:
    """`for_cpu` with a fault, drawn from ``seed``, in what the pass ``fault`` puts in."""

    def for_cpu(step: onnx.ModelProto, machine: Machine, without: Any = ()) -> onnx.ModelProto:
        for group in (bodies_for(machine), passes_for(machine)):
            edits = {name: rewrite for name, rewrite in group.items() if name not in without}
            names = list(edits)
            first = names[: names.index(fault) + 1] if fault in edits else names
            before = rewritten(step, {name: edits[name] for name in first if name != fault})
            step = rewritten(step, {name: edits[name] for name in first})
            if fault in edits:
                step = spoilt(before, step, seed)
            step = rewritten(step, {name: edits[name] for name in names[len(first) :]})
            step = expanded(step, but=LATE)
        step = inline(step)
        for name, rewrite in ({tidy.PASS.name: tidy.PASS.run} | inlined_passes_for(machine)).items():
            if name not in without:
                after = rewrite(step)
                step = spoilt(step, after, seed) if name == fault else after
        only_read(step.graph)
        return step

    return for_cpu


def spoilt(before: onnx.ModelProto, after: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy of ``after`` with one fault in what is not in ``before``: a constant or an attribute that is one too great, another
    operator, or operands changed round."""
    changed = onnx.ModelProto()
    changed.CopyFrom(after)
    old = {key for _, key in _nodes(before)}
    constants = {t.name: t for t in changed.graph.initializer if t.data_type in NUMBERS and np.prod(t.dims) > 0}
    ways = [way for node, key in _nodes(changed) if key not in old for way in _ways(changed, node, constants)]
    if not ways:
        raise LookupError("nothing that a fault could be planted in")
    ways[np.random.default_rng(seed).integers(len(ways))]()
    return changed


def _nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, tuple[str, ...]]]:
    """Of the graph, its branches and the project's functions; and what tells them from those of another model."""

    def of(nodes: Any, place: str) -> Iterator[tuple[onnx.NodeProto, tuple[str, ...]]]:
        for node in nodes:
            yield node, (place, node.op_type, node.domain, *node.input, "", *node.output)
            for graph in (a.g for a in node.attribute if a.HasField("g")):
                yield from of(graph.node, f"{place}/{graph.name}")

    yield from of(model.graph.node, "")
    called = {node.op_type for node, _ in of(model.graph.node, "") if node.domain == DOMAIN}
    for function in (f for f in model.functions if f.name in called):
        yield from of(function.node, function.name)


def _ways(model: onnx.ModelProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> Iterator[Callable[[], None]]:
    """What may be wrong with ``node``."""
    if node.op_type in OTHERWISE:
        yield lambda: setattr(node, "op_type", OTHERWISE[node.op_type])
    if node.op_type in ("Concat", "Where") and len(set(node.input)) > 1:
        yield lambda: node.input.extend([node.input.pop(len(node.input) - 2)])
    if node.domain == DOMAIN:
        for attribute in (a for a in node.attribute if a.name in PASSED):
            yield lambda attribute=attribute: setattr(attribute, "i", attribute.i + 1)  # type: ignore[misc]
    if node.op_type == "Constant" and node.attribute[0].name == "value" and node.attribute[0].t.data_type in NUMBERS:
        yield lambda: node.attribute[0].t.CopyFrom(_raised(node.attribute[0].t))
    for at, name in enumerate(node.input):
        if name in constants:
            yield lambda at=at, name=name: _replace(model, node, at, constants[name])  # type: ignore[misc]


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, at: int, tensor: onnx.TensorProto) -> None:
    model.graph.initializer.append(_raised(tensor))
    model.graph.initializer[-1].name = node.input[at] = f"{tensor.name}/spoilt"


def _raised(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """By one at every place; a factor in float doubled."""
    value = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(value * 2 if tensor.data_type == T.FLOAT else value + value.dtype.type(1), tensor.name)


def wrong_kernel(kind: str, optimized_alone: bool = False) -> type:
    """`InferenceSession` with a wrong kernel: the last bit of whatever ``kind`` gives is turned.

    optimized_alone: only in sessions that optimize their graph.
    """

    def opened(content: Any, options: onnxruntime.SessionOptions, **more: Any) -> onnxruntime.InferenceSession:
        off = options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if not (optimized_alone and off):
            model = inline(onnx.load(content) if isinstance(content, str) else onnx.load_from_string(content))
            _turned(model.graph, kind, _dtypes(model, kind))
            content = model.SerializeToString()
        return Session(content, options, **more)

    return opened  # type: ignore[return-value]


def _dtypes(model: onnx.ModelProto, kind: str) -> dict[str, int]:
    """Of what nodes of ``kind`` give, as onnxruntime infers them."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node if node.op_type == kind for name in node.output]
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = Session(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    named = {f"tensor({T.DataType.Name(dtype).lower()})": dtype for dtype in (*NUMBERS, T.BOOL)}
    return {output.name: named[output.type] for output in session.get_outputs() if output.type in named}


def _turned(graph: onnx.GraphProto, kind: str, dtypes: dict[str, int]) -> None:
    nodes = []
    for node in graph.node:
        nodes.append(node)
        output = node.output[0]
        if node.op_type == kind and dtypes.get(output, T.FLOAT) != T.FLOAT:
            right = node.output[0] = f"{output}/right"
            if dtypes[output] == T.BOOL:
                nodes.append(helper.make_node("Not", [right], [output]))
            else:
                one = numpy_helper.from_array(np.array(1, helper.tensor_dtype_to_np_dtype(dtypes[output])), f"{output}/one")
                graph.initializer.append(one)
                nodes.append(helper.make_node("BitwiseXor", [right, one.name], [output]))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)

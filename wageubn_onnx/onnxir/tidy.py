"""What inlining leaves to be done: equal constants and computations once, nothing that constants decide or that changes nothing,
no dead ends.

The time in which a runtime plans and loads a graph grows faster than its number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.graph import OPSET
from wageubn_onnx.onnxir.nodes import copied, only_typed, without_nodes
from wageubn_onnx.onnxir.view import Array, View, branches, captured, constant_value

NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}
NEUTRAL_UINT8 = {"Max": 0, "Min": 255}  # where a kernel saturates by itself
LARGEST = 2**16  # elements that a folded constant may have: more would cost more memory than it saves time


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fewer nodes, and with the type of every tensor. ``model`` is inlined, and stays as it is."""
    smaller = _once(model)  # first, since types cost more than anything else here
    typed = onnx.shape_inference.infer_shapes(smaller, strict_mode=True)
    return _once(typed)


def _once(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each constant and computation once, and what the types that ``model`` states show to change nothing not at all."""
    graph = model.graph
    types = View(graph).types
    outputs = {output.name for output in graph.output} | captured(graph.node)
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    renamed: dict[str, str] = {}
    results: dict[tuple[Any, ...], list[Array]] = {}
    seen: dict[tuple[Any, ...], list[str]] = {}
    kept: list[onnx.NodeProto] = []
    makers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] not in outputs:
            constants[node.output[0]] = constant_value(node.attribute[0])
            continue
        inputs = [renamed.get(name, name) for name in node.input]
        free = not outputs.intersection(node.output)  # an output of the graph keeps its node
        same = (_unchanged(node, inputs, types, constants) or _undone(node, inputs, types, makers)) if free else None
        if same is not None:
            renamed[node.output[0]] = same
            continue
        folded = _folded(node, inputs, constants, results) if free else None
        if folded is not None:
            constants |= dict(zip(node.output, folded, strict=True))
            continue
        key = (node.op_type, *inputs, *sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        if free and key in seen:
            renamed |= dict(zip(node.output, seen[key], strict=True))
            continue
        seen.setdefault(key, list(node.output))
        if inputs != list(node.input):
            node = _reading(node, inputs)
        kept.append(node)
        makers |= dict.fromkeys(node.output, node)
    return _assembled(model, needed(kept, outputs), constants)


def _reading(node: onnx.NodeProto, inputs: list[str]) -> onnx.NodeProto:
    """A copy of ``node`` that reads ``inputs``."""
    copy = copied(node)
    copy.input[:] = inputs
    return copy


def _unchanged(node: onnx.NodeProto, inputs: list[str], types: Mapping[str, Any], constants: Mapping[str, Array]) -> str | None:
    """The operand that the node's result equals: of a Cast to its own dtype, of a product with 1, a sum with 0; else None."""
    if node.op_type == "Cast":
        known = types.get(inputs[0])
        return inputs[0] if known is not None and known.elem_type == node.attribute[0].i else None
    is_uint8 = inputs and inputs[0] in types and types[inputs[0]].elem_type == onnx.TensorProto.UINT8
    neutral = NEUTRAL | NEUTRAL_UINT8 if is_uint8 else NEUTRAL
    if node.op_type not in neutral or len(inputs) != 2:
        return None
    x, y = inputs
    if x in constants and node.op_type in ("Mul", "Add"):
        x, y = y, x
    if x not in types or y not in constants or node.output[0] not in types or (constants[y] != neutral[node.op_type]).any():
        return None
    return x if types[x].HasField("shape") and types[x].shape == types[node.output[0]].shape else None


def _undone(
    node: onnx.NodeProto, inputs: list[str], types: Mapping[str, Any], makers: Mapping[str, onnx.NodeProto]
) -> str | None:
    """The tensor that two nodes give back: a sign bit flipped twice, a cast between int8 and uint8 taken back; else None."""
    before = makers.get(inputs[0]) if inputs else None
    if before is None or before.op_type != node.op_type:
        return None
    if node.op_type == "BitwiseXor":
        return before.input[0] if before.input[1] == inputs[1] else None
    if node.op_type != "Cast" or not {inputs[0], before.input[0]} <= types.keys():
        return None
    source, between = types[before.input[0]].elem_type, types[inputs[0]].elem_type
    eight_bits = {source, between} == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    return before.input[0] if eight_bits and node.attribute[0].i == source else None


def _folded(
    node: onnx.NodeProto, inputs: list[str], constants: Mapping[str, Array], results: dict[tuple[Any, ...], list[Array]]
) -> list[Array] | None:
    """The node's results where its operands are small constants; else None. ``results``: those of nodes like it."""
    if not all(name in constants or not name for name in inputs):
        return None
    if node.op_type == "Constant":
        return [constant_value(node.attribute[0])]
    operands = {name: constants[name] for name in inputs if name}
    if not operands or max(operand.size for operand in operands.values()) > LARGEST:
        return None
    contents = tuple(content(constants[name]) if name else None for name in inputs)
    key = (node.op_type, len(node.output), contents, *(a.SerializeToString(deterministic=True) for a in node.attribute))
    if key not in results:
        values = [onnx.ValueInfoProto(name=name) for name in operands]
        made = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = onnx.helper.make_graph([_reading(node, inputs)], "one", values, made)
        one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
        results[key] = [np.asarray(result) for result in ReferenceEvaluator(one).run(None, operands)]
    found = results[key]
    return found if max(result.size for result in found) <= LARGEST else None


def content(value: Array) -> tuple[str, tuple[int, ...], bytes]:
    """What tells constants from each other."""
    return value.dtype.str, value.shape, value.tobytes()


def needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Those that an output depends on; ``nodes`` are in topological order."""
    read, found = set(outputs), []
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            read.update(node.input, captured([node]))
            found.append(node)
    return found[::-1]


def _assembled(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> onnx.ModelProto:
    """``model`` with these nodes and the constants that they read, equal ones once."""
    result = without_nodes(model)
    graph = result.graph
    del graph.initializer[:]
    stored: dict[tuple[Any, ...], str] = {}
    stands_for: dict[str, str] = {}
    for node in nodes:
        read = list(node.input)
        for name in read:
            if name in constants and name not in stands_for:
                stands_for[name] = stored.setdefault(content(constants[name]), name)
        inputs = [stands_for.get(name, name) for name in read]
        graph.node.append(node)
        if inputs != read:
            graph.node[-1].input[:] = inputs
        for branch in branches(graph.node[-1]):
            inner = needed(branch.node, [output.name for output in branch.output])
            if len(inner) < len(branch.node):
                copies = list(map(copied, inner))
                branch.ClearField("node")
                branch.node.extend(copies)
    kept = dict.fromkeys(stored.values()) | dict.fromkeys(sorted(captured(nodes) & constants.keys()))
    graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in kept)
    only_typed(graph)
    return result

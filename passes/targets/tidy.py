"""What inlining leaves to be done: equal constants and computations once, nothing that constants decide or that changes nothing,
no dead ends.

The time in which a runtime plans and loads a graph grows faster than its number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.graph import OPSET

Array = np.ndarray[Any, Any]
NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}
LARGEST = 2**16  # elements that a folded constant may have: more would cost more memory than it saves time


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fewer nodes, and with the type of every tensor. ``model`` is inlined, and stays as it is."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.output, *graph.value_info)}
    outputs = {output.name for output in graph.output} | _captured(graph.node)
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    renamed: dict[str, str] = {}
    seen: dict[tuple[Any, ...], list[str]] = {}
    kept: list[onnx.NodeProto] = []
    for source in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        inputs = [renamed.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
        free = not outputs.intersection(node.output)  # an output of the graph keeps its node
        same = _unchanged(node, types, constants) if free else None
        if same is not None:
            renamed[node.output[0]] = same
            continue
        folded = _folded(node, constants) if free else None
        if folded is not None:
            constants |= dict(zip(node.output, folded, strict=True))
            continue
        key = (node.op_type, *inputs, *sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        if free and key in seen:
            renamed |= dict(zip(node.output, seen[key], strict=True))
            continue
        seen.setdefault(key, list(node.output))
        kept.append(node)
    return _assembled(model, _needed(kept, outputs), constants)


def _captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """What subgraphs read of the graph around them: these tensors keep their names."""
    inner = [n for node in nodes for a in node.attribute if a.HasField("g") for n in a.g.node]
    made = {name for node in inner for name in node.output}
    return {name for node in inner for name in node.input if name not in made} | (_captured(inner) if inner else set())


def _unchanged(node: onnx.NodeProto, types: Mapping[str, Any], constants: Mapping[str, Array]) -> str | None:
    """The operand that the node's result equals: of a Cast to its own dtype, of a product with 1, a sum with 0; else None."""
    if node.op_type == "Cast":
        x = types.get(node.input[0])
        return str(node.input[0]) if x is not None and x.elem_type == node.attribute[0].i else None
    if node.op_type not in NEUTRAL:
        return None
    x, y = node.input
    if x in constants and node.op_type in ("Mul", "Add"):
        x, y = y, x
    if x not in types or y not in constants or (constants[y] != NEUTRAL[node.op_type]).any():
        return None
    known = types[x].HasField("shape") and types[x].shape == types[node.output[0]].shape
    return str(x) if known else None


def _folded(node: onnx.NodeProto, constants: dict[str, Array]) -> list[Array] | None:
    """The node's results where its operands are small constants; else None."""
    if not all(name in constants or not name for name in node.input):
        return None
    if node.op_type == "Constant":
        return [_value(node.attribute[0])]
    operands = {name: constants[name] for name in node.input if name}
    if max(operand.size for operand in operands.values()) > LARGEST:
        return None
    inputs = [onnx.ValueInfoProto(name=name) for name in operands]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=name) for name in node.output])
    one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    results = [np.asarray(result) for result in ReferenceEvaluator(one).run(None, operands)]
    return results if max(result.size for result in results) <= LARGEST else None


def _value(attribute: onnx.AttributeProto) -> Array:
    """What a Constant node holds: ``value``, or one of its short forms for integers."""
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    return np.asarray(onnx.helper.get_attribute_value(attribute), np.int64)


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Those that an output depends on; ``nodes`` are in topological order."""
    needed, found = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input, _captured([node]))
            found.append(node)
    return found[::-1]


def _assembled(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> onnx.ModelProto:
    """``model`` with these nodes and the constants that they read, equal ones once."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:], graph.initializer[:]
    stored: dict[tuple[Any, ...], str] = {}
    for node in nodes:
        for position, name in enumerate(node.input):
            if name in constants:
                value = constants[name]
                key = (value.dtype.str, value.shape, value.tobytes())
                if key not in stored:
                    stored[key] = name
                    graph.initializer.append(numpy_helper.from_array(value, name))
                node.input[position] = stored[key]
        graph.node.append(node)
    for name in _captured(nodes):
        if name in constants and name not in stored.values():
            graph.initializer.append(numpy_helper.from_array(constants[name], name))
    made = {name for node in nodes for name in node.output}
    types = [v for v in graph.value_info if v.name in made]
    del graph.value_info[:]
    graph.value_info.extend(types)
    return result

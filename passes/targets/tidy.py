"""What inlining leaves to be done: equal constants and computations once, nothing that constants decide, no dead ends.

The time in which a runtime plans and loads a graph grows faster than its number of nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.graph import OPSET

Array = np.ndarray[Any, Any]
LARGEST = 2**16  # elements that a folded constant may have: more would cost more memory than it saves time


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fewer nodes, and with the type of every tensor. ``model`` is inlined, and stays as it is."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    outputs = {output.name for output in graph.output}
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
        if free and node.op_type == "Cast" and dtypes.get(inputs[0]) == node.attribute[0].i:
            renamed[node.output[0]] = inputs[0]
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
            needed.update(node.input)
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
    made = {name for node in nodes for name in node.output}
    types = [v for v in graph.value_info if v.name in made]
    del graph.value_info[:]
    graph.value_info.extend(types)
    return result

"""Zeros where a mask says so, as products: onnxruntime's Where chooses element by element, its Mul of 8 bits is vectorised."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.passes.targets.nodes import without_nodes

EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def masks_by_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers; of an inlined model that states the type of every tensor."""
    changed, graph = without_nodes(model), model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    zeros = {t.name for t in graph.initializer if t.data_type in EIGHT_BITS and not numpy_helper.to_array(t).any()}
    scalars = {t.name for t in graph.initializer if not t.dims}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        output = node.output[0]
        if node.op_type == "Where" and node.input[2] in zeros & scalars and types.get(output) in EIGHT_BITS:
            mask, value, _ = node.input
            nodes.append(helper.make_node("Cast", [mask], [f"{output}/ones"], f"{output}/ones", to=types[output]))
            nodes.append(helper.make_node("Mul", [value, f"{output}/ones"], [output], node.name))
        else:
            nodes.append(node)
    changed.graph.node.extend(nodes)
    return changed

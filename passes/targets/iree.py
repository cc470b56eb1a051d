"""The step in operators that IREE 3.13 compiles, and compiles right: int16 as int32, int64 Neg as a subtraction, and convolutions
with different pads before and after as Pad and convolution."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.onnxir.nodes import copied
from wageubn_onnx.onnxir.view import View
from wageubn_onnx.passbase import Pass

T = onnx.TensorProto
ZERO = "iree/zero"


def for_iree(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers; ``model`` is tidy, and stays as it is.

    It casts nothing to int16: inputs, outputs and tensors of int16 become int32, where their values are the same, since nothing
    overflows. It negates int64 in float32: 0 - x is exact.
    """
    result, view = copied(model), View(model.graph)
    graph = result.graph
    constants: dict[str, onnx.TensorProto] = {}
    nodes = [made for node in graph.node for made in _rewritten(node, view, constants)]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == T.INT16:
            value.type.tensor_type.elem_type = T.INT32
    for tensor in graph.initializer:
        if tensor.data_type == T.INT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), tensor.name))
    graph.initializer.extend(constants.values())
    if any(ZERO in node.input for node in nodes):
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), ZERO))
    return result


def _rewritten(node: onnx.NodeProto, view: View, constants: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    if node.op_type == "Neg" and view.dtype(node.input[0]) == T.INT64:
        node.op_type = "Sub"
        node.input.insert(0, ZERO)
    if node.op_type == "Cast" and node.attribute[0].i == T.INT16:
        node.attribute[0].i = T.INT32
    pads = next((a for a in node.attribute if a.name == "pads"), None)
    if node.op_type == "ConvInteger" and pads is not None and pads.ints[:2] != pads.ints[2:]:
        top, left, bottom, right = pads.ints
        amounts, padded = f"iree/pads_{top}_{left}_{bottom}_{right}", f"{node.output[0]}/padded"
        constants[amounts] = numpy_helper.from_array(np.array([0, 0, top, left, 0, 0, bottom, right], np.int64), amounts)
        made = onnx.helper.make_node("Pad", [node.input[0], amounts, node.input[2]], [padded], padded)
        made.metadata_props.extend(node.metadata_props)
        yield made
        node.input[0], pads.ints[:] = padded, [0, 0, 0, 0]
    yield node


PASS = Pass("for-iree", "int16 as int32, int64 Neg as Sub, uneven pads of a convolution as a Pad, for IREE's compiler", for_iree)

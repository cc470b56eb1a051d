"""Sign bits flipped by an addition: uint8 wraps, so x + 128 is x with its highest bit turned, and Add is vectorised; and what is
taken from 0 after that, taken from 128 at once."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

FLIP = 128


def flips_by_addition(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same bits; of an inlined model, after `tidy`, which knows that two flips are none."""
    values = {
        t.name: numpy_helper.to_array(t).item()
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.UINT8 and not t.dims
    }
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    flipped: dict[str, onnx.NodeProto] = {}
    for node in changed.graph.node:
        if node.op_type == "BitwiseXor" and values.get(node.input[1]) == FLIP:
            node.op_type = "Add"
            flipped[node.output[0]] = node
        elif node.op_type == "Sub" and values.get(node.input[0]) == 0 and node.input[1] in flipped:
            flip = flipped[node.input[1]]
            node.input[:] = [flip.input[1], flip.input[0]]
    return changed

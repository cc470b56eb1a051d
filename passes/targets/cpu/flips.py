"""Sign bits flipped by an addition: uint8 wraps, so x + 128 is x with its highest bit turned, and Add is vectorised."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

FLIP = 128


def flips_by_addition(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same bits; of an inlined model, after `tidy`, which knows that two flips are none."""
    flips = {t.name for t in model.graph.initializer if _is_flip(t)}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        if node.op_type == "BitwiseXor" and node.input[1] in flips:
            node.op_type = "Add"
    return changed


def _is_flip(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == onnx.TensorProto.UINT8 and not tensor.dims and numpy_helper.to_array(tensor).item() == FLIP

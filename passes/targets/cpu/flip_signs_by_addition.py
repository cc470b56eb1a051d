"""Sign bits flipped by an addition: uint8 wraps, so x + 128 is x with its highest bit turned, and Add is vectorised; and what is
taken from 0 after that, taken from 128 at once.

    BitwiseXor(x, 128)          ->  Add(x, 128)
    Sub(0, BitwiseXor(x, 128))  ->  Sub(128, x)
"""

from __future__ import annotations

import onnx

from wageubn_onnx.onnxir.view import View
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

FLIP = 128


def flip_signs_by_addition(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same bits; of an inlined model, after `tidy`, which knows that two flips are none."""
    view = View(model.graph)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    flipped: dict[str, onnx.NodeProto] = {}
    for node in changed.graph.node:
        if node.op_type == "BitwiseXor" and view.scalar(node.input[1]) == FLIP:
            node.op_type = "Add"
            flipped[node.output[0]] = node
        elif node.op_type == "Sub" and node.input[1] in flipped and view.scalar(node.input[0]) == 0:
            flip = flipped[node.input[1]]
            node.input[:] = [flip.input[1], flip.input[0]]
    return changed


PASS = Form(
    "flip-signs-by-addition",
    "sign bits flipped by an Add of 128, which is vectorised",
    flip_signs_by_addition,
    needs=(Kernel.UNSIGNED,),
)

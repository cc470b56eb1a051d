"""Constant kernels of a QLinearConv in uint8 with zero point 128, where its bias is found at run time.

    QLinearConv(x, w int8, bias)  ->  QLinearConv(x, w ^ 128 as uint8 with zero point 128, bias)      w constant, bias not

onnxruntime puts constant int8 kernels of 16 channels, or a multiple, into an order of their own when it loads them; up to release
1.28 it then leaves out a bias that is no constant. uint8 kernels are not put into that order, and take the same time.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.onnxir.nodes import copied, without_nodes
from wageubn_onnx.onnxir.view import Array, View
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST

FLIP = np.uint8(128)
BIAS, ZERO, KERNEL = 8, 5, 3  # operands
SUFFIX = "/unsigned"


def uint8_constant_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers; of an inlined model."""
    changed, graph = without_nodes(model), model.graph
    constants = View(graph).constants
    made: dict[str, Array] = {}
    for node in graph.node:
        kernel = constants.get(node.input[KERNEL]) if node.op_type == "QLinearConv" else None
        is_late = len(node.input) > BIAS and node.input[BIAS] not in constants
        if kernel is not None and is_late and kernel.data_type == onnx.TensorProto.INT8:
            node = copied(node)
            made[kernel.name + SUFFIX] = numpy_helper.to_array(kernel).view(np.uint8) ^ FLIP
            made["zero" + SUFFIX] = np.array(FLIP)
            node.input[KERNEL], node.input[ZERO] = kernel.name + SUFFIX, "zero" + SUFFIX
        changed.graph.node.append(node)
    changed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    return changed


PASS = Form(
    "uint8-constant-kernels",
    "constant int8 kernels in uint8 where their bias is found at run time",
    uint8_constant_kernels,
    needs=LAST,
)

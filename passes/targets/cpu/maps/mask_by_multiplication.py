"""Zeros where a mask says so, as products: onnxruntime's Where chooses element by element, its Mul of 8 bits is vectorised.

Where(mask, x, 0)  ->  Mul(x, Cast(mask))
"""

from __future__ import annotations

import onnx
from onnx import helper

from wageubn_onnx.onnxir.nodes import without_nodes
from wageubn_onnx.onnxir.view import View
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def mask_by_multiplication(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers; of an inlined model that states the type of every tensor."""
    changed, view = without_nodes(model), View(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        output = node.output[0]
        if node.op_type == "Where" and view.dtype(output) in EIGHT_BITS and view.scalar(node.input[2]) == 0:
            mask, value, _ = node.input
            nodes.append(helper.make_node("Cast", [mask], [f"{output}/ones"], f"{output}/ones", to=view.dtype(output)))
            nodes.append(helper.make_node("Mul", [value, f"{output}/ones"], [output], node.name))
        else:
            nodes.append(node)
    changed.graph.node.extend(nodes)
    return changed


PASS = Form(
    "mask-by-multiplication",
    "a Where that gives 0 as a Mul by the mask, which is vectorised",
    mask_by_multiplication,
    needs=(Kernel.UNSIGNED,),
)

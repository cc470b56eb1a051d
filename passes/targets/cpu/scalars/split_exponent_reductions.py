"""Exponents that follow their tensors, in two parts: the tensor's extremes, and what they say, which is small and can wait.

    FollowExponent(x, bits)  ->  FollowExponentExtremes(ReduceMax(x), ReduceMin(x), bits)

int8 is what becomes of uint8 by a flip of its sign bits and a Cast, on one thread: extremes are taken before these. A channel's
exponent follows from the greatest size alone.
"""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.view import constant_value
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.products.int8_images import lifted
from wageubn_onnx.quantizers.integer import FOLLOW, FOLLOW_CHANNELS

T = onnx.TensorProto
CALLS = (FOLLOW.name, FOLLOW_CHANNELS.name)
REDUCTIONS = ("ReduceMax", "ReduceMin")


def split_exponent_reductions(edit: Edit, by_size: bool) -> None:
    """The same exponents. by_size: whether uint8 has its arithmetic, so that a channel's greatest size can be taken."""
    bodies = {f.name: f for f in edit.model.functions if f.domain == DOMAIN and f.name in CALLS}
    for node in edit.nodes:
        if node.domain != DOMAIN or node.op_type not in bodies:
            continue
        body = bodies[node.op_type]
        signed = node.input[0]
        is_int8 = edit.dtype(signed) == T.INT8
        raised = lifted(edit, node, signed) if is_int8 else signed
        flip = edit.put(128, np.uint8)
        makers = {inner.output[0]: inner for inner in body.node}
        shape = edit.shape(node.output[0])
        sized = by_size and is_int8 and node.op_type == FOLLOW_CHANNELS.name and (edit.bound(signed) or 128) < 128
        if sized:
            raised = _sizes(edit, node, raised)
        extremes = []
        for inner in body.node:
            if inner.op_type in REDUCTIONS:
                axes = [constant_value(makers[name].attribute[0]) for name in inner.input[1:]]
                operands = [raised, *(edit.put(a, np.int64) for a in axes)]
                dtype = T.UINT8 if is_int8 else edit.dtype(signed)
                kind = "ReduceMax" if sized else inner.op_type  # the least is of no interest then
                extreme = edit.declare(edit.before(node, kind, operands, **attributes(inner)), dtype, shape)
                if is_int8:
                    bits = edit.declare(edit.before(node, "BitwiseXor", [extreme, flip]), T.UINT8, shape)
                    extreme = edit.declare(edit.before(node, "Cast", [bits], to=T.INT8), T.INT8, shape)
                extremes.append(extreme)
        edit.replace(node, f"{DOMAIN}.{node.op_type}Extremes", [*extremes, node.input[1]], **attributes(node))
    edit.functions(map(_second_part, bodies.values()))


def _sizes(edit: Edit, node: onnx.NodeProto, raised: str) -> str:
    """128 + |x| of 128 + x, x from -127: where an extreme costs more than two passes, one is enough then."""
    mirrored = edit.before(node, "Sub", [edit.put(0, np.uint8), raised])  # uint8 wraps
    sizes = edit.before(node, "Max", [raised, mirrored])
    return edit.declare(sizes, T.UINT8, edit.shape(node.input[0]))


def _second_part(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """``function`` of its tensor's extremes."""
    part = onnx.FunctionProto()
    part.CopyFrom(function)
    part.name += "Extremes"
    extremes = [node.output[0] for node in function.node if node.op_type in REDUCTIONS]
    part.input[:] = [*extremes, function.input[1]]
    kept = [node for node in function.node if node.op_type not in REDUCTIONS]
    del part.node[:]
    part.node.extend(kept)
    return part


PASS = Form(
    "split-exponent-reductions",
    "exponents that follow a tensor as its extremes, of uint8, and what those say",
    split_exponent_reductions,
    asks=lambda machine: {"by_size": machine.is_exact(Kernel.UNSIGNED)},
)

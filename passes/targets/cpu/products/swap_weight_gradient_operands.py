"""Weight gradients of 1x1 kernels, and of matrices, as errors by maps where maps by errors take the longer transposes.

The canonical product gives [I, O] of maps [I, P] and errors [P, O], P places: it wants the maps with their channels first, and
its result turned. The product of errors [O, P] and maps [P, I] wants the errors so, and gives [O, I] as it is to be.

before: dw = ConvWeightGradient(x, dy), of a 1x1 kernel, or GemmWeightGradient(x, dy)
after:  errors = Reshape(Transpose(dy))     [O, P]
        maps = Reshape(Transpose(x))        [P, I]
        dw = Reshape(MatMulInteger(errors, maps))
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.products.im2col import CHANNELS_FIRST, CHANNELS_LAST, sees_all_once
from wageubn_onnx.passes.targets.cpu.products.int8_images import SEVEN_BITS, Preference, unsigned

T = onnx.TensorProto


def swapped_gradients(edit: Edit, prefers_int8: Preference) -> None:
    """The same sums. prefers_int8: of the shapes of images [N, I, H, W] and kernels [O, I/G, KH, KW], whether a product of uint8
    and int8 is exact and faster than one of uint8."""
    convolutions = [
        node for node in edit.calls("ConvWeightGradient") if attributes(node)["group"] == 1 and sees_all_once(attributes(node))
    ]
    for node in (*convolutions, *edit.calls("GemmWeightGradient")):
        if edit.products(node) == 1:
            _swap(edit, node, prefers_int8)


def _swap(edit: Edit, node: onnx.NodeProto, prefers_int8: Preference) -> None:
    """Put the other product in the place of ``node``, where it is exact and transposes fewer bytes."""
    maps, errors = node.input
    (n, i, *size), o = edit.shape(maps), edit.shape(errors)[1]
    p = n * math.prod(size)
    is_narrow = edit.dtype(maps) == T.INT8 or (edit.bound(maps) or 255) <= SEVEN_BITS
    if edit.dtype(errors) != T.INT8 or not is_narrow or not prefers_int8([1, p, i, 1], [o, p, 1, 1]):
        return
    if p * o >= p * i + 4 * i * o:  # the turned result is int32
        return
    if edit.dtype(maps) == T.UINT8:
        maps = edit.declare(edit.before(node, "Cast", [maps], to=T.INT8), T.INT8, edit.shape(maps))
    raised = unsigned(edit, node, errors)
    first = _moved(edit, node, raised.name, edit.shape(errors), CHANNELS_FIRST, [o, p])
    last = _moved(edit, node, maps, edit.shape(maps), CHANNELS_LAST, [p, i])
    dw = edit.before(node, "MatMulInteger", [first, last, raised.zero, edit.put(0, np.int8)])
    edit.replace(node, "Reshape", [dw, edit.put(edit.shape(node.output[0]), np.int64)])


def _moved(edit: Edit, anchor: onnx.NodeProto, name: str, shape: list[int], order: list[int], rows: list[int]) -> str:
    """The numbers of maps, or of a matrix [N, C], in this order of axes, as ``rows``."""
    if len(shape) == 2:
        return edit.before(anchor, "Transpose", [name], perm=[1, 0]) if order == CHANNELS_FIRST else name
    moved = edit.before(anchor, "Transpose", [name], perm=order)
    return edit.before(anchor, "Reshape", [moved, edit.put(rows, np.int64)])


PASS = Form(
    "swap-weight-gradient-operands",
    "weight gradients of 1x1 kernels as errors by maps, where that transposes less",
    swapped_gradients,
    needs=(Kernel.INT8,),
    asks=lambda machine: {"prefers_int8": machine.prefers_int8},
)

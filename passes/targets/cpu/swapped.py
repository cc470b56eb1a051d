"""Weight gradients of 1x1 kernels, and of matrices, as errors by maps where maps by errors take the longer transposes.

The canonical product gives [I, O] of maps [I, P] and errors [P, O], P places: it wants the maps with their channels first, and
its result turned. The product of errors [O, P] and maps [P, I] wants the errors so, and gives [O, I] as it is to be.
"""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.affine import lifted
from wageubn_onnx.passes.targets.cpu.columns import CHANNELS_FIRST, CHANNELS_LAST
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.operands import Preference, signed

T = onnx.TensorProto


def swapped_gradients(edit: Edit, prefers_int8: Preference) -> None:
    """The same sums. prefers_int8: of the shapes of images [N, I, H, W] and kernels [O, I/G, KH, KW], whether a product of uint8
    and int8 is exact and faster than one of uint8."""
    for node in edit.nodes:
        product = edit.maker(node.input[0], "MatMulInteger") if node.op_type == "Transpose" else None
        if product is not None and len(edit.readers[product.output[0]]) == 1 and attributes(node)["perm"] == [1, 0]:
            _swap(edit, node, product, prefers_int8)


def _swap(edit: Edit, node: onnx.NodeProto, product: onnx.NodeProto, prefers_int8: Preference) -> None:
    """Put the other product in the place of ``node``, which turns this one, where it is exact and transposes fewer bytes."""
    shapes = [edit.shape(name) for name in product.input[:2]]
    if list(map(len, shapes)) != [2, 2]:
        return
    (i, p), (_, o) = shapes
    maps, errors = (signed(edit, *operand) for operand in zip(product.input[:2], product.input[2:], strict=True))
    maps = _source(edit, maps, CHANNELS_FIRST) if maps else None
    errors = _source(edit, errors, CHANNELS_LAST) if errors else None
    if not maps or not errors or edit.dtype(errors) != T.INT8 or not prefers_int8([1, p, i, 1], [o, p, 1, 1]):
        return
    if p * o >= p * i + 4 * i * o:  # the turned result is int32
        return
    if edit.dtype(maps) == T.UINT8:
        maps = edit.declare(edit.before(node, "Cast", [maps], to=T.INT8), T.INT8, edit.shape(maps))
    first = _moved(edit, node, lifted(edit, node, errors), edit.shape(errors), CHANNELS_FIRST, [o, p])
    last = _moved(edit, node, maps, edit.shape(maps), CHANNELS_LAST, [p, i])
    edit.replace(node, "MatMulInteger", [first, last, edit.put(128, np.uint8), edit.put(0, np.int8)])


def _source(edit: Edit, name: str, order: list[int]) -> str | None:
    """The maps [N, C, H, W] whose numbers, in this order of axes, are the rows of ``name``; or [N, C] of a matrix."""
    rows = edit.maker(name, "Reshape")
    turned = edit.maker(rows.input[0] if rows is not None else name, "Transpose")
    if rows is None and order == CHANNELS_LAST:
        return name
    if turned is None or attributes(turned)["perm"] != (order if rows is not None else [1, 0]):
        return None
    return str(turned.input[0])


def _moved(edit: Edit, anchor: onnx.NodeProto, name: str, shape: list[int], order: list[int], rows: list[int]) -> str:
    """The rows of which `_source` is the source."""
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

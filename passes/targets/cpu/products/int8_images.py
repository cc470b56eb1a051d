"""Operands of convolutions on the dtypes with the fastest kernel: images in int8, kernels in uint8 with zero point 128.

    ConvInteger(BitwiseXor(Cast(x, uint8), 128), w, 128, 128)  ->  ConvInteger(x, w, 0, 128)

onnxruntime's ConvInteger multiplies int8 by uint8 about twice as fast as uint8 by uint8. On an x86 without VNNI its kernel adds
pairs of these products in saturating int16, so that whoever asks for this pass must know the machine (runtime/kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

T = onnx.TensorProto
SEVEN_BITS = 127
WEIGHT_GRADIENTS = ("ConvWeightGradient", "GemmWeightGradient")  # composites
LATE = (*WEIGHT_GRADIENTS, "FlipKernel")  # those that passes after the first ones still look for


Preference = Callable[[Sequence[int], Sequence[int]], bool]


def int8_images(edit: Edit, prefers_int8: Preference) -> None:
    """The same sums: each ConvInteger of uint8 images takes them in int8, where they fit.

    prefers_int8: of the shapes of images [N, I, H, W] and kernels [O, I/G, KH, KW], whether that is exact and faster.
    """
    for node in edit.nodes:
        if node.op_type != "ConvInteger" or edit.dtype(node.input[0]) != T.UINT8:
            continue
        if not prefers_int8(edit.shape(node.input[0]), edit.shape(node.input[1])):
            continue
        image = _signed(edit, node)
        if image is not None:
            zero = edit.put(0, np.int8)
            edit.replace(node, "ConvInteger", [image, node.input[1], zero, node.input[3]], **attributes(node))


def _signed(edit: Edit, product: onnx.NodeProto) -> str | None:
    """The images of ``product`` as int8 with zero point 0; None where they may pass 127."""
    image = signed(edit, product.input[0], product.input[2])
    if image is not None and edit.dtype(image) == T.UINT8:
        return edit.before(product, "Cast", [image], to=T.INT8)
    return image


@dataclass(frozen=True)
class Operand:
    """An 8-bit tensor as a product reads it, and its zero point, an initializer."""

    name: str
    zero: str
    is_never_negative: bool = False  # and at most 127


def unsigned(edit: Edit, anchor: onnx.NodeProto, name: str) -> Operand:
    """The tensor as uint8: as it is, or an int8 one with its sign bit flipped."""
    if edit.dtype(name) == T.UINT8:
        return Operand(name, edit.put(0, np.uint8), (edit.bound(name) or 255) <= SEVEN_BITS)
    return Operand(edit.declare(lifted(edit, anchor, name), T.UINT8, edit.shape(name)), edit.put(128, np.uint8))


def lifted(edit: Edit, node: onnx.NodeProto, name: str) -> str:
    """An 8-bit tensor as uint8 with zero point 128; what is uint8 must be at most 127."""
    if edit.dtype(name) == T.INT8:
        name = edit.before(node, "Cast", [name], to=T.UINT8)
    return edit.before(node, "BitwiseXor", [name, edit.put(128, np.uint8)])


def signed(edit: Edit, name: str, zero: str) -> str | None:
    """The tensor that an operand with this zero point stands for, int8 or of uint8 below 128; None where it may be greater."""
    at = edit.scalar(zero)
    if at == 128:  # an int8 tensor, whose sign bit was flipped
        return before_the_flip(edit, name)
    return name if at == 0 and (edit.dtype(name) == T.INT8 or (edit.bound(name) or 255) <= SEVEN_BITS) else None


def before_the_flip(edit: Edit, name: str) -> str | None:
    """The int8 tensor of which ``name`` is BitwiseXor(Cast(it), 128)."""
    flip = edit.maker(name, "BitwiseXor")
    if flip is not None and edit.scalar(flip.input[1]) == 128:
        cast = edit.maker(flip.input[0], "Cast")
        if cast is not None and edit.dtype(cast.input[0]) == T.INT8:
            return str(cast.input[0])
    return None


PASS = Form(
    "int8-images",
    "images of a ConvInteger in int8, whose kernel is faster",
    int8_images,
    needs=(Kernel.INT8,),
    asks=lambda machine: {"prefers_int8": machine.prefers_int8},
)

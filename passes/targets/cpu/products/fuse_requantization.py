"""Product and requantization in one kernel: a convolution whose sums become 8 bits is a QLinearConv, or a QLinearMatMul.

They share the work among threads, where the kernel of ConvInteger gathers columns on one.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.trace import Float32, Int, Int8, Ints, Uint8, Value, cast, function, maximum, minimum, op
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST
from wageubn_onnx.passes.targets.cpu.products.int8_images import Preference, before_the_flip
from wageubn_onnx.passes.targets.cpu.products.matrix import MATRIX, factor, windows
from wageubn_onnx.passes.targets.cpu.scalars.scales import DEEPEST, EXACT, scale

T = onnx.TensorProto
WINDOW = ("pads", "strides", "dilations", "kernel_shape", "group")


@function("ProductQuantize", "q")
def PRODUCT(
    x: Uint8, zero: Uint8, w: Int8, scale: Float32, bottom: Uint8, top: Uint8,
    *, pads: Ints, strides: Ints, dilations: Ints, kernel_shape: Ints, group: Int,
) -> Value:  # fmt: skip
    """q = round((x - zero) * w * scale) for each output channel, half to even, int8; bottom and top are its bounds + 128.

    x [N, I, H, W], w [O, I/G, KH, KW], scale [1] or [O], powers of two.
    """
    window = {"pads": pads, "strides": strides, "dilations": dilations, "kernel_shape": kernel_shape, "group": group}
    one = np.float32(1)
    y = op("QLinearConv", x, one, zero, w, scale, np.int8(0), one, np.uint8(128), **window)
    bounded = minimum(maximum(y, bottom), top)
    return cast(bounded ^ 128, np.int8)


def fused_products(edit: Edit, prefers_fused: Preference, prefers_matrix: Preference) -> None:
    """The same mantissas. Where sums may pass 2^24 and shifts are found at run time, an If keeps the canonical nodes for shifts
    beyond 17.

    prefers_fused, prefers_matrix: of the shapes of images [N, I, H, W] and kernels [O, I/G, KH, KW], whether the first or the
    second form is exact and the fastest.
    """
    edit.functions([PRODUCT, MATRIX])
    for node in edit.nodes:
        if node.op_type in ("GridQuantize", "DirectQuantize") and attributes(node)["to"] == T.INT8:
            product = edit.maker(node.input[0], "ConvInteger")
            if product is not None and len(edit.readers[product.output[0]]) == 1:
                _fuse(edit, node, product, prefers_fused, prefers_matrix)


def _fuse(
    edit: Edit, node: onnx.NodeProto, product: onnx.NodeProto, prefers_fused: Preference, prefers_matrix: Preference
) -> None:
    kernel, described = before_the_flip(edit, product.input[1]), attributes(product)
    image_shape, shape, out = (edit.shape(name) for name in (*product.input[:2], product.output[0]))
    zero = edit.scalar(product.input[2])
    as_matrix = described["group"] == 1 and prefers_matrix([*image_shape[:2], *out[2:]], shape)
    if kernel is None or zero not in (0, 128) or edit.scalar(product.input[3]) != 128:
        return
    if not (as_matrix or prefers_fused(image_shape, shape)):
        return
    image = 128 if zero == 128 else edit.bound(product.input[0]) or 255
    bound = math.prod(shape[1:]) * image * (edit.bound(kernel) or 128)
    shift, passed = node.input[1], attributes(node)
    known = edit.constant(shift)
    always = bound < EXACT or (known is not None and int(known.max()) <= DEEPEST)
    if known is not None and not always:
        return
    limits = [edit.put(passed[key] + 128, np.uint8) for key in ("least", "greatest")]
    if as_matrix:
        right, is_reversed = factor(edit, product, kernel)
        operands = [windows(edit, product, is_reversed), product.input[2], right]
        kind, described = MATRIX.name, {"shape": [out[0], *out[2:], out[1]]}
    else:
        operands = [product.input[0], product.input[2], kernel]
        kind, described = PRODUCT.name, {key: described[key] for key in WINDOW}
    operands += [scale(edit, node, shift), *limits]
    if always:
        edit.replace(node, f"wageubn.{kind}", operands, **described)
        return
    longest = edit.before(node, "ReduceMax", [shift], keepdims=0)
    is_exact = edit.before(node, "LessOrEqual", [longest, edit.put(DEEPEST, np.int32)])
    edit.choose(node, is_exact, f"wageubn.{kind}", operands, **described)


PASS = Form(
    "fuse-requantization",
    "convolution and requantization as one QLinearConv, or QLinearMatMul",
    fused_products,
    needs=LAST,
    asks=lambda machine: {"prefers_fused": machine.prefers_fused, "prefers_matrix": machine.prefers_matrix},
)

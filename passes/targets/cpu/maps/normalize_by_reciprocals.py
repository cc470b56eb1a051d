"""x-hat in one kernel: a quotient by a channel's deviation is a product with its reciprocal, where that is provably the same.

    DirectQuantizeRatioHalfUp(f * (x - mean), deviation)  ->  QLinearConv(x, 64, Gather(reciprocals, deviation), bias)

With a the lifted numerator (a > 0, so that ties go upward as sizes do) and s the deviation, the canonical step computes
y = floor(f*a/s + 1/2). The kernel rounds fl(a * r), with r a float32 that is 1.25 to 2.25 units of 2^-23 more than f/s. A
quotient at a tie lands above it; one below a tie is so by 1/(2s) at least, and y <= 256, so that for s < 2^12 no excess of
2.75 * 2^-23 reaches the tie.
"""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.view import Array
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST
from wageubn_onnx.passes.targets.cpu.maps.batchnorm_statistics import channel_affine, has_16_bits
from wageubn_onnx.passes.targets.cpu.maps.fuse_affine_maps import AFFINE, finish
from wageubn_onnx.passes.targets.cpu.products.int8_images import lifted

T = onnx.TensorProto
LARGEST = 2**12 - 1  # of a deviation
LIFT = 128  # the zero point of the result
WEIGHT = 64  # the kernel's factor: a power of two


def reciprocals(factor: float, largest: int) -> Array:
    """The float32 next above factor/s * (1 + 1.25 * 2^-23) for s = 1..largest, at [s]; at [0] that of 1."""
    exact = np.float64(factor) / np.maximum(np.arange(largest + 1), 1) * (1 + 1.25 * 2.0**-23)
    near: Array = exact.astype(np.float32)
    below = near.astype(np.float64) < exact
    return np.where(below, np.nextafter(near, np.float32(np.inf)), near)


def normalize_by_reciprocals(edit: Edit) -> None:
    """The same x-hat of 8-bit maps, where the deviation has at most 12 bits."""
    edit.functions([AFFINE])
    for node in edit.nodes:
        if node.op_type == "DirectQuantizeRatioHalfUp" and attributes(node)["to"] == T.INT8:
            _replace(edit, node)


def _replace(edit: Edit, node: onnx.NodeProto) -> None:
    """With x the mantissas, m the mean: y = round(scale * (unit*x - m) / s) as round((64x - m*k + lift*s/f) * (f/s)) - lift."""
    scaled, passed, deviation = edit.maker(node.input[0], "Mul"), attributes(node), node.input[1]
    scale = edit.scalar(scaled.input[1]) if scaled is not None else None
    found = channel_affine(edit, scaled.input[0]) if scaled is not None else None
    if scale is None or found is None or not has_16_bits(edit, deviation) or (edit.bound(deviation) or 2**15) > LARGEST:
        return
    x, unit, mean = found
    if scale * unit % WEIGHT or scale % (factor := scale * unit // WEIGHT) or LIFT % factor:
        return
    if passed["least"] < -LIFT or passed["greatest"] != LIFT - 1:
        return
    channels = edit.shape(x)[1]
    each, flat = edit.put([-1], np.int64), edit.before
    s = flat(node, "Reshape", [deviation, each])
    centre = flat(node, "Mul", [flat(node, "Reshape", [mean, each]), edit.put(scale // factor, np.int32)])
    bias = flat(node, "Sub", [flat(node, "Mul", [s, edit.put(LIFT // factor, np.int32)]), centre])
    by = flat(node, "Gather", [edit.put(reciprocals(factor, LARGEST), np.float32), s])
    w = edit.put(np.full((channels, 1, 1, 1), WEIGHT), np.int8)
    limits = [edit.put(v, np.uint8) for v in (0, passed["least"] + LIFT, passed["greatest"] + LIFT)]
    operands = [lifted(edit, node, x), edit.put(LIFT, np.uint8), w, by, bias, *limits]
    finish(edit, node, flat(node, "wageubn.AffineQuantize", operands, kernel_shape=[1, 1], group=channels))


PASS = Form(
    "normalize-by-reciprocals",
    "a quotient by a channel's deviation as one depthwise QLinearConv by its reciprocal",
    normalize_by_reciprocals,
    needs=LAST,
)

"""A convolution as one product of matrices: what its windows see, by its kernel.

A QLinearConv puts a kernel that is found at run time into another order, element by element, on one thread; a QLinearMatMul takes
it as it is. It pays where kernels are larger than maps, as at the end of a ResNet and at small batches. For the error of the
input the kernel is turned around; its taps in their reverse order are the same, so that nothing is turned.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.composites import kind_of
from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.onnxir.trace import Float32, Int8, Ints, Uint8, Value, cast, function, maximum, minimum, op

T = onnx.TensorProto


@function("MatrixQuantize", "q")
def MATRIX(a: Uint8, zero: Uint8, b: Int8, scale: Float32, bottom: Uint8, top: Uint8, *, shape: Ints) -> Value:
    """q = round((a - zero) b * scale), half to even, int8, as maps [N, O, OH, OW] of shape [N, OH, OW, O].

    a [N * OH * OW, K], b [K, O], scale [1] or [O], powers of two; bottom and top are the bounds + 128.
    """
    one = np.float32(1)
    y = op("QLinearMatMul", a, one, zero, b, scale, np.int8(0), one, np.uint8(128))
    bounded = minimum(maximum(op("Reshape", y, shape), bottom), top)
    return cast(op("Transpose", bounded, perm=[0, 3, 1, 2]) ^ 128, np.int8)


def windows(edit: Edit, product: onnx.NodeProto, is_reversed: bool) -> str:
    """What the windows of a ConvInteger see: uint8 [N * OH * OW, taps * I], the taps in their order or the reverse."""
    image, described = product.input[0], attributes(product)
    (n, i, *_), (_, _, *out) = edit.shape(image), edit.shape(product.output[0])
    kernel, strides, dilations, pads = (described[key] for key in ("kernel_shape", "strides", "dilations", "pads"))
    if any(pads):
        ends = edit.put([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
        padded = [size + pads[a] + pads[2 + a] for a, size in enumerate(edit.shape(image)[2:])]
        image = edit.declare(edit.before(product, "Pad", [image, ends, product.input[2]]), T.UINT8, [n, i, *padded])
    seen = []
    for tap in np.ndindex(*kernel):
        start = np.multiply(tap, dilations)
        stop = start + np.multiply(np.subtract(out, 1), strides) + 1
        if start.any() or list(stop) != edit.shape(image)[2:] or max(strides) > 1:
            bounds = [edit.put(v, np.int64) for v in (start, stop, (2, 3), strides)]
            seen.append(edit.declare(edit.before(product, "Slice", [image, *bounds]), T.UINT8, [n, i, *out]))
        else:
            seen.append(image)
    if is_reversed:
        seen.reverse()
    gathered = edit.before(product, "Concat", seen, axis=1) if len(seen) > 1 else seen[0]
    last = edit.before(product, "Transpose", [gathered], perm=[0, 2, 3, 1])
    return edit.before(product, "Reshape", [last, edit.put([n * math.prod(out), len(seen) * i], np.int64)])


def factor(edit: Edit, anchor: onnx.NodeProto, kernel: str) -> tuple[str, bool]:
    """A kernel int8 [O, I, KH, KW] as a matrix [taps * I, O], and whether its taps are in their reverse order."""
    o, i, *size = edit.shape(kernel)
    taps = math.prod(size)
    flip = edit.maker(kernel)
    is_reversed = flip is not None and kind_of(flip.op_type) == "FlipKernel" and edit.shape(flip.input[0])[2:] == size
    if flip is not None and is_reversed:  # an error's
        by_tap = taps_first(edit, anchor, flip.input[0], (i, o, taps))
    else:
        by_tap = edit.before(anchor, "Transpose", [taps_first(edit, anchor, kernel, (o, i, taps))], perm=[0, 2, 1])
    return edit.before(anchor, "Reshape", [by_tap, edit.put([taps * i, o], np.int64)]), is_reversed


def taps_first(edit: Edit, anchor: onnx.NodeProto, kernel: str, shape: tuple[int, int, int]) -> str:
    """[A, B, KH, KW] -> [taps, A, B]."""
    a, b, taps = shape
    flat = edit.before(anchor, "Reshape", [kernel, edit.put([a * b, taps], np.int64)])
    flat = flat if taps == 1 else edit.before(anchor, "Transpose", [flat], perm=[1, 0])
    return edit.before(anchor, "Reshape", [flat, edit.put([taps, a, b], np.int64)])

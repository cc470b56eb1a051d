"""Powers of two as the scales of a QLinearConv: a requantization by a shift, without a pass of its own.

The kernel multiplies its int32 sums by the scale, rounds half to even, adds a zero point and saturates. The scale is a float32
parameter; no tensor of data is in float. A sum becomes float32 first, which is exact below 2^24. Beyond, with a shift of at most
17, the quotient is 2^7 or more and saturates whatever was lost.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit

T = onnx.TensorProto
EXACT = 2**24  # sums below this are exact in float32
DEEPEST = 17  # the longest shift that is exact for all sums
FARTHEST = 30  # by which any sum below EXACT becomes 0, as by each longer shift
LEFT = 24  # by which any sum but 0 saturates, as by each longer shift to the left
POWERS = np.ldexp(np.float32(1.0), -np.arange(-LEFT, FARTHEST + 1)).astype(np.float32)


def scale(edit: Edit, node: onnx.NodeProto, shift: str, more: int = 0, left: int = LEFT, axes: int = 1) -> str:
    """2^-(shift + more), 2^left at most, for shifts int32 [] or [1, C, 1, 1], made before ``node``: float32 [1] or [C].

    axes: 0 for a float32 [], of one shift.
    """
    known = edit.constant(shift)
    if known is not None:
        return edit.put(np.ldexp(np.float32(1.0), -np.clip(known.reshape([-1] * axes) + more, -left, FARTHEST)), np.float32)
    shape = edit.shape(shift)
    near = edit.declare(edit.before(node, "Max", [shift, edit.put(-left - more, np.int32)]), T.INT32, shape)
    near = edit.declare(edit.before(node, "Min", [near, edit.put(FARTHEST - more, np.int32)]), T.INT32, shape)
    index = edit.declare(edit.before(node, "Add", [near, edit.put(LEFT + more, np.int32)]), T.INT32, shape)
    found = edit.declare(edit.before(node, "Gather", [edit.put(POWERS, np.float32), index]), T.FLOAT, shape)
    flat = edit.before(node, "Reshape", [found, edit.put([-1] * axes, np.int64)])
    return edit.declare(flat, T.FLOAT, [math.prod(shape)] * axes)

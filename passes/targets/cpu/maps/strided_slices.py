"""Every s-th element of a map without slices with steps, which onnxruntime cuts element by element, on one thread.

What a window of a strided convolution or pool sees are the s*s phases of the map, each cut at another place. Of many channels a
phase is a 1x1 depthwise QLinearConv with strides, by factors of 1, and a cut without steps copies rows. Of few, such as those of
images, a transpose takes the columns of all phases apart at once.
"""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.trace import Int, Int8, Ints, Uint8, Value, function, op
from wageubn_onnx.onnxir.view import Array
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST

T = onnx.TensorProto
FEWEST = 8  # channels from which on the kernel is the faster one


@function("Phase", "y")
def PHASE(x: Uint8, ones: Int8, *, strides: Ints, group: Int) -> Value:
    """y[n, c, i, j] = x[n, c, i * strides[0], j * strides[1]]; ones [C, 1, 1, 1]."""
    one, none = np.float32(1), np.uint8(0)
    return op("QLinearConv", x, one, none, ones, one, np.int8(0), one, none, strides=strides, group=group)


def phases_by_kernel(edit: Edit) -> None:
    """The same elements of 8-bit maps."""
    edit.functions([PHASE])
    for node in edit.nodes:
        cut = _steps(edit, node)
        if cut is not None and edit.shape(node.input[0])[1] >= FEWEST:
            _by_kernel(edit, node, *cut)


def phases_by_transpose(edit: Edit) -> None:
    """The same elements of 8-bit maps, with steps that divide their width."""
    for node in edit.nodes:
        cut = _steps(edit, node)
        if cut is not None and cut[2][1] > 1 and edit.shape(node.input[0])[3] % cut[2][1] == 0:
            _by_transpose(edit, node, *cut)


def _steps(edit: Edit, node: onnx.NodeProto) -> tuple[Array, Array, Array] | None:
    """Starts, counts and steps of a Slice with steps along the rows and columns of an 8-bit map; None of all else."""
    shape = edit.shape(node.input[0]) if node.op_type == "Slice" and len(node.input) == 5 else []
    if len(shape) != 4 or edit.dtype(node.input[0]) not in (T.INT8, T.UINT8):
        return None
    starts, stops, axes, steps = (edit.constant(name) for name in node.input[1:])
    if starts is None or stops is None or axes is None or steps is None or axes.tolist() != [2, 3]:
        return None
    return (starts, -(-(np.minimum(stops, shape[2:]) - starts) // steps), steps) if steps.min() >= 1 < steps.max() else None


def _by_transpose(edit: Edit, node: onnx.NodeProto, starts: Array, counts: Array, steps: Array) -> None:
    """Columns go side by side as [columns of one phase, phases], a transpose puts each phase's together."""
    n, c, h, w = edit.shape(node.input[0])
    by = int(steps[1])
    beside = edit.before(node, "Reshape", [node.input[0], edit.put([-1, by], np.int64)])
    apart = edit.before(node, "Transpose", [beside], perm=[1, 0])
    phases = edit.before(node, "Reshape", [apart, edit.put([by, n, c, h, w // by], np.int64)])
    phase, first = starts[1] % by, starts[1] // by
    bounds = [phase, starts[0], first], [phase + 1, starts[0] + (counts[0] - 1) * steps[0] + 1, first + counts[1]]
    cut = edit.before(node, "Slice", [phases, *(edit.put(v, np.int64) for v in (*bounds, [0, 3, 4], [1, steps[0], 1]))])
    edit.replace(node, "Reshape", [cut, edit.put([n, c, *counts], np.int64)])


def _by_kernel(edit: Edit, node: onnx.NodeProto, starts: Array, counts: Array, steps: Array) -> None:
    shape = edit.shape(node.input[0])
    signed, x = edit.dtype(node.input[0]) == T.INT8, node.input[0]
    if signed:
        x = edit.before(node, "Cast", [x], to=T.UINT8)
    first, offsets = starts % steps, starts // steps
    sizes = np.array(shape[2:])
    x = _cut(edit, node, x, first, sizes, sizes)
    ones = edit.put(np.ones((shape[1], 1, 1, 1)), np.int8)
    y = edit.before(node, "wageubn.Phase", [x, ones], strides=steps.tolist(), group=shape[1])
    y = _cut(edit, node, y, offsets, offsets + counts, -(-(sizes - first) // steps))
    edit.replace(node, "Cast" if signed else "Identity", [y], **({"to": T.INT8} if signed else {}))


def _cut(edit: Edit, node: onnx.NodeProto, x: str, starts: Array, stops: Array, sizes: Array) -> str:
    """Rows and columns from starts to stops of maps of these sizes."""
    if not starts.any() and np.array_equal(stops, sizes):
        return x
    return edit.before(node, "Slice", [x, *(edit.put(v, np.int64) for v in (starts, stops, [2, 3]))])


BY_KERNEL = Form(
    "strided-slices-by-convolution", "slices with steps as a strided 1x1 depthwise QLinearConv", phases_by_kernel, needs=LAST
)
BY_TRANSPOSE = Form(
    "strided-slices-by-transpose", "slices with steps of few channels as a transpose and a slice without", phases_by_transpose
)

"""Batch normalisation of 8-bit tensors in few passes: its sums by products with ones, its quotient with what is constant in a
channel added once.

The canonical step subtracts the mean from every element and squares that in int64. With x the mantissas and k, m the unit and
mean of a channel, sum((kx - m)^2) = k^2 sum(x^2) - 2km sum(x) + n m^2, exactly, and what takes int64 is as small as [N, C].

A product of two maps of 8 bits is 255 h + r, where QLinearMul gives h, to the nearest, and r is the product plus h by its lowest
byte: both are maps of 8 bits, whose sums are products with ones again.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import MICROSOFT, attributes, import_microsoft
from wageubn_onnx.onnxir.trace import Int, Int8, Int32, Value, cast, clip, function
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST, Kernel
from wageubn_onnx.passes.targets.cpu.products.int8_images import lifted
from wageubn_onnx.quantizers.integer import bounded

T = onnx.TensorProto
CHANNELS = [0, 2, 3]  # the axes that a channel's sum runs over
PIXELS = [2, 3]
INT32 = 2**31
STEP = 255  # of which a product of int8 and uint8 is so many, 128 at most, and a rest of 127 at most; odd, so that none is a tie
PRODUCT = 129 * STEP  # above what such a product is, and its steps alone
RAISED = 128  # what int8 is more as uint8, and so are steps and rests


@function("NormalizeHalfUp", "y")
def NORMALIZE(
    x: Int8, mean: Int32, sigma: Int32, *, slope: Int32, scale: Int32, lift: Int32, to: Int, least: Int32, greatest: Int32
) -> Value:
    """y = round((slope * x - scale * mean) / sigma), ties upward, in least..greatest; mean and sigma [1, C, 1, 1].

    What is negative after the lift is cut off, so that it need not be rounded downward.
    """
    constant = sigma * (lift * 2 + 1) - mean * scale * 2
    numerator = cast(x, np.int32) * (slope * 2) + constant
    r = clip(numerator // (sigma * 2), least + lift, greatest + lift) - lift
    return cast(r, to)


@function("DirectQuantizeUnsigned", "y")
def UNSIGNED(m: Int32, *, half: Int32, divisor: Int32, to: Int, greatest: Int32) -> Value:
    """y = round(m / divisor), ties upward, in 0..greatest; half = divisor / 2. What is negative becomes 0, rounded either way."""
    return bounded((m + half) // divisor, 0, greatest, to)


def lean_moments(edit: Edit, by_steps: bool) -> None:
    """The same statistics, normalised values and activations. by_steps: whether products of maps are summed by steps and rests,
    and maps will have their channels last."""
    edit.functions([NORMALIZE, UNSIGNED])
    if by_steps:
        import_microsoft(edit.model)
    for node in edit.nodes:
        if node.op_type == "ReduceSum":
            axes = _axes(edit, node)
            if axes == CHANNELS and not _squares(edit, node, by_steps):
                _sum(edit, node, by_steps)
            if axes in (CHANNELS, PIXELS) and by_steps:
                _products(edit, node, axes)
        elif node.op_type == "DirectQuantizeRatioHalfUp":
            _normalize(edit, node)
        elif node.op_type == "DirectQuantizeHalfUp":
            _unsigned(edit, node)


def _axes(edit: Edit, node: onnx.NodeProto) -> list[int]:
    """Those of a map [N, C, H, W] that ``node`` sums over."""
    axes = edit.constant(node.input[1]) if len(node.input) > 1 else None
    return axes.tolist() if axes is not None and len(edit.shape(node.input[0])) == 4 else []


def _sum(edit: Edit, node: onnx.NodeProto, last: bool) -> None:
    """The sum over a channel of an 8-bit tensor: by a product with ones."""
    wide = edit.maker(node.input[0], "Cast")
    if wide is not None and edit.dtype(wide.input[0]) in (T.INT8, T.UINT8):
        _over_images(edit, node, _by_image(edit, node, wide.input[0], last))


def _over_images(edit: Edit, node: onnx.NodeProto, sums: str) -> None:
    """``sums`` [N, C, 1, 1] over N in the place of what ``node`` sums over N, H and W."""
    keep = attributes(node).get("keepdims", 1)
    edit.replace(node, "ReduceSum", [sums, edit.put([0] if keep else CHANNELS, np.int64)], keepdims=keep)


def _by_image(edit: Edit, anchor: onnx.NodeProto, x: str, last: bool, zero: int = 0) -> str:
    """The sums of an 8-bit tensor [N, C, H, W] over H and W: int32 [N, C, 1, 1]. last: whether its channels will be last; only
    then it may have another ``zero``."""
    n, c, h, w = edit.shape(x)
    if last and edit.dtype(x) == T.INT8:  # of the uint8 that it came from: a Cast runs on one thread
        x, zero = lifted(edit, anchor, x), RAISED
    if last:
        turned = edit.before(anchor, "Transpose", [x], perm=[0, 2, 3, 1])
        columns = edit.before(anchor, "Reshape", [turned, edit.put([n, h * w, c], np.int64)])
        zeros = [edit.put(0, np.uint8), edit.put(zero, np.uint8)] if zero else []
        sums = edit.before(anchor, "MatMulInteger", [edit.put(np.ones((1, h * w)), np.uint8), columns, *zeros])
    else:
        rows = edit.before(anchor, "Reshape", [x, edit.put([n * c, h * w], np.int64)])
        sums = edit.before(anchor, "MatMulInteger", [rows, edit.put(np.ones((h * w, 1)), np.int8)])
    return edit.before(anchor, "Reshape", [sums, edit.put([n, c, 1, 1], np.int64)])


def _products(edit: Edit, node: onnx.NodeProto, axes: list[int]) -> None:
    """The sum over a channel, or a channel of an image, of the products of two maps."""
    product = edit.maker(node.input[0], "Mul")
    casts = [edit.maker(name, "Cast") for name in product.input] if product is not None else []
    maps = [cast.input[0] for cast in casts if cast is not None and edit.dtype(cast.input[0]) == T.INT8]
    if len(maps) != 2 or edit.shape(maps[0]) != edit.shape(maps[1]) or math.prod(edit.shape(maps[0])[2:]) * PRODUCT >= INT32:
        return
    sums = _products_by_image(edit, node, *maps)
    if axes == CHANNELS:
        _over_images(edit, node, sums)
    elif attributes(node).get("keepdims", 1):
        edit.replace(node, "Identity", [sums])


def _products_by_image(edit: Edit, anchor: onnx.NodeProto, x: str, y: str) -> str:
    """The sums of x * y over H and W: int32 [N, C, 1, 1].

    Of a square the lowest byte is the same where x is raised. Else y stays raised, a number from 0 to 255, and the sums of x,
    which the gradient of beta is made of, say by how much that is too much.
    """
    is_square = x == y
    raised, other = lifted(edit, anchor, x), lifted(edit, anchor, y)
    one, step = (edit.put(value, np.float32) for value in (1, STEP))
    zero, none = (edit.put(value, np.uint8) for value in (RAISED, 0))
    operands = [raised, one, zero, other, one, zero if is_square else none, step, zero]
    high = edit.before(anchor, f"{MICROSOFT}.QLinearMul", operands)
    bits = raised if is_square else edit.before(anchor, "Cast", [x], to=T.UINT8)
    rest = edit.before(anchor, "Add", [edit.before(anchor, "Mul", [bits, other]), high])  # uint8 wraps
    for name in (high, rest):
        edit.declare(name, T.UINT8, edit.shape(x))
    steps, rests = (_by_image(edit, anchor, name, True, RAISED) for name in (high, rest))
    sums = edit.before(anchor, "Add", [edit.before(anchor, "Mul", [steps, edit.put(STEP, np.int32)]), rests])
    if is_square:
        return sums
    surplus = edit.before(anchor, "Mul", [_by_image(edit, anchor, x, True), edit.put(RAISED, np.int32)])
    return edit.before(anchor, "Sub", [sums, surplus])


def _squares(edit: Edit, node: onnx.NodeProto, by_steps: bool) -> bool:
    """The sum over a channel of (k x - m)^2 in int64, where x is an 8-bit tensor."""
    wide_square = edit.maker(node.input[0], "Cast")
    square = edit.maker(wide_square.input[0] if wide_square is not None else node.input[0], "Mul")
    casts = [edit.maker(name, "Cast") for name in square.input] if square is not None else []
    roots = (
        {cast.input[0] if cast is not None else name for cast, name in zip(casts, square.input, strict=True)} if square else set()
    )
    affine = channel_affine(edit, roots.pop()) if len(roots) == 1 else None
    if affine is None or edit.dtype(node.input[0]) != T.INT64:
        return False
    x, unit, mean = affine
    n, c, h, w = edit.shape(x)
    if h * w * PRODUCT >= INT32:
        return False

    def wide(name: str) -> str:
        return edit.before(node, "Cast", [name], to=T.INT64)

    def times(name: str, factor: int) -> str:
        return edit.before(node, "Mul", [name, edit.put(factor, np.int64)])

    first = edit.put([0], np.int64)
    if by_steps:
        squares = _products_by_image(edit, node, x, x)
    else:
        mantissas = edit.before(node, "Cast", [x], to=T.INT32)
        squares = edit.before(node, "ReduceSumSquare", [mantissas, edit.put(PIXELS, np.int64)], keepdims=1)
    of_squares = edit.before(node, "ReduceSum", [wide(squares), first], keepdims=1)
    of_values = edit.before(node, "ReduceSum", [wide(_by_image(edit, node, x, last=by_steps)), first], keepdims=1)
    middle = wide(mean)
    crossed = edit.before(node, "Mul", [middle, of_values])
    centre = edit.before(node, "Mul", [middle, middle])
    gap = edit.before(node, "Sub", [times(centre, n * h * w), times(crossed, 2 * unit)])
    edit.replace(node, "Add", [times(of_squares, unit * unit), gap])
    return True


def channel_affine(edit: Edit, name: str) -> tuple[str, int, str] | None:
    """x, k and m of a tensor k x - m: x int8 [N, C, H, W], m of 16 bits as int32 [1, C, 1, 1]."""
    centred = edit.maker(name, "Sub")
    scaled = edit.maker(centred.input[0], "Mul") if centred is not None else None
    unit = edit.scalar(scaled.input[1]) if scaled is not None else 1
    wide = edit.maker(scaled.input[0] if scaled is not None else centred.input[0], "Cast") if centred is not None else None
    if centred is None or wide is None or unit is None or edit.dtype(wide.input[0]) != T.INT8:
        return None
    x, mean = wide.input[0], centred.input[1]
    if edit.shape(mean) != [1, edit.shape(x)[1], 1, 1] or not has_16_bits(edit, mean):
        return None
    return x, unit, mean


def has_16_bits(edit: Edit, name: str) -> bool:
    """Whether an int32 tensor was int16: no wider format of a profile may pass the sums that follow."""
    narrow = edit.maker(name, "Cast")
    return narrow is not None and edit.dtype(narrow.input[0]) == T.INT16


def _normalize(edit: Edit, node: onnx.NodeProto) -> None:
    """x-hat of an 8-bit tensor."""
    scaled = edit.maker(node.input[0], "Mul")
    scale = edit.scalar(scaled.input[1]) if scaled is not None else None
    affine = channel_affine(edit, scaled.input[0]) if scaled is not None else None
    if scale is None or affine is None or not has_16_bits(edit, node.input[1]):
        return
    x, unit, mean = affine
    least, greatest, to = (attributes(node)[key] for key in ("least", "greatest", "to"))
    lift = 1 - least
    if 2 * (scale * unit * 128 + scale * 2**15) + (2 * lift + 1) * 2**15 >= INT32:
        return
    passed = {"slope": scale * unit, "scale": scale, "lift": lift, "to": to, "least": least, "greatest": greatest}
    edit.replace(node, "wageubn.NormalizeHalfUp", [x, mean, node.input[1]], **passed)


def _unsigned(edit: Edit, node: onnx.NodeProto) -> None:
    """A quantizer to 0..greatest with a constant shift; a ReLU before it changes nothing."""
    least, greatest, to = (attributes(node)[key] for key in ("least", "greatest", "to"))
    shift = edit.scalar(node.input[1])
    if least != 0 or shift is None or not 1 <= shift <= 28:
        return
    relu = edit.maker(node.input[0], "Max")
    x = relu.input[0] if relu is not None and edit.scalar(relu.input[1]) == 0 else node.input[0]
    edit.replace(node, "wageubn.DirectQuantizeUnsigned", [x], half=2 ** (shift - 1), divisor=2**shift, to=to, greatest=greatest)


PASS = Form(
    "batchnorm-statistics-by-products",
    "BN's sums as matrix products by ones, of 8 bits",
    lean_moments,
    needs=(Kernel.SUMS,),
    asks=lambda machine: {"by_steps": machine.is_exact(*LAST, Kernel.QLINEAR_MUL)},
)

"""What is linear in 8-bit maps, with a factor and an offset a channel, in one kernel: BN's activation, its error, sums of errors.

    DirectQuantize(Cast(x1) * w1 + Cast(x2) * w2 + b, shift)  ->  QLinearConv(Concat(x1, x2), [w1, w2], 2^-shift, b)
    DirectQuantize(Cast(x1) + Cast(x2), shift)                  ->  QLinearAdd(x1, x2, 2^-shift)

round((w1*x1 + w2*x2 + ... + b) / 2^shift) is a depthwise QLinearConv, whose kernel has one row for each map: laid below one
another, a channel's maps are the rows of one image. One such pass takes the place of some ten over int32 maps. The sum of two
maps as they are is a QLinearAdd, which needs no such image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import MICROSOFT, attributes, import_microsoft
from wageubn_onnx.onnxir.trace import Float32, Int, Int8, Int32, Ints, Uint8, Value, function, maximum, minimum, op
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST, Kernel
from wageubn_onnx.passes.targets.cpu.products.int8_images import lifted
from wageubn_onnx.passes.targets.cpu.scalars.scales import EXACT, LEFT, scale

T = onnx.TensorProto
MOST_ROWS = 6  # more cost what they save
GREATEST = 127  # of an int8 factor
BYTE = 8  # by which any 8-bit sum but 0 saturates, as by each longer shift to the left


@function("AffineQuantize", "q")
def AFFINE(
    x: Uint8, zero: Uint8, w: Int8, scale: Float32, bias: Int32, y_zero: Uint8, bottom: Uint8, top: Uint8,
    *, kernel_shape: Ints, group: Int,
) -> Value:  # fmt: skip
    """q = round((x - zero) * w * scale + bias * scale) for each channel, half to even, plus y_zero, in bottom..top.

    x [N, C, R, P], w [C, 1, R, 1], bias [C], scale [1] or [C]; q uint8 [N, C, 1, P].
    """
    one = np.float32(1)
    y = op("QLinearConv", x, one, zero, w, scale, np.int8(0), one, y_zero, bias, kernel_shape=kernel_shape, group=group)
    return minimum(maximum(y, bottom), top)


@dataclass(frozen=True)
class Term:
    """times * weight * map; weight int32 [1, C, 1, 1], none for 1; map int8 or uint8 [N, C, H, W]."""

    map: str
    weight: str = ""
    times: int = 1


@dataclass(frozen=True)
class Linear:
    """The sum of terms and of offsets: names of int32 [1, C, 1, 1], and how often each counts."""

    terms: tuple[Term, ...] = ()
    offsets: tuple[tuple[str, int], ...] = ()

    def scaled(self, by: int) -> Linear:
        """``by`` times this."""
        terms = tuple(replace(t, times=t.times * by) for t in self.terms)
        return Linear(terms, tuple((name, n * by) for name, n in self.offsets))

    def without_zeros(self) -> Linear:
        """The same without what counts 0 times."""
        return Linear(tuple(t for t in self.terms if t.times), tuple((name, n) for name, n in self.offsets if n))

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.terms + other.terms, self.offsets + other.offsets)


def fuse_affine_maps(edit: Edit) -> None:
    """The same mantissas of quantizers to 8 bits that round half to even, and the same masks."""
    edit.functions([AFFINE])
    import_microsoft(edit.model)
    for node in edit.nodes:
        shape = edit.shape(node.output[0]) if node.output else []
        if len(shape) != 4 or math.prod(shape) == shape[1]:  # one number a channel is no map
            continue
        if node.op_type in ("DirectQuantize", "GridQuantize") and attributes(node)["to"] in (T.INT8, T.UINT8):
            _quantized(edit, node, shape)
        elif node.op_type == "Greater" and edit.scalar(node.input[1]) == 0:
            _mask(edit, node, shape)


def _quantized(edit: Edit, node: onnx.NodeProto, shape: list[int]) -> None:
    """What a quantizer gives; in uint8 with 128 for 0 until it is int8."""
    passed, source = attributes(node), node.input[0]
    relu = edit.maker(source, "Max")
    if relu is not None and edit.scalar(relu.input[1]) == 0 and passed["least"] == 0:  # saturation does that
        source = relu.input[0]
    lift = 0 if passed["to"] == T.UINT8 else 128
    q = _affine(edit, node, source, shape, node.input[1], (lift, passed["least"] + lift, passed["greatest"] + lift))
    if q is not None:
        finish(edit, node, q)


def _mask(edit: Edit, node: onnx.NodeProto, shape: list[int]) -> None:
    """x > 0 as 255 or 0, since by the greatest scale all else saturates; a choice between an 8-bit map and 0 is then the product
    of the mask, -1 as uint8, and of the map with its sign turned."""
    mask = _affine(edit, node, node.input[0], shape, edit.put(-LEFT, np.int32), (0, 0, 255))
    if mask is None:
        return
    for choice in edit.readers[node.output[0]]:
        if choice.op_type == "Where" and edit.dtype(choice.output[0]) == T.UINT8 and edit.scalar(choice.input[2]) == 0:
            turned = edit.before(choice, "Sub", [edit.put(0, np.uint8), choice.input[1]])
            edit.replace(choice, "Mul", [turned, mask])
    edit.replace(node, "Cast", [mask], to=T.BOOL)


def _affine(
    edit: Edit, node: onnx.NodeProto, source: str, shape: list[int], shift: str, limits: tuple[int, int, int]
) -> str | None:
    """round(source / 2^shift) + limits[0], within limits[1]..limits[2], as uint8 of ``shape``.

    None where source is no linear form with as few rows, or may be too great.
    """
    form = _linear(edit, source, shape)
    rows = _rows(form) if form is not None else None
    if form is None or rows is None:
        return None
    factor, rows_of, offsets = rows
    bound = sum(128 * GREATEST for _ in rows_of)
    for name, times in offsets:
        reach = edit.bound(name)
        bound += EXACT if reach is None else reach * abs(times)
    fits = all(not t.weight or (edit.bound(t.weight) or EXACT) <= GREATEST for t in rows_of)
    if bound >= EXACT or not fits:
        return None
    if not offsets and [(t.weight, t.times) for t in rows_of] == [("", 1)] * 2 and math.prod(edit.shape(shift)) == 1:
        return _sum_of_two(edit, node, [t.map for t in rows_of], scale(edit, node, shift, -factor, BYTE, axes=0), limits)
    channels, count = shape[1], len(rows_of)
    x, zero = _image(edit, node, rows_of, shape)
    weights = [_weight(edit, node, t, channels) for t in rows_of]
    w = weights[0] if count == 1 else edit.before(node, "Concat", weights, axis=2)
    bias = edit.put(np.zeros(channels), np.int32)
    for name, times in offsets:
        offset = edit.before(node, "Reshape", [name, edit.put([-1], np.int64)])
        if times != 1:
            offset = edit.before(node, "Mul", [offset, edit.put(times, np.int32)])
        bias = edit.before(node, "Add", [bias, offset])
    ends = [edit.put(v, np.uint8) for v in limits]
    operands = [x, edit.put(zero, np.uint8), w, scale(edit, node, shift, -factor), bias, *ends]
    q = edit.before(node, "wageubn.AffineQuantize", operands, kernel_shape=[count, 1], group=channels)
    return edit.before(node, "Reshape", [q, edit.put(shape, np.int64)]) if count > 1 else q


def _sum_of_two(edit: Edit, node: onnx.NodeProto, maps: list[str], by: str, limits: tuple[int, int, int]) -> str:
    """The rounded sum of two maps, times ``by``, float32 []."""
    one, zero = edit.put(1, np.float32), edit.put(128, np.uint8)
    y_zero, *ends = (edit.put(v, np.uint8) for v in limits)
    operands = [operand for m in maps for operand in (lifted(edit, node, m), by, zero)]
    y = edit.before(node, f"{MICROSOFT}.QLinearAdd", [*operands, one, y_zero])
    edit.declare(y, T.UINT8, edit.shape(maps[0]))
    return edit.before(node, "Min", [edit.before(node, "Max", [y, ends[0]]), ends[1]])


def finish(edit: Edit, node: onnx.NodeProto, q: str) -> None:
    """Put the uint8 tensor ``q``, 128 for 0 where ``node`` gives int8, in the place of what ``node`` gives."""
    if attributes(node)["to"] == T.UINT8:
        edit.replace(node, "Identity", [q])
    else:
        edit.replace(node, "Cast", [edit.before(node, "BitwiseXor", [q, edit.put(128, np.uint8)])], to=T.INT8)


def _image(edit: Edit, node: onnx.NodeProto, terms: list[Term], shape: list[int]) -> tuple[str, int]:
    """The maps of ``terms`` below one another, uint8, and their zero point."""
    if len(terms) == 1 and edit.dtype(terms[0].map) == T.UINT8:
        return terms[0].map, 0
    maps = [lifted(edit, node, term.map) for term in terms]
    if len(maps) == 1:
        return maps[0], 128
    flat = edit.put([shape[0], shape[1], 1, shape[2] * shape[3]], np.int64)
    return edit.before(node, "Concat", [edit.before(node, "Reshape", [m, flat]) for m in maps], axis=2), 128


def _weight(edit: Edit, node: onnx.NodeProto, term: Term, channels: int) -> str:
    """The kernel's row of a term: int8 [C, 1, 1, 1]."""
    if not term.weight:
        return edit.put(np.full((channels, 1, 1, 1), term.times), np.int8)
    weight = edit.before(node, "Reshape", [term.weight, edit.put([-1, 1, 1, 1], np.int64)])
    if term.times != 1:
        weight = edit.before(node, "Mul", [weight, edit.put(term.times, np.int32)])
    return edit.before(node, "Cast", [weight], to=T.INT8)


def _rows(form: Linear) -> tuple[int, list[Term], list[tuple[str, int]]] | None:
    """log2 of a common factor; what is left as terms whose factors fit into int8, and as offsets. None: too many, or no map."""
    form = form.without_zeros()
    if not form.terms:
        return None
    counts = [abs(t.times) for t in form.terms] + [abs(n) for _, n in form.offsets]
    common = math.gcd(*counts)
    log = (common & -common).bit_length() - 1
    rows: list[Term] = []
    for term in form.terms:
        times, most = term.times >> log, 1 if term.weight else GREATEST
        pieces = -(-abs(times) // most)
        if len(rows) + pieces > MOST_ROWS:
            return None
        sign, size = (1 if times > 0 else -1), abs(times)
        rows += [replace(term, times=sign * (size * (i + 1) // pieces - size * i // pieces)) for i in range(pieces)]
    return log, rows, [(name, times >> log) for name, times in form.offsets]


def _linear(edit: Edit, name: str, shape: list[int]) -> Linear | None:
    """int32 tensor ``name`` of ``shape`` as a linear form of 8-bit maps; None where it is none."""
    if edit.shape(name) != shape:
        return Linear(offsets=((name, 1),)) if edit.shape(name) == [1, shape[1], 1, 1] else None
    node = edit.maker(name, "Cast", "Mul", "Add", "Sub")
    if node is None:
        return None
    if node.op_type == "Cast":
        dtype = edit.dtype(node.input[0])
        fits = dtype == T.INT8 or (dtype == T.UINT8 and (edit.bound(node.input[0]) or 255) <= GREATEST)
        return Linear((Term(node.input[0]),)) if fits else None
    if node.op_type == "Mul":
        map_, factor = sorted(node.input, key=lambda operand: edit.shape(operand) != shape)
        inner, times = _linear(edit, map_, shape), edit.scalar(factor)
        if inner is None or times is not None:
            return inner.scaled(times) if inner is not None and times is not None else None
        per_channel, plain = edit.shape(factor) == [1, shape[1], 1, 1], len(inner.terms) == 1 and not inner.offsets
        if not per_channel or not plain or inner.terms[0] != Term(inner.terms[0].map):
            return None
        return Linear((replace(inner.terms[0], weight=factor),))
    a, b = (_linear(edit, operand, shape) for operand in node.input)
    if a is None or b is None:
        return None
    return a + b.scaled(-1 if node.op_type == "Sub" else 1)


PASS = Form(
    "fuse-affine-maps",
    "sums of 8-bit maps, each by a factor a channel, as one depthwise QLinearConv; of two as they are, a QLinearAdd",
    fuse_affine_maps,
    needs=(*LAST, Kernel.QLINEAR_ADD),
)

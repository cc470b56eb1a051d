"""Columns of weight gradients as shifts of flat maps, where slicing them copies a row of an image at a time.

With one zero behind each row and one row of zeros behind each image, as many as a window looks beyond them, a map is one line
of numbers a channel, and what a tap sees is that line, shifted. So the columns are one Concat of lines and of zeros between
them: K numbers a column, of which those are no position of the error where its own line has zeros, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.operands import Preference, before_the_flip

Pair = tuple[int, int]
Made = dict[tuple[str, str, Pair], str]
CHANNELS_FIRST = [1, 0, 2, 3]
CHANNELS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True)
class Lines:
    """How a window's taps see the maps ``source`` [N, C, H, W], for errors of size ``out``.

    taps: of each the phase of the maps, every stride-th row and column from there, and where in it the first window looks.
    """

    source: str
    shape: Sequence[int]
    strides: Pair
    taps: Sequence[tuple[Pair, Pair]]
    out: Pair

    @property
    def pitch(self) -> Pair:
        """Rows and columns of a phase, and of the errors, with zeros behind them."""
        found = []
        for axis in range(2):
            offsets = [offset[axis] for _, offset in self.taps]
            size = -(-self.shape[2 + axis] // self.strides[axis])
            found.append(max(size, size - min(offsets), self.out[axis] + max(offsets)))
        return found[0], found[1]

    @property
    def shifts(self) -> list[int]:
        """How far each tap's line is shifted."""
        return [row * self.pitch[1] + column for _, (row, column) in self.taps]

    @property
    def line(self) -> int:
        """Numbers of a channel's line."""
        return self.shape[0] * self.pitch[0] * self.pitch[1]

    @property
    def length(self) -> int:
        """K: the numbers of a column, enough for one line to end before the next one starts."""
        steps = [after - before for before, after in pairwise(self.shifts)]
        return self.line + max(0, -self.shifts[-1], *steps)

    @property
    def gaps(self) -> list[int]:
        """Zeros before the first line, between lines, and behind the last."""
        starts = [at * self.length - shift for at, shift in enumerate(self.shifts)]
        return [starts[0], *(b - a - self.line for a, b in pairwise(starts)), len(starts) * self.length - starts[-1] - self.line]

    @property
    def positions(self) -> int:
        """Windows of an image."""
        return self.out[0] * self.out[1]

    def place(self, position: int) -> int:
        """Where on the line window ``position`` of all the images' is; the end of the column for the end."""
        image, rest = divmod(position, self.positions)
        row, column = divmod(rest, self.out[1])
        return self.length if image == self.shape[0] else (image * self.pitch[0] + row) * self.pitch[1] + column


def flat_columns(edit: Edit, prefers_int8: Preference) -> None:
    """The same sums of the same products, and of products with 0.

    prefers_int8: of the shapes of images [N, I, H, W] and kernels [O, I/G, KH, KW], whether errors should be int8 beside uint8.
    """
    made: Made = {}
    for node in edit.nodes:
        if node.op_type == "MatMulInteger":
            _flatten(edit, node, made, prefers_int8)


@dataclass(frozen=True)
class Operand:
    """Of a product: ``whole`` [C * taps, windows] or [windows, O], made by the Reshape ``rows`` but for ``changes``, nodes that
    change element by element; ``piece``, the slice of it that is short enough for a sum, if there is one."""

    whole: str
    rows: onnx.NodeProto
    changes: list[onnx.NodeProto]
    piece: onnx.NodeProto | None


def _operand(edit: Edit, name: str) -> Operand | None:
    """What ``name`` is; None where no Reshape makes its rows, and of a slice of a slice."""
    whole, changes, piece = name, list[onnx.NodeProto](), None
    while (node := edit.maker(name, "Cast", "BitwiseXor", "Slice", "Reshape")) is not None:
        name = node.input[0]
        if node.op_type == "Reshape":
            return Operand(whole, node, changes[::-1], piece)
        if node.op_type == "Slice" and piece is None:
            whole, piece = name, node
        elif node.op_type == "Slice":
            return None
        else:
            changes.append(node)
    return None


def _flatten(edit: Edit, product: onnx.NodeProto, made: Made, prefers_int8: Preference) -> None:
    """Give ``product`` flat operands, if it is of columns by errors. made: the flat tensors of such pairs."""
    columns, errors = (_operand(edit, name) for name in product.input[:2])
    lines = _lines(edit, columns.rows) if columns is not None and errors is not None else None
    turned = edit.maker(errors.rows.input[0], "Transpose") if errors is not None else None
    if columns is None or errors is None or lines is None or turned is None or None in map(edit.scalar, product.input[2:]):
        return
    zeros, changes = list(product.input[2:]), [columns.changes, errors.changes]
    (m, k), n = edit.shape(product.input[0]), edit.shape(product.input[1])[1]
    if before_the_flip(edit, errors.whole) and prefers_int8([1, k, n, 1], [m, k, 1, 1]):
        zeros[1], changes[1] = edit.put(0, np.int8), []
    operands = []
    sources = (columns, lines.source, _columns), (errors, turned.input[0], _errors)
    for (operand, source, build), zero, changed in zip(sources, zeros, changes, strict=True):
        start, stop = _bounds(edit, operand, lines)
        images = start // lines.positions, -(-stop // lines.positions)
        seen = replace(lines, shape=[images[1] - images[0], *lines.shape[1:]])
        key = operand.whole, columns.whole, images
        if key not in made:
            made[key] = build(edit, product, _images(edit, product, _changed(edit, product, source, changed), images), zero, seen)
        flat, ends = made[key], [seen.place(bound - images[0] * lines.positions) for bound in (start, stop)]
        if ends != [0, seen.length]:
            axis = 1 if operand is columns else 0
            flat = edit.before(product, "Slice", [flat, *(edit.put([v], np.int64) for v in (*ends, axis))])
        operands.append(flat)
    edit.replace(product, "MatMulInteger", [*operands, *zeros])


def _bounds(edit: Edit, operand: Operand, lines: Lines) -> Pair:
    """The first window of a piece, and the one behind its last."""
    if operand.piece is None:
        return 0, lines.shape[0] * lines.positions
    start, stop = (edit.scalar(name) for name in operand.piece.input[1:3])
    return start or 0, stop or 0


def _images(edit: Edit, anchor: onnx.NodeProto, source: str, images: Pair) -> str:
    """Some of the maps ``source``: as long as a sum of products may be."""
    shape = edit.shape(source)
    if images == (0, shape[0]):
        return source
    cut = edit.before(anchor, "Slice", [source, *(edit.put([v], np.int64) for v in (*images, 0))])
    return edit.declare(cut, edit.dtype(source), [images[1] - images[0], *shape[1:]])


def _changed(edit: Edit, anchor: onnx.NodeProto, source: str, changes: Sequence[onnx.NodeProto]) -> str:
    """The maps ``source`` after ``changes``."""
    shape = edit.shape(source)
    for node in changes:
        source = edit.before(anchor, node.op_type, [source, *node.input[1:]], **attributes(node))
        edit.declare(source, edit.dtype(node.output[0]), shape)
    return source


def _lines(edit: Edit, columns: onnx.NodeProto) -> Lines | None:
    """What the slices see that ``columns`` puts below one another; None where it is of another kind."""
    gathered = edit.maker(columns.input[0])
    if gathered is None or len(edit.shape(columns.output[0])) != 2:
        return None
    slices = list(gathered.input) if gathered.op_type == "Concat" else [columns.input[0]]
    found = [node for node in (edit.maker(name, "Slice") for name in slices) if node is not None and len(node.input) == 5]
    if len(found) != len(slices) or len({node.input[0] for node in found}) != 1:
        return None
    pad = edit.maker(found[0].input[0], "Pad")
    turned = edit.maker(pad.input[0] if pad is not None else found[0].input[0], "Transpose")
    pads = edit.constant(pad.input[1]) if pad is not None else np.zeros(8, np.int64)
    cuts = [[edit.constant(node.input[at]) for node in found] for at in (1, 3, 4)]
    starts, axes, steps = ([value.tolist() for value in cut if value is not None] for cut in cuts)
    if turned is None or attributes(turned)["perm"] != CHANNELS_FIRST or pads is None or len(starts) != len(found):
        return None
    if any(value != [2, 3] for value in axes) or any(value != steps[0] for value in steps):
        return None
    row_step, column_step = steps[0]
    taps = [
        ((row % row_step, column % column_step), (row // row_step, column // column_step))
        for row, column in ((i - int(pads[2]), j - int(pads[3])) for i, j in starts)
    ]
    out = edit.shape(slices[0])
    return Lines(turned.input[0], edit.shape(turned.input[0]), (row_step, column_step), taps, (out[2], out[3]))


def _padded(edit: Edit, anchor: onnx.NodeProto, name: str, zero: str, pitch: Pair) -> str:
    """Maps [N, C, H, W] with zeros behind their rows and columns, up to ``pitch``."""
    n, c, h, w = edit.shape(name)
    if (h, w) == pitch:
        return name
    ends = edit.put([0, 0, 0, 0, 0, 0, pitch[0] - h, pitch[1] - w], np.int64)
    return edit.declare(edit.before(anchor, "Pad", [name, ends, zero]), edit.dtype(name), [n, c, *pitch])


def _columns(edit: Edit, anchor: onnx.NodeProto, source: str, zero: str, lines: Lines) -> str:
    """[C * taps, K]: each channel's lines, shifted, one behind the other; ``source`` [N, C, H, W]."""
    n, c, h, w = lines.shape
    dtype = edit.dtype(source)
    by_phase: dict[Pair, str] = {}
    for phase in dict.fromkeys(phase for phase, _ in lines.taps):
        part = source
        if lines.strides != (1, 1):
            bounds = [edit.put(v, np.int64) for v in (phase, (h, w), (2, 3), lines.strides)]
            size = [-(-(full - first) // step) for full, first, step in zip((h, w), phase, lines.strides, strict=True)]
            if min(size) < 1:  # of padding alone
                by_phase[phase] = _filled(edit, (c, lines.line), zero)
                continue
            part = edit.declare(edit.before(anchor, "Slice", [part, *bounds]), dtype, [n, c, *size])
        part = _padded(edit, anchor, part, zero, lines.pitch)
        part = edit.declare(edit.before(anchor, "Transpose", [part], perm=CHANNELS_FIRST), dtype, [c, n, *lines.pitch])
        by_phase[phase] = edit.before(anchor, "Reshape", [part, edit.put([c, lines.line], np.int64)])
    first, *gaps = (_filled(edit, (c, gap), zero) if gap else "" for gap in lines.gaps)
    parts = [first, *(p for (phase, _), gap in zip(lines.taps, gaps, strict=True) for p in (by_phase[phase], gap))]
    joined = edit.before(anchor, "Concat", [part for part in parts if part], axis=1)
    shape = [c * len(lines.taps), lines.length]
    return edit.declare(edit.before(anchor, "Reshape", [joined, edit.put(shape, np.int64)]), dtype, shape)


def _errors(edit: Edit, anchor: onnx.NodeProto, source: str, zero: str, lines: Lines) -> str:
    """[K, O]: the lines of the errors ``source`` [N, O, OH, OW]."""
    dtype, channels = edit.dtype(source), edit.shape(source)[1]
    padded = _padded(edit, anchor, source, zero, lines.pitch)
    last = edit.before(anchor, "Transpose", [padded], perm=CHANNELS_LAST)
    edit.declare(last, dtype, [lines.shape[0], *lines.pitch, channels])
    line = edit.before(anchor, "Reshape", [last, edit.put([lines.line, channels], np.int64)])
    if lines.length > lines.line:
        line = edit.before(anchor, "Concat", [line, _filled(edit, (lines.length - lines.line, channels), zero)], axis=0)
    return edit.declare(line, dtype, [lines.length, channels])


def _filled(edit: Edit, shape: Sequence[int], zero: str) -> str:
    return edit.put(np.full(shape, edit.scalar(zero)), onnx.helper.tensor_dtype_to_np_dtype(edit.dtype(zero)))


PASS = Form(
    "im2col-by-shifts",
    "the columns of a weight gradient as shifts of one line a channel",
    flat_columns,
    asks=lambda machine: {"prefers_int8": machine.prefers_int8},
)

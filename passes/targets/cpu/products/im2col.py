"""Columns of weight gradients as shifts of flat maps, where slicing them copies a row of an image at a time.

With one zero behind each row and one row of zeros behind each image, as many as a window looks beyond them, a map is one line
of numbers a channel, and what a tap sees is that line, shifted. So the columns are one Concat of lines and of zeros between
them: K numbers a column, of which those are no position of the error where its own line has zeros, too.

before: dw = ConvWeightGradient(x, dy)
after:  line = Reshape(Transpose(Pad(x)))                    [I, positions], zeros behind rows and images
        columns = Reshape(Concat(line, zeros, line, ...))    [I * taps, K], each line shifted by its tap
        errors = Reshape(Transpose(Pad(dy)))                 [K, O], the same positions
        dw = Reshape(Transpose(MatMulInteger(columns, errors)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.products.int8_images import Operand, Preference, unsigned

T = onnx.TensorProto
Pair = tuple[int, int]
CHANNELS_FIRST = [1, 0, 2, 3]
CHANNELS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True)
class Lines:
    """How a window's taps see maps of ``shape`` [N, C, H, W], for errors of size ``out``.

    taps: of each the phase of the maps, every stride-th row and column from there, and where in it the first window looks.
    """

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
    for node in edit.calls("ConvWeightGradient"):
        window = attributes(node)
        if window["group"] == 1 and not sees_all_once(window):
            _flatten(edit, node, window, prefers_int8)


def sees_all_once(window: dict[str, Any]) -> bool:
    """Whether a window of one tap sees every place of the maps, and nothing else."""
    return (window["kernel_shape"], window["strides"], window["pads"]) == ([1, 1], [1, 1], [0] * 4)


def _flatten(edit: Edit, node: onnx.NodeProto, window: dict[str, Any], prefers_int8: Preference) -> None:
    """The gradient [O, I, KH, KW] of maps [N, I, H, W] and errors [N, O, OH, OW], in as many sums as the canonical one."""
    x, dy = node.input
    lines = _lines(edit.shape(x), edit.shape(dy)[2:], window)
    (n, i), o, taps = edit.shape(x)[:2], edit.shape(dy)[1], len(lines.taps)
    windows, count = n * lines.positions, edit.products(node)
    size = -(-windows // count)
    maps, right = unsigned(edit, node, x), Operand(dy, edit.put(0, np.int8))
    if not (edit.dtype(dy) == T.INT8 and (maps.is_never_negative or prefers_int8([1, size, o, 1], [i * taps, size, 1, 1]))):
        right = unsigned(edit, node, dy)
    made = dict[Pair, tuple[Lines, str, str]]()
    sums = list[str]()
    for start in range(0, windows, size):
        stop = min(start + size, windows)
        images = start // lines.positions, -(-stop // lines.positions)
        if images not in made:
            seen = replace(lines, shape=[images[1] - images[0], *lines.shape[1:]])
            columns, errors = (_images(edit, node, operand.name, images) for operand in (maps, right))
            made[images] = seen, _columns(edit, node, columns, maps.zero, seen), _errors(edit, node, errors, right.zero, seen)
        seen, *flat = made[images]
        ends = [seen.place(bound - images[0] * lines.positions) for bound in (start, stop)]
        if ends != [0, seen.length]:
            bounds = [[edit.put([v], np.int64) for v in (*ends, axis)] for axis in (1, 0)]
            flat = [edit.before(node, "Slice", [whole, *cut]) for whole, cut in zip(flat, bounds, strict=True)]
        sums.append(edit.before(node, "MatMulInteger", [*flat, maps.zero, right.zero]))
    put_weight_gradient(edit, node, sums)


def put_weight_gradient(edit: Edit, node: onnx.NodeProto, sums: Sequence[str]) -> None:
    """The sum of int32 ``sums`` [I * taps, O] as the gradient that ``node`` computes."""
    total, dtype = sums[0], edit.dtype(node.output[0])
    if dtype != T.INT32:
        wide = [edit.before(node, "Cast", [part], to=dtype) for part in sums]
        total = wide[0]
        for part in wide[1:]:
            total = edit.before(node, "Add", [total, part])
    turned = edit.before(node, "Transpose", [total], perm=[1, 0])
    edit.replace(node, "Reshape", [turned, edit.put(edit.shape(node.output[0]), np.int64)])


def _lines(shape: Sequence[int], out: Sequence[int], window: dict[str, Any]) -> Lines:
    rows, columns = window["strides"]
    taps = [
        ((row % rows, column % columns), (row // rows, column // columns))
        for i, j in np.ndindex(*window["kernel_shape"])
        for row, column in [(i * window["dilations"][0] - window["pads"][0], j * window["dilations"][1] - window["pads"][1])]
    ]
    return Lines(shape, (rows, columns), taps, (out[0], out[1]))


def _images(edit: Edit, anchor: onnx.NodeProto, source: str, images: Pair) -> str:
    """Some of the maps ``source``: as long as a sum of products may be."""
    shape = edit.shape(source)
    if images == (0, shape[0]):
        return source
    cut = edit.before(anchor, "Slice", [source, *(edit.put([v], np.int64) for v in (*images, 0))])
    return edit.declare(cut, edit.dtype(source), [images[1] - images[0], *shape[1:]])


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

"""Windows over images as plain slices, pads and reshapes: what convolution and pooling gradients are made of.

Every function works on any dtype, so the same nodes serve the float and the integer graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.graph import Model, Tensor


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pooling: each field per axis (rows, columns); pads before and after each."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    dilations: tuple[int, int] = (1, 1)

    @staticmethod
    def of(attrs: dict[str, Any]) -> Window:
        pads = attrs["pads"]
        return Window(
            tuple(attrs["kernel_shape"]),
            tuple(attrs["strides"]),
            (pads[0], pads[1]),
            (pads[2], pads[3]),
            tuple(attrs.get("dilations", (1, 1))),
        )

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Kernel positions in row-major order."""
        return [(i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]

    @property
    def padded(self) -> bool:
        return any((*self.before, *self.after))

    def inside(self, tap: tuple[int, int], size: Sequence[int], out: Sequence[int]) -> np.ndarray[Any, Any]:
        """Whether this tap of each window lies on the image, not on its padding: bool [1, 1, OH, OW]."""
        rows, columns = (
            ((o := np.arange(out[a]) * self.strides[a] + tap[a] * self.dilations[a] - self.before[a]) >= 0) & (o < size[a])
            for a in range(2)
        )
        return (rows[:, None] & columns[None, :])[None, None]


def pad_image(g: Model, x: Tensor, window: Window) -> Tensor:
    """x [.., .., H, W] with the window's padding in zeros."""
    if not window.padded:
        return x
    return g.op("Pad", x, g.ints(0, 0, *window.before, 0, 0, *window.after), g.scalar(0, x.dtype), name="padded")


def tap_slices(g: Model, x: Tensor, window: Window, out: Sequence[int]) -> list[Tensor]:
    """For each kernel position, what it sees in every window: [.., .., H, W] -> one [.., .., OH, OW] a tap."""
    padded = pad_image(g, x, window)
    slices = []
    for tap in window.taps:
        start = [tap[a] * window.dilations[a] for a in range(2)]
        stop = [start[a] + (out[a] - 1) * window.strides[a] + 1 for a in range(2)]
        if start == [0, 0] and stop == list(padded.shape[2:]) and window.strides == (1, 1):
            slices.append(padded)
        else:
            bounds = (g.ints(*start), g.ints(*stop), g.ints(2, 3), g.ints(*window.strides))
            slices.append(g.op("Slice", padded, *bounds, name=f"tap{tap[0]}{tap[1]}"))
    return slices


@dataclass(frozen=True)
class Place:
    """Where along one axis something with stride lands: position ``phase`` + stride * (index + ``offset``)."""

    phase: int
    offset: int

    @staticmethod
    def of(start: int, stride: int) -> Place:
        return Place(start % stride, start // stride)


def phase_size(size: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of one phase of an image of ``size``: every stride-th position, padded to the same number for all."""
    rows, columns = (-(-size[a] // strides[a]) for a in range(2))
    return rows, columns


def interleave(g: Model, phases: Mapping[tuple[int, int], Tensor], strides: Sequence[int], size: Sequence[int]) -> Tensor:
    """The image of which ``phases[i, j]`` [N, C, *phase_size] holds the positions (i, j) modulo strides; zeros elsewhere.

    What is done before this is done on a phase's few elements, not on an image of zeros between them.
    """
    n, c, h, w = next(iter(phases.values())).shape
    rows, columns = strides
    if (rows, columns) == (1, 1):
        return phases[0, 0]
    dtype = next(iter(phases.values())).dtype
    empty = None if len(phases) == rows * columns else zeros(g, (n, c, h, w), dtype)
    lines = []
    for i in range(rows):
        row = [phases.get((i, j), empty) for j in range(columns)]
        lifted = [g.op("Unsqueeze", x, g.ints(4), name="phase") for x in row]  # [N, C, h, w, 1]
        lines.append(g.op("Concat", *lifted, name="columns", axis=4))
    image = g.op("Concat", *lines, name="rows", axis=3)  # [N, C, h, rows * w, columns]
    image = g.op("Reshape", image, g.ints(n, c, h * rows, w * columns), name="interleaved")
    return fit(g, image, (0, 0), size)


def zeros(g: Model, shape: Sequence[int], dtype: Any) -> Tensor:
    """A map of zeros."""
    return g.op("Expand", g.scalar(0, dtype), g.ints(*shape), name="zeros")


def fit(g: Model, x: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    """Place x at ``offset`` (rows, columns, negative to cut) on a zero canvas of ``size``: out[h] = x[h - offset].

    Some of x must lie on the canvas.
    """
    cut_before = [max(-offset[a], 0) for a in range(2)]
    stop = [min(x.shape[2 + a], size[a] - offset[a]) for a in range(2)]
    if cut_before != [0, 0] or stop != list(x.shape[2:]):
        x = g.op("Slice", x, g.ints(*cut_before), g.ints(*stop), g.ints(2, 3), name="cut")
    before = [max(offset[a], 0) for a in range(2)]
    after = [size[a] - before[a] - x.shape[2 + a] for a in range(2)]
    if any((*before, *after)):
        x = g.op("Pad", x, g.ints(0, 0, *before, 0, 0, *after), g.scalar(0, x.dtype), name="placed")
    return x


def as_dtype(g: Model, x: Tensor, dtype: Any) -> Tensor:
    """x in ``dtype``."""
    if x.dtype == np.dtype(dtype):
        return x
    return g.op("Cast", x, name="cast", to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def scatter_taps(g: Model, parts: Sequence[Tensor], window: Window, size: Sequence[int], dtype: Any = None) -> Tensor:
    """The transpose of `tap_slices`: every part [N, C, OH, OW] goes back to where its tap looked, and they are summed.

    The sums are made phase by phase, since taps meet only where their positions agree modulo the strides. A tap that sees the
    padding alone gives nothing back.

    dtype: of the sums, where it is another than that of the parts, which are moved in their own.
    """
    dtype = dtype or parts[0].dtype
    canvas = phase_size(size, window.strides)
    phases: dict[tuple[int, int], Tensor] = {}
    for tap, part in zip(window.taps, parts, strict=True):
        row, column = (Place.of(tap[a] * window.dilations[a] - window.before[a], window.strides[a]) for a in range(2))
        if any(not -part.shape[2 + a] < place.offset < canvas[a] for a, place in enumerate((row, column))):
            continue
        placed, key = fit(g, part, (row.offset, column.offset), canvas), (row.phase, column.phase)
        if key in phases:
            placed = g.op("Add", as_dtype(g, phases[key], dtype), as_dtype(g, placed, dtype), name="scattered")
        phases[key] = placed
    phases = {key: as_dtype(g, phase, dtype) for key, phase in phases.items()}
    return interleave(g, phases, window.strides, size) if phases else zeros(g, (*parts[0].shape[:2], *size), dtype)

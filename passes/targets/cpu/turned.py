"""Kernels turned around for the error of the input, tap by tap: onnxruntime reverses rows and columns element by element, and
swaps channels in pieces of a kernel's few bytes. With its taps first a kernel is reversed, swapped and cut by whole rows."""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.matrix import reverses, taps_first


def turned_kernels(edit: Edit) -> None:
    """The same kernels int8 [I, O, KH, KW] of [O, I, KH, KW], and parts of them, such as errors of strided layers want."""
    turned: dict[str, str] = {}  # by their names with taps last: those with taps first
    for node in edit.nodes:
        if node.op_type == "Transpose" and attributes(node)["perm"] == [1, 0, 2, 3]:
            source = edit.maker(node.input[0], "Slice")
            if source is not None and reverses(edit, source) and edit.dtype(node.output[0]) == onnx.TensorProto.INT8:
                turned[node.output[0]] = _turned(edit, node, source.input[0])
                _taps_last(edit, node, turned[node.output[0]], edit.shape(node.output[0]))
        elif node.op_type == "Slice" and node.input[0] in turned:
            _cut(edit, node, turned[node.input[0]])


def _turned(edit: Edit, anchor: onnx.NodeProto, kernel: str) -> str:
    """[O, I, KH, KW] -> [taps, I * O], the taps in their reverse order."""
    o, i, *size = edit.shape(kernel)
    taps = math.prod(size)
    by_tap = taps_first(edit, anchor, kernel, (o, i, taps))
    by_tap = edit.before(anchor, "Gather", [by_tap, edit.put(np.arange(taps)[::-1], np.int64)], axis=0)
    by_tap = edit.before(anchor, "Transpose", [by_tap], perm=[0, 2, 1])
    return edit.before(anchor, "Reshape", [by_tap, edit.put([taps, i * o], np.int64)])


def _taps_last(edit: Edit, node: onnx.NodeProto, by_tap: str, shape: list[int]) -> None:
    """``by_tap`` as the kernel of ``shape``, in the place of ``node``."""
    flat = edit.before(node, "Transpose", [by_tap], perm=[1, 0])
    edit.replace(node, "Reshape", [flat, edit.put(shape, np.int64)])


def _cut(edit: Edit, node: onnx.NodeProto, by_tap: str) -> None:
    """Put the rows of the taps that ``node``, a Slice of rows and columns, leaves in its place."""
    cut = [edit.constant(name) for name in node.input[1:]]
    size = edit.shape(node.input[0])[2:]
    if len(cut) != 4 or any(value is None for value in cut):
        return
    starts, stops, axes, steps = (value.tolist() for value in cut if value is not None)
    if axes != [2, 3] or min(steps) < 1:
        return
    rows, columns = (slice(*bounds) for bounds in zip(starts, stops, steps, strict=True))
    left = np.arange(math.prod(size)).reshape(size)[rows, columns].ravel()
    part = edit.before(node, "Gather", [by_tap, edit.put(left, np.int64)], axis=0)
    _taps_last(edit, node, part, edit.shape(node.output[0]))


PASS = Form("flip-kernels-by-taps", "kernels reversed and transposed with their taps first, by whole rows", turned_kernels)

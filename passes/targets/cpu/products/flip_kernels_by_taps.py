"""Kernels turned around for the error of the input, tap by tap: onnxruntime reverses rows and columns element by element, and
swaps channels in pieces of a kernel's few bytes. With its taps first a kernel is reversed, swapped and cut by whole rows.

before: kernel, ... = FlipKernel(w)
after:  rows = Reshape(Transpose(w))                    [taps, I * O], a row a tap
        kernel = Reshape(Transpose(Gather(rows, taps of the phase, backward)))    [I, O, *taps], once a phase
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.products.matrix import taps_first


def turned_kernels(edit: Edit) -> None:
    """The same kernels int8 [I, O, *taps], a phase each, of [O, I, KH, KW]."""
    for node in edit.calls("FlipKernel"):
        described = attributes(node)
        if described["group"] == 1 and math.prod(described["kernel_shape"]) > 1:
            _by_taps(edit, node, described)


def _by_taps(edit: Edit, node: onnx.NodeProto, described: dict[str, Any]) -> None:
    o, i, *size = edit.shape(node.input[0])
    taps = math.prod(size)
    by_tap = taps_first(edit, node, node.input[0], (o, i, taps))
    by_tap = edit.before(node, "Transpose", [by_tap], perm=[0, 2, 1])
    by_tap = edit.before(node, "Reshape", [by_tap, edit.put([taps, i * o], np.int64)])
    flipped = np.arange(taps)[::-1].reshape(size)
    for output, phase in zip(node.output, np.reshape(described["phases"], (-1, 2, 3)), strict=True):
        rows, columns = (slice(first, first + step * (count - 1) + 1, step) for first, step, count in phase)
        part = edit.before(node, "Gather", [by_tap, edit.put(flipped[rows, columns].ravel(), np.int64)], axis=0)
        last = edit.before(node, "Transpose", [part], perm=[1, 0])
        edit.before(node, "Reshape", [last, edit.put(edit.shape(output), np.int64)], output)
    edit.drop(node)


PASS = Form("flip-kernels-by-taps", "kernels reversed and transposed with their taps first, by whole rows", turned_kernels)

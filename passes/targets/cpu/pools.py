"""A maximum over windows, and which tap it is, from slices: 8-bit maxima and comparisons are vectorised.

The canonical step finds the tap again for the gradient, with logic on bool, which is not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import attributes
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

T = onnx.TensorProto


def pools_from_taps(edit: Edit) -> None:
    """The same maxima of uint8 maps, and the same choices."""
    for node in edit.nodes:
        if node.op_type == "MaxPool" and edit.dtype(node.output[0]) == T.UINT8 and (edit.bound(node.input[0]) or 255) < 255:
            hits = _hits(edit, node)
            if len(hits) > 1:
                _replace(edit, node, hits)


def _hits(edit: Edit, pool: onnx.NodeProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """The comparisons of the pool with what each position of the window sees, and the slices that are that: all, or none."""
    rows, columns = attributes(pool)["kernel_shape"]
    readers = edit.readers.get(pool.output[0], [])
    seen_as = [pool.output[0], *(n.output[0] for n in readers if n.op_type == "Cast")]
    equals = [n for name in seen_as for n in edit.readers.get(name, []) if n.op_type == "Equal" and n.input[1] == name]
    hits = []
    for equal in equals:
        wide = edit.maker(equal.input[0], "Cast")
        seen = edit.maker(wide.input[0] if wide is not None else equal.input[0], "Slice")
        if seen is not None:
            hits.append((equal, seen))
    sources = {seen.input[0] for _, seen in hits}
    if len(hits) != rows * columns or len(sources) != 1:
        return []
    source = sources.pop()
    padded = edit.maker(source, "Pad")
    return hits if (padded.input[0] if padded is not None else source) == pool.input[0] else []


def _replace(edit: Edit, pool: onnx.NodeProto, hits: list[tuple[onnx.NodeProto, onnx.NodeProto]]) -> None:
    """Maximum and choice, tap by tap: a tap is chosen where it is greater than all before it, so that the first of equals stays.
    Beside padding, whose zeros must not be chosen, maps are greater by one meanwhile."""
    shape, image = edit.shape(pool.output[0]), pool.input[0]
    padded = edit.maker(hits[0][1].input[0], "Pad")
    one = edit.put(1, np.uint8)
    if padded is not None:
        image = edit.before(pool, "Add", [image, one])
        image = edit.declare(edit.before(pool, "Pad", [image, *padded.input[1:]]), T.UINT8, edit.shape(padded.output[0]))
    seen = [edit.declare(edit.before(pool, "Slice", [image, *slice_.input[1:]]), T.UINT8, shape) for _, slice_ in hits]
    greatest, chosen = seen[0], one
    for number, tap in enumerate(seen[1:], 2):
        greater = edit.before(pool, "Cast", [edit.before(pool, "Greater", [tap, greatest])], to=T.UINT8)
        numbered = edit.before(pool, "Mul", [greater, edit.put(number, np.uint8)])
        chosen = edit.declare(edit.before(pool, "Max", [chosen, numbered]), T.UINT8, shape)
        greatest = edit.before(pool, "Max", [greatest, tap])
    if padded is None:
        edit.replace(pool, "Identity", [greatest])
    else:
        edit.replace(pool, "Sub", [greatest, one])
    for number, (equal, _) in enumerate(hits, 1):
        edit.replace(_choice(edit, equal), "Equal", [chosen, edit.put(number, np.uint8)])


def _choice(edit: Edit, equal: onnx.NodeProto) -> onnx.NodeProto:
    """The node that says whether the tap that ``equal`` compares is the first of the greatest."""

    def narrowed(node: onnx.NodeProto, by: Callable[[str], bool]) -> onnx.NodeProto:
        """The And that reads ``node`` beside such another operand; where there is none, ``node``."""
        ands = [n for n in edit.readers.get(node.output[0], []) if n.op_type == "And"]
        return next((n for n in ands if any(by(name) for name in n.input)), node)

    inside = narrowed(equal, lambda name: edit.constant(name) is not None)
    return narrowed(inside, lambda name: edit.maker(name, "Not") is not None)


PASS = Form(
    "max-pool-from-taps",
    "max pooling as the maximum of the slices that its gradient compares",
    pools_from_taps,
    needs=(Kernel.UNSIGNED,),
)

"""A maximum over windows from the slices that its gradient compares with it: 8-bit maxima and comparisons are vectorised."""

from __future__ import annotations

import onnx

from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.nodes import attributes

T = onnx.TensorProto


def pools_from_taps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same maxima of uint8 maps. Where a window reaches the padding it sees zeros, which no maximum of uint8 is below."""
    edit = Edit(model, "pools-from-taps")
    for node in model.graph.node:
        if node.op_type == "MaxPool" and edit.dtype(node.output[0]) == T.UINT8:
            hits = _hits(edit, node)
            if hits:
                _replace(edit, node, hits)
    return edit.done()


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
    """The slices stand before the pool, in place of those of the gradient, which `tidy` then finds to be the same."""
    image = hits[0][1].input[0]
    padded = edit.maker(image, "Pad")
    if padded is not None:
        image = edit.declare(edit.before(pool, "Pad", list(padded.input)), T.UINT8, edit.shape(padded.output[0]))
    shape = edit.shape(pool.output[0])
    seen = [edit.declare(edit.before(pool, "Slice", [image, *slice_.input[1:]]), T.UINT8, shape) for _, slice_ in hits]
    edit.replace(pool, "Max", seen)
    for (equal, _), mine in zip(hits, seen, strict=True):
        edit.replace(equal, "Equal", [mine, pool.output[0]])

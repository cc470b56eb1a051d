"""Slices that run backwards become Gathers, for emx-onnx-cgen, which knows positive steps alone."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.onnxir.nodes import copied
from wageubn_onnx.onnxir.view import View
from wageubn_onnx.passbase import Pass


def reversed_slices_to_gathers(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph: each Slice whose steps are all -1, over whole axes, is one Gather an axis, with descending indices.

    ``model`` is inlined and has shapes, and stays as it is. Raises WageubnError for any other negative step.
    """
    view, result = View(model.graph), copied(model)
    graph = result.graph
    del graph.node[:]
    for node in model.graph.node:
        steps = view.constant(node.input[4]) if node.op_type == "Slice" and len(node.input) > 4 else None
        if steps is None or (steps > 0).all():
            graph.node.append(node)
            continue
        shape, axes = view.shape(node.output[0]), view.constant(node.input[3])
        if axes is None or view.shape(node.input[0]) != shape or (steps != -1).any():
            raise WageubnError(f"node {node.name!r} (Slice): runs backwards over a part of an axis; cut it first")
        name = node.input[0]
        for axis in map(int, axes):
            last = axis == axes[-1]
            indices, made = f"{node.name}/indices{axis}", node.output[0] if last else f"{node.output[0]}/axis{axis}"
            graph.initializer.append(numpy_helper.from_array(np.arange(shape[axis], dtype=np.int64)[::-1].copy(), indices))
            gather = onnx.helper.make_node("Gather", [name, indices], [made], f"{node.name}/axis{axis}", axis=axis)
            gather.metadata_props.extend(node.metadata_props)
            graph.node.append(gather)
            if not last:
                kind = next(v for v in graph.value_info if v.name == node.output[0])
                graph.value_info.add().CopyFrom(kind)
                graph.value_info[-1].name = made
            name = made
    return result


PASS = Pass("reversed-slices-to-gathers", "slices that run backwards as Gathers", reversed_slices_to_gathers)

"""A tensor's shape changed once: a Reshape reads what another one reads, and none gives back what there is, or is there twice."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from wageubn_onnx.passes.targets.nodes import copied, only_typed, shapes, without_nodes
from wageubn_onnx.passes.targets.tidy import captured

MOST = 8  # axes
Shape = tuple[int | str, ...]


def single_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers; of an inlined model. What nothing reads any more is left."""
    changed, graph = without_nodes(model), model.graph
    known: dict[str, Shape] = {name: tuple(shape) for name, shape in shapes(model).items()} | {
        t.name: tuple(t.dims) for t in graph.initializer
    }
    vectors = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64 and len(t.dims) == 1 and t.dims[0] <= MOST]
    targets: dict[str, tuple[int, ...]] = {t.name: tuple(numpy_helper.to_array(t).tolist()) for t in vectors}
    keeps = {v.name for v in graph.output} | captured(graph.node)  # the names that something else wants
    renamed: dict[str, str] = {}
    sources: dict[str, str] = {}
    made: dict[tuple[str, Shape], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        inputs = [renamed.get(name, name) for name in node.input]
        output = node.output[0]
        target = targets.get(node.input[1]) if node.op_type == "Reshape" else None
        shape: Shape | None = known.get(output) if target is None or min(target, default=1) < 1 else target
        if target is not None and shape is not None:
            inputs[0] = source = sources.get(inputs[0], inputs[0])
            known[output] = shape
            same = source if known.get(source) == shape else made.setdefault((source, shape), output)
            if same != output and output not in keeps:
                renamed[output] = same
                continue
            sources[output] = source
        if inputs != list(node.input):
            node = copied(node)
            node.input[:] = inputs
        nodes.append(node)
    changed.graph.node.extend(nodes)
    only_typed(changed.graph)
    return changed

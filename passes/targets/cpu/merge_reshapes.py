"""A tensor's shape changed once: a Reshape reads what another one reads, and none gives back what there is, or is there twice.

Reshape(Reshape(x, a), b)  ->  Reshape(x, b), or x where it has shape b
"""

from __future__ import annotations

import onnx

from wageubn_onnx.onnxir.nodes import copied, only_typed, without_nodes
from wageubn_onnx.onnxir.view import View, captured
from wageubn_onnx.passes.targets.cpu.form import Form

Shape = tuple[int | str, ...]


def merge_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers; of an inlined model. What nothing reads any more is left."""
    changed, graph, view = without_nodes(model), model.graph, View(model.graph)
    keeps = {v.name for v in graph.output} | captured(graph.node)  # the names that something else wants
    renamed: dict[str, str] = {}
    sources: dict[str, str] = {}
    made: dict[tuple[str, Shape], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        inputs = [renamed.get(name, name) for name in node.input]
        output = node.output[0]
        shape = _shape(view, node) if node.op_type == "Reshape" else None
        if shape is not None:
            inputs[0] = source = sources.get(inputs[0], inputs[0])
            is_same = view.is_typed(source) and tuple(view.sizes(source)) == shape
            same = source if is_same else made.setdefault((source, shape), output)
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


def _shape(view: View, reshape: onnx.NodeProto) -> Shape | None:
    """What ``reshape`` gives; None where no constant says it, or nothing does."""
    target, output = view.constant(reshape.input[1]), reshape.output[0]
    if target is None or view.is_typed(output):
        return None if target is None else tuple(view.sizes(output))
    return tuple(target.tolist()) if target.min(initial=1) > 0 else None


PASS = Form("merge-reshapes", "a Reshape of a Reshape as one, none that changes nothing, none twice", merge_reshapes)

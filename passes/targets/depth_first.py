"""Nodes in the order in which the outputs need them, so that few tensors are alive at a time."""

from __future__ import annotations

import onnx

from wageubn_onnx.onnxir.nodes import copied
from wageubn_onnx.passbase import Pass


def depth_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, each node right before its first reader where it can be: post-order from the outputs, first to last.

    Nodes that no output needs are left out. ``model`` stays as it is.
    """
    makers = {name: index for index, node in enumerate(model.graph.node) for name in node.output if name}
    order, done = list[int](), set[int]()
    for output in model.graph.output:
        waiting = [makers[output.name]] if output.name in makers else []
        while waiting:
            index = waiting[-1]
            needed = (makers[name] for name in model.graph.node[index].input if name in makers)
            first = next((maker for maker in needed if maker not in done), None)
            if index not in done and first is not None:
                waiting.append(first)
                continue
            waiting.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    result = copied(model)
    del result.graph.node[:]
    result.graph.node.extend(model.graph.node[index] for index in order)
    return result


PASS = Pass("depth-first", "nodes in the order in which the outputs need them, so that few tensors live at a time", depth_first)

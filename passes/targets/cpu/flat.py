"""Elementwise work on flat tensors: weights of 1x1 kernels, [O, I, 1, 1], and numbers of channels, [1, C, 1, 1].

onnxruntime pairs operands span by span, and a span ends where the last sizes are 1: beside a scalar each element is then a span
of its own, at several times the time.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import MutableMapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.passes.targets.nodes import ELEMENTWISE, copied, only_typed, without_nodes
from wageubn_onnx.passes.targets.tidy import BRANCHING, captured

LEAST = 128  # elements that are worth a Reshape
Shape = tuple[int, ...]


def flat_tensors(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers in the same order; of an inlined model that states the type of every tensor."""
    changed = without_nodes(model)
    targets: dict[Shape, str] = {}
    _flatten(changed.graph, model.graph.node, {}, targets)
    for shape, name in targets.items():
        changed.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return changed


def _flatten(
    graph: onnx.GraphProto, before: Sequence[onnx.NodeProto], outer: MutableMapping[str, Shape], targets: dict[Shape, str]
) -> None:
    """Fill ``graph`` with the nodes ``before``, rewritten. outer: shapes around it. targets: names of the shapes asked for."""
    shapes = ChainMap(_shapes(graph), outer) if outer else _shapes(graph)
    suffix = f"/flat/{graph.name}" if outer else "/flat"
    long = {node.output[0] for node in before if _is_long(node, shapes)}
    keeps = {v.name for v in graph.output} | captured(before)  # the names that something else wants
    keeps.update(name for node in before if node.output[0] not in long for name in node.input)
    nodes: list[onnx.NodeProto] = []
    flat: dict[str, str] = {}

    def reshape(name: str, to: Shape, made: str) -> None:
        target = targets.setdefault(to, "flat-tensors/" + "x".join(map(str, to)))
        nodes.append(helper.make_node("Reshape", [name, target], [made], f"{made}/reshape"))

    for original in before:
        output = original.output[0]
        if output not in long and original.op_type not in BRANCHING:
            nodes.append(original)
            continue
        node = copied(original)
        for branch in (a.g for a in node.attribute if a.HasField("g")):
            _flatten(branch, [copied(inner) for inner in branch.node], shapes, targets)
        if output not in long:
            nodes.append(node)
            continue
        shape = shapes[output]
        for i, name in enumerate(node.input):
            if name and shapes[name] == shape:
                if name not in flat:
                    flat[name] = name + suffix
                    reshape(name, (math.prod(shape),), flat[name])
                node.input[i] = flat[name]
        node.output[0] = flat[output] = output + suffix
        nodes.append(node)
        if output in keeps:
            reshape(flat[output], shape, output)
    del graph.node[:]
    graph.node.extend(nodes)
    only_typed(graph)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for v in (*graph.input, *graph.output, *graph.value_info):
        if v.type.tensor_type.HasField("shape"):
            found[v.name] = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
    return found


def _is_long(node: onnx.NodeProto, shapes: MutableMapping[str, Shape]) -> bool:
    """Whether ``node`` works element by element on a tensor whose last size is 1, beside others like it and scalars alone."""
    shape = shapes.get(node.output[0], ())
    if node.op_type not in ELEMENTWISE or len(shape) < 2 or shape[-1] != 1 or math.prod(shape) < LEAST:
        return False
    return all(shapes.get(name) in ((), shape) for name in node.input if name)

"""Elementwise work on flat tensors: weights of 1x1 kernels, [O, I, 1, 1], and numbers of channels, [1, C, 1, 1].

    Mul(x [O, I, 1, 1], scalar)  ->  Reshape(Mul(Reshape(x, [O * I]), scalar), [O, I, 1, 1])

onnxruntime pairs operands span by span, and a span ends where the last sizes are 1: beside a scalar each element is then a span
of its own, at several times the time.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.onnxir.nodes import ELEMENTWISE, copied, only_typed, without_nodes
from wageubn_onnx.onnxir.view import View, branches, captured
from wageubn_onnx.passes.targets.cpu.form import Form

LEAST = 128  # elements that are worth a Reshape
Shape = tuple[int, ...]


def flatten_elementwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers in the same order; of an inlined model that states the type of every tensor."""
    changed = without_nodes(model)
    targets: dict[Shape, str] = {}
    _flatten(changed.graph, View(model.graph), targets)
    for shape, name in targets.items():
        changed.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return changed


def _flatten(graph: onnx.GraphProto, view: View, targets: dict[Shape, str]) -> None:
    """Fill ``graph`` with the nodes of ``view``, rewritten. targets: names of the shapes asked for."""
    before = view.graph.node
    suffix = f"/flat/{graph.name}" if view.around else "/flat"
    long = {node.output[0] for node in before if _is_long(node, view)}
    keeps = {v.name for v in graph.output} | captured(before)  # the names that something else wants
    keeps.update(name for node in before if node.output[0] not in long for name in node.input)
    nodes: list[onnx.NodeProto] = []
    flat: dict[str, str] = {}

    def reshape(name: str, to: Shape, made: str) -> None:
        target = targets.setdefault(to, "flatten-elementwise/" + "x".join(map(str, to)))
        nodes.append(helper.make_node("Reshape", [name, target], [made], f"{made}/reshape"))

    for original in before:
        output = original.output[0]
        if output not in long and not branches(original):
            nodes.append(original)
            continue
        node = copied(original)
        for branch in branches(node):
            _flatten(branch, View(copied(branch), view), targets)
        if output not in long:
            nodes.append(node)
            continue
        shape = view.shape(output)
        for i, name in enumerate(node.input):
            if name and view.shape(name) == shape:
                if name not in flat:
                    flat[name] = name + suffix
                    reshape(name, (math.prod(shape),), flat[name])
                node.input[i] = flat[name]
        node.output[0] = flat[output] = output + suffix
        nodes.append(node)
        if output in keeps:
            reshape(flat[output], tuple(shape), output)
    del graph.node[:]
    graph.node.extend(nodes)
    only_typed(graph)


def _is_long(node: onnx.NodeProto, view: View) -> bool:
    """Whether ``node`` works element by element on a tensor whose last size is 1, beside others like it and scalars alone."""
    shape = view.shape(node.output[0])
    if node.op_type not in ELEMENTWISE or len(shape) < 2 or shape[-1] != 1 or math.prod(shape) < LEAST:
        return False
    return all(view.is_typed(name) and view.shape(name) in ([], shape) for name in node.input if name)


PASS = Form("flatten-elementwise", "elementwise work on tensors whose last size is 1 with one axis", flatten_elementwise)

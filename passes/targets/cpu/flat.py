"""Elementwise work on flat tensors: weights of 1x1 kernels, [O, I, 1, 1], and numbers of channels, [1, C, 1, 1].

onnxruntime pairs operands span by span, and a span ends where the last sizes are 1: beside a scalar each element is then a span
of its own, at several times the time.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.passes.targets.tidy import captured

ELEMENTWISE = (
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Cast", "Clip", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "Sign", "Sub", "Where",
)  # fmt: skip
LEAST = 128  # elements that are worth a Reshape
Shape = tuple[int, ...]


def flat_tensors(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers in the same order; of an inlined model that states the type of every tensor."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    targets: dict[Shape, str] = {}
    _flatten(changed.graph, {}, targets)
    for shape, name in targets.items():
        changed.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return changed


def _flatten(graph: onnx.GraphProto, outer: dict[str, Shape], targets: dict[Shape, str]) -> None:
    """Rewrite ``graph`` and its subgraphs. outer: shapes around it. targets: the names of the shapes that a Reshape asks for."""
    shapes = outer | _shapes(graph)
    given = {v.name for v in graph.output} | captured(graph.node)  # these keep their names
    suffix = f"/flat/{graph.name}" if outer else "/flat"
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    long = {id(node) for node in graph.node if _is_long(node, shapes)}
    keeps = {name for name, users in readers.items() if any(id(user) not in long for user in users)} | given
    nodes: list[onnx.NodeProto] = []
    flat: dict[str, str] = {}

    def reshape(name: str, to: Shape, made: str) -> None:
        target = targets.setdefault(to, "flat-tensors/" + "x".join(map(str, to)))
        nodes.append(helper.make_node("Reshape", [name, target], [made], f"{made}/reshape"))

    for node in graph.node:
        for branch in (a.g for a in node.attribute if a.HasField("g")):
            _flatten(branch, shapes, targets)
        if id(node) not in long:
            nodes.append(node)
            continue
        output = node.output[0]
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
    made = {name for node in nodes for name in node.output}
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    types = [v for v in graph.value_info if v.name in made]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.value_info.extend(types)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for v in (*graph.input, *graph.output, *graph.value_info):
        if v.type.tensor_type.HasField("shape"):
            found[v.name] = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
    return found


def _is_long(node: onnx.NodeProto, shapes: dict[str, Shape]) -> bool:
    """Whether ``node`` works element by element on a tensor whose last size is 1, beside others like it and scalars alone."""
    shape = shapes.get(node.output[0], ())
    if node.op_type not in ELEMENTWISE or len(shape) < 2 or shape[-1] != 1 or math.prod(shape) < LEAST:
        return False
    return all(shapes.get(name) in ((), shape) for name in node.input if name)

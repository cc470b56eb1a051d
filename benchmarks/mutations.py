"""Copies of a model with one thing changed, for the diff's benchmark and its tests; each takes the model and a random generator.

The model has the flat graph of a network: no graphs inside nodes.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import numpy_helper


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """An equal model of its own."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def renamed(model: onnx.ModelProto, draw: random.Random, ends: bool = False) -> onnx.ModelProto:
    """Every node and tensor has another name; with ``ends`` the inputs and outputs, too."""
    made = copy(model)
    graph = made.graph
    kept = set() if ends else {v.name for v in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""} | {name: name for name in kept}

    def new(name: str) -> str:
        if name not in names:
            names[name] = f"t{len(names)}_{draw.randrange(10**6)}"
        return names[name]

    for node in graph.node:
        node.name = f"n{draw.randrange(10**9)}_{len(names)}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for named in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        named.name = new(named.name)
    return made


def reordered(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """Nodes in another order, makers still before readers; initializers and declarations in any."""
    made = copy(model)
    graph = made.graph
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waits = [{made_by[name] for name in node.input if name in made_by} for node in graph.node]
    readers: list[list[int]] = [[] for _ in graph.node]
    for i, makers in enumerate(waits):
        for maker in makers:
            readers[maker].append(i)
    ready = [i for i, makers in enumerate(waits) if not makers]
    order = []
    while ready:
        i = ready.pop(draw.randrange(len(ready)))
        order.append(i)
        for reader in readers[i]:
            waits[reader].discard(i)
            if not waits[reader]:
                ready.append(reader)
    nodes = [copied(graph.node[i]) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
    for entries in (graph.initializer, graph.value_info):
        shuffled = list(entries)
        draw.shuffle(shuffled)
        del entries[:]
        entries.extend(shuffled)
    return made


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """An equal node of its own."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def with_one_weight(model: onnx.ModelProto, draw: random.Random) -> tuple[onnx.ModelProto, str, float]:
    """One element of one float initializer is greater by about 1; returns its name and by how much, too."""
    made = copy(model)
    tensor = draw.choice([t for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 1])
    values = numpy_helper.to_array(tensor).copy()
    place = draw.randrange(values.size)
    before = float(values.flat[place])
    values.flat[place] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return made, tensor.name, abs(float(values.flat[place]) - before)


def with_one_attribute(model: onnx.ModelProto, draw: random.Random) -> tuple[onnx.ModelProto, str, str]:
    """One BatchNormalization has another epsilon; returns the node's name and the attribute's, too."""
    made = copy(model)
    node = draw.choice([n for n in made.graph.node if n.op_type == "BatchNormalization"])
    kept = [a for a in node.attribute if a.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 0.01)])
    return made, node.name, "epsilon"


def with_one_node(model: onnx.ModelProto, draw: random.Random) -> tuple[onnx.ModelProto, str]:
    """One more node between another and whoever reads its result; returns its name, too."""
    made = copy(model)
    nodes = list(made.graph.node)
    outputs = {v.name for v in made.graph.output}
    place = draw.choice([i for i, n in enumerate(nodes) if n.op_type == "Relu" and n.output[0] not in outputs])
    name = nodes[place].output[0]
    for node in nodes[place + 1 :]:
        node.input[:] = [f"{name}.more" if i == name else i for i in node.input]
    more = onnx.helper.make_node("Neg", [name], [f"{name}.more"], f"{name}.more")
    del made.graph.node[:]
    made.graph.node.extend([*nodes[: place + 1], more, *nodes[place + 1 :]])
    return made, more.name

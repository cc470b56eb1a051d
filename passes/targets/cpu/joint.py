"""What every layer does to its numbers of channels - running statistics, gradients, momenta and updates of gamma and beta - done
for all layers at once, on their numbers side by side.

A node on 64 numbers costs what one on 6,400 does. Only nodes that lead to new states and to nothing else are joined: these can
wait until the end of the step, where what two of them have in common, and how far they are from what is not joined, says that
neither waits for the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.passes.targets.cpu.edit import Edit
from wageubn_onnx.passes.targets.cpu.flat import ELEMENTWISE

SMALL = 8192  # elements: of more, the time goes by elements
CALLS = ("DirectQuantize", "DirectQuantizeWide", "GridQuantize", "GridQuantizeWide")  # element by element, too
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Joint:
    """Tensors side by side: a tensor [sum of sizes], and the names and sizes of its parts."""

    name: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]


def joint_updates(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same states."""
    edit = Edit(model, "joint-updates")
    late = _late(edit)
    groups: dict[Key, list[onnx.NodeProto]] = {}
    depth: dict[str, int] = {}
    for node in edit.nodes:
        if node.output[0] in late:
            level = 1 + max((depth.get(name, 0) for name in node.input), default=0)
            depth |= dict.fromkeys(node.output, level)
            groups.setdefault((level, *_alike(edit, node)), []).append(node)
    join = _Join(edit)
    for _, members in sorted(groups.items(), key=lambda item: item[0][0]):
        join.put(members)
    kept = [node for node in edit.nodes if node.output[0] not in late]
    outputs = {v.name for v in edit.model.graph.output}
    for name in outputs & join.places.keys():
        join.alone(name)
    edit.nodes = kept + join.nodes
    return edit.done()


def _late(edit: Edit) -> set[str]:
    """The first outputs of the nodes on few numbers that lead to graph outputs alone."""
    late: set[str] = set()
    for node in reversed(edit.nodes):
        is_known = node.op_type in (ELEMENTWISE if node.domain == "" else CALLS if node.domain == DOMAIN else ())
        if not is_known and node.op_type != "Reshape":
            continue
        sizes = [math.prod(edit.shape(name)) for name in (*node.input[: 1 if node.op_type == "Reshape" else None], *node.output)]
        readers = [reader.output[0] for name in node.output for reader in edit.readers.get(name, ())]
        if max(sizes) <= SMALL and min(sizes) > 0 and all(name in late for name in readers):
            late.add(node.output[0])
    return late


def _alike(edit: Edit, node: onnx.NodeProto) -> Key:
    """What nodes that can be one have in common: all but the names and sizes of their operands."""
    size = math.prod(edit.shape(node.output[0]))
    passed = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    if size == 1:  # these stay by themselves
        return (node.output[0],)
    if node.op_type == "Reshape":
        return node.op_type, edit.dtype(node.input[0])
    operands = [(edit.dtype(name), math.prod(edit.shape(name)) == size) for name in node.input]
    return node.op_type, node.domain, *passed, *operands


class _Join:
    """Nodes in the making; where each tensor lies."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.nodes: list[onnx.NodeProto] = []
        self.places: dict[str, Joint] = {}
        self.made: dict[tuple[str, ...], str] = {}
        self.split: set[str] = set()

    def put(self, members: list[onnx.NodeProto]) -> None:
        """One node for ``members``, in their order."""
        first = members[0]
        if len(members) == 1:
            for name in first.input:
                self.alone(name)
            self.nodes.append(first)
            return
        names = tuple(node.output[0] for node in members)
        sizes = tuple(math.prod(self.edit.shape(name)) for name in names)
        if first.op_type == "Reshape":  # side by side they have one axis anyway
            source = self.joined([node.input[0] for node in members], sizes)
            self.places |= dict.fromkeys(names, Joint(source, names, sizes))
            return
        operands = []
        for i in range(len(first.input)):
            wanted = [node.input[i] for node in members]
            operands.append(wanted[0] if len(set(wanted)) == 1 and self.is_scalar(wanted[0]) else self.joined(wanted, sizes))
        output = f"{first.output[0]}/joint"
        node = helper.make_node(first.op_type, operands, [output], f"{first.name}/joint", domain=first.domain)
        node.attribute.extend(first.attribute)
        node.metadata_props.extend(first.metadata_props)
        self.nodes.append(node)
        self.edit.declare(output, self.edit.dtype(names[0]), [sum(sizes)])
        self.places |= dict.fromkeys(names, Joint(output, names, sizes))

    def is_scalar(self, name: str) -> bool:
        return name not in self.places and math.prod(self.edit.shape(name)) == 1

    def joined(self, names: list[str], sizes: tuple[int, ...]) -> str:
        """The tensors side by side; one of one element counts for all of its part."""
        place = self.places.get(names[0])
        if place is not None and place.parts == tuple(names) and place.sizes == sizes:
            return place.name
        key = (*names, *map(str, sizes))
        if key not in self.made:
            values = [value for value in map(self.edit.constant, names) if value is not None]
            if len(values) == len(names):
                spread = [np.broadcast_to(value.reshape(-1), size) for value, size in zip(values, sizes, strict=True)]
                self.made[key] = self.edit.put(np.concatenate(spread), spread[0].dtype)
            else:
                parts = [self.part(name, size) for name, size in zip(names, sizes, strict=True)]
                self.made[key] = self.node("Concat", parts, [sum(sizes)], self.edit.dtype(names[0]), axis=0)
        return self.made[key]

    def part(self, name: str, size: int) -> str:
        """A tensor with one axis of ``size``."""
        name = self.alone(name)
        shape = self.edit.shape(name)
        if shape == [size]:
            return name
        if math.prod(shape) == 1:
            return self.node("Expand", [name, self.edit.put([size], np.int64)], [size], self.edit.dtype(name))
        return self.node("Reshape", [name, self.edit.put([size], np.int64)], [size], self.edit.dtype(name))

    def alone(self, name: str) -> str:
        """``name``, split from those that it lies beside."""
        place = self.places.get(name)
        if place is None or name in self.split:
            return name
        flat = [part if len(self.edit.shape(part)) == 1 else f"{part}/split" for part in place.parts]
        self.split.update(place.parts)
        sizes = self.edit.put(list(place.sizes), np.int64)
        self.nodes.append(helper.make_node("Split", [place.name, sizes], flat, f"{place.name}/{name}/split", axis=0))
        for part, source, size in zip(place.parts, flat, place.sizes, strict=True):
            if source != part:
                dtype, shape = self.edit.dtype(part), self.edit.shape(part)
                self.edit.declare(source, dtype, [size])
                self.nodes.append(helper.make_node("Reshape", [source, self.edit.put(shape, np.int64)], [part], f"{part}/shape"))
        return name

    def node(self, kind: str, inputs: list[str], shape: list[int], dtype: int, **attrs: Any) -> str:
        output = f"joint-updates/{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attrs))
        return self.edit.declare(output, dtype, shape)

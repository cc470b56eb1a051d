"""What every layer does to few numbers - its channels' statistics, gamma and beta, its exponents - done for all layers at
once, on their numbers side by side.

    y1 = x1 * a1; y2 = x2 * a2  ->  y1, y2 = Split(Concat(x1, x2) * Concat(a1, a2))

A node on 64 numbers costs what one on 6,400 does. Two kinds of nodes are joined: those that depend on nothing but what a step
is given (exponents, say, and the scales that follow from them), which can all be done at its start, and those that lead to new
states alone, which can wait for its end. Among each, the distance from what is not joined says that neither of two waits for the
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.edit import Edit
from wageubn_onnx.onnxir.nodes import ELEMENTWISE
from wageubn_onnx.onnxir.tidy import content
from wageubn_onnx.onnxir.view import captured
from wageubn_onnx.passes.targets.cpu.form import Form

SMALL = 2048  # elements: of more, the time goes by elements
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Joint:
    """Tensors side by side: a tensor [sum of sizes], and the names and sizes of its parts."""

    name: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]


def batch_small_tensors(edit: Edit) -> None:
    """The same states; what leads to them joined, and what depends on the given ones alone."""
    able = {node.output[0]: node for node in _able(edit)}
    early = _early(edit, able)
    late = _late(edit, {name: node for name, node in able.items() if name not in early})
    others = [node for node in edit.nodes if node.output[0] not in early and node.output[0] not in late]
    join = _Joiner(edit)
    for members in _groups(edit, early.values()):
        join.put(members)
    join.alone_all(name for node in others for name in (*node.input, *sorted(captured([node]))))
    start, join.nodes = join.nodes, []
    for members in _groups(edit, late.values()):
        join.put(members)
    join.alone_all(value.name for value in edit.model.graph.output)
    edit.arrange([*start, *others, *join.nodes])


def _able(edit: Edit) -> list[onnx.NodeProto]:
    """The nodes that work element by element, on few numbers."""
    calls = _elementwise({f.name: f for f in edit.model.functions if f.domain == DOMAIN})
    found = []
    for node in edit.nodes:
        looks_up = node.op_type == "Gather" and not node.attribute and len(edit.shape(node.input[0])) == 1
        if looks_up and edit.constant(node.input[0]) is not None:
            operands = list(node.input[1:])
        elif node.op_type == "Reshape":
            operands = list(node.input[:1])
        elif node.op_type in (ELEMENTWISE if node.domain == "" else calls if node.domain == DOMAIN else ()):
            operands = list(node.input)
        else:
            continue
        if not operands or not all(map(edit.is_typed, (*operands, *node.output))):
            continue
        size = math.prod(edit.shape(node.output[0]))
        if len(node.output) == 1 and 0 < size <= SMALL and all(math.prod(edit.shape(name)) in (1, size) for name in operands):
            found.append(node)
    return found


def _elementwise(functions: dict[str, onnx.FunctionProto]) -> set[str]:
    """Those whose bodies work element by element; beside a list of constants, looked up, for each."""
    found: set[str] = set()

    def is_one(node: onnx.NodeProto) -> bool:
        if node.domain == DOMAIN:
            return node.op_type in found
        if node.op_type == "Constant":
            return True
        return node.op_type in (*ELEMENTWISE, "Gather")

    known = -1
    while len(found) > known:  # a function may call those that are found later
        known = len(found)
        for name, function in functions.items():
            lists = {node.output[0] for node in function.node if node.op_type == "Constant" and _is_list(node)}
            looked_up = {node.input[0] for node in function.node if node.op_type == "Gather"}
            read = {name for node in function.node for name in node.input[node.op_type == "Gather" :]}
            if all(map(is_one, function.node)) and looked_up <= lists and not read & lists:
                found.add(name)
    return found


def _is_list(constant: onnx.NodeProto) -> bool:
    value = constant.attribute[0]
    return value.name in ("value_ints", "value_floats") or value.HasField("t") and len(value.t.dims) > 0


def _early(edit: Edit, able: dict[str, onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """The nodes, by their outputs, that depend on inputs of the graph alone."""
    early: dict[str, onnx.NodeProto] = {}
    for node in edit.nodes:
        if node.output[0] in able and all(name in early or edit.maker(name) is None for name in node.input):
            early[node.output[0]] = node
    return early


def _late(edit: Edit, able: dict[str, onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """The nodes, by their outputs, that lead to outputs of the graph alone."""
    late: dict[str, onnx.NodeProto] = {}
    inside = captured(edit.nodes)
    for node in reversed(edit.nodes):
        output = node.output[0]
        if output in able and output not in inside and all(reader.output[0] in late for reader in edit.readers.get(output, ())):
            late[output] = node
    return dict(reversed(late.items()))


def _groups(edit: Edit, nodes: Iterable[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """Nodes that can be one, the earlier first."""
    depth: dict[str, int] = {}
    groups: dict[Key, list[onnx.NodeProto]] = {}
    for node in nodes:
        level = depth[node.output[0]] = 1 + max((depth.get(name, 0) for name in node.input), default=0)
        groups.setdefault((level, *_alike(edit, node)), []).append(node)
    return [members for _, members in sorted(groups.items(), key=lambda item: item[0][0])]


def _alike(edit: Edit, node: onnx.NodeProto) -> Key:
    """What nodes that can be one have in common: all but the names and sizes of their operands."""
    size = math.prod(edit.shape(node.output[0]))
    passed = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    if node.op_type == "Reshape":
        return node.op_type, edit.dtype(node.input[0])
    fixed = _fixed(node)
    operands = [
        _content(edit, name) if name in fixed else (edit.dtype(name), math.prod(edit.shape(name)) == size) for name in node.input
    ]
    return node.op_type, node.domain, *passed, *operands


def _fixed(node: onnx.NodeProto) -> list[str]:
    """The operands that count for all elements."""
    return list(node.input[:1] if node.op_type == "Gather" else node.input[1:] if node.op_type == "Clip" else ())


def _content(edit: Edit, name: str) -> Key:
    """What tells constants from each other; another tensor's name."""
    value = edit.constant(name)
    return (name,) if value is None else content(value)


class _Joiner:
    """Nodes in the making; where each tensor lies."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.nodes: list[onnx.NodeProto] = []
        self.places: dict[str, Joint] = {}
        self.made: dict[tuple[str, ...], str] = {}
        self.parts: dict[Joint, dict[str, str]] = {}
        self.alone: set[str] = set()

    def put(self, members: list[onnx.NodeProto]) -> None:
        """One node for ``members``, in their order."""
        first = members[0]
        if len(members) == 1:
            self.alone_all(first.input)
            self.nodes.append(first)
            return
        names = tuple(node.output[0] for node in members)
        sizes = tuple(math.prod(self.edit.shape(name)) for name in names)
        if first.op_type == "Reshape":  # side by side they have one axis anyway
            source = self.joined([node.input[0] for node in members], sizes)
            self.places |= dict.fromkeys(names, Joint(source, names, sizes))
            return
        wanted = [[node.input[i] for node in members] for i in range(len(first.input))]
        shared = [names[0] in _fixed(first) or self.is_scalar(names) for names in wanted]
        shared[-1 if first.op_type == "Gather" else 0] &= not all(shared)  # or the result would be of one part
        operands = [self.of_all(same[0]) if once else self.joined(same, sizes) for once, same in zip(shared, wanted, strict=True)]
        output = f"{first.output[0]}/joint"
        node = helper.make_node(first.op_type, operands, [output], f"{first.name}/joint", domain=first.domain)
        node.attribute.extend(first.attribute)
        node.metadata_props.extend(first.metadata_props)
        self.nodes.append(node)
        self.edit.declare(output, self.edit.dtype(names[0]), [sum(sizes)])
        self.places |= dict.fromkeys(names, Joint(output, names, sizes))

    def is_scalar(self, names: list[str]) -> bool:
        """Whether these are one and the same number, of all parts."""
        is_one = names[0] not in self.places and math.prod(self.edit.shape(names[0])) == 1
        return is_one and len({_content(self.edit, name) for name in names}) == 1

    def of_all(self, name: str) -> str:
        """What counts for all parts, of one axis at most: of more, it would give the result as many."""
        return self.flat(name) if len(self.edit.shape(name)) > 1 else name

    def joined(self, names: list[str], sizes: tuple[int, ...]) -> str:
        """The tensors side by side; one of one element counts for all of its part."""
        key = (*names, *map(str, sizes))
        if key not in self.made:
            values = [value for value in map(self.edit.constant, names) if value is not None]
            if len(values) == len(names):
                spread = [np.broadcast_to(value.reshape(-1), size) for value, size in zip(values, sizes, strict=True)]
                self.made[key] = self.edit.put(np.concatenate(spread), spread[0].dtype)
            else:
                self.made[key] = self.beside(names, sizes)
        return self.made[key]

    def beside(self, names: list[str], sizes: tuple[int, ...]) -> str:
        """The same, of tensors of which some are made by nodes."""
        parts = tuple(dict.fromkeys(names))
        own = [math.prod(self.edit.shape(name)) for name in parts]
        place = self.places.get(parts[0])
        if place is not None and place.parts == parts:
            whole = place.name
        else:
            flat = [self.split(self.places[name])[name] if name in self.places else self.flat(name) for name in parts]
            whole = flat[0] if len(flat) == 1 else self.node("Concat", flat, [sum(own)], self.edit.dtype(names[0]), axis=0)
        starts = dict(zip(parts, np.cumsum([0, *own[:-1]]), strict=True))
        spreads = [own[parts.index(name)] != size for name, size in zip(names, sizes, strict=True)]
        if parts == tuple(names) and not any(spreads):
            return whole
        index = [
            np.full(size, starts[name]) if spread else starts[name] + np.arange(size)
            for name, size, spread in zip(names, sizes, spreads, strict=True)
        ]
        return self.node(
            "Gather", [whole, self.edit.put(np.concatenate(index), np.int64)], [sum(sizes)], self.edit.dtype(names[0])
        )

    def flat(self, name: str) -> str:
        """A tensor with one axis."""
        shape = self.edit.shape(name)
        size = math.prod(shape)
        if shape != [size] and (name,) not in self.made:
            self.made[name,] = self.node("Reshape", [name, self.edit.put([size], np.int64)], [size], self.edit.dtype(name))
        return self.made.get((name,), name)

    def alone_all(self, names: Iterable[str]) -> None:
        """Make each of these that lies beside others."""
        for name in names:
            if name in self.places and name not in self.alone:
                self.alone.add(name)
                part, shape = self.split(self.places[name])[name], self.edit.shape(name)
                if part != name:
                    self.node("Reshape", [part, self.edit.put(shape, np.int64)], shape, self.edit.dtype(name), name)

    def split(self, place: Joint) -> dict[str, str]:
        """The names of the parts, each with one axis: their own, where that is all they have."""
        if place not in self.parts:
            made_by = self.edit.made_by
            parts = {part: part if len(self.edit.shape(part)) == 1 else f"{part}/{made_by}/part" for part in place.parts}
            self.parts[place] = parts
            for (part, flat), size in zip(parts.items(), place.sizes, strict=True):
                if part != flat:
                    self.edit.declare(flat, self.edit.dtype(part), [size])
            self.alone.update(part for part, flat in parts.items() if part == flat)
            sizes, split = self.edit.put(place.sizes, np.int64), f"{place.name}/{made_by}/split"
            self.nodes.append(helper.make_node("Split", [place.name, sizes], list(parts.values()), split, axis=0))
        return self.parts[place]

    def node(self, kind: str, inputs: Sequence[str], shape: list[int], dtype: int, output: str = "", **attrs: Any) -> str:
        made_by = self.edit.made_by
        name = f"{output}/{made_by}/alone" if output else f"{made_by}/{kind}.{len(self.edit.model.graph.value_info)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output or name], name, **attrs))
        return output or self.edit.declare(name, dtype, shape)


PASS = Form(
    "batch-small-tensors",
    "elementwise work on few numbers, the same in all layers, as one node on all of them",
    batch_small_tensors,
)

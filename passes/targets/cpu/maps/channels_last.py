"""Maps with their channels last, [N, H, W, C], as QLinearConv's kernel wants them: where they come second, it transposes every
map that it reads and makes, on one thread.

    QLinearConv(x, w)  ->  Transpose(com.microsoft.QLinearConv(Transpose(x), w, channels_last=1))    each Transpose once,
    and none between two nodes that both have a form for channels last

A map is what a QLinearConv reads or makes, and what follows from one element by element, by moving elements or by sums. Where
something else reads a map, or gives one with its channels second, a Transpose stands between them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.onnxir.nodes import ELEMENTWISE, MICROSOFT, attributes, copied, import_microsoft, without_nodes
from wageubn_onnx.onnxir.view import View, branches
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST

T = onnx.TensorProto
Shape = tuple[int, ...]
Constant = tuple[int, Shape | int]  # its dtype and its value


def channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers; of an inlined model that states the type of every tensor."""
    changed = without_nodes(model)
    constants: dict[Constant, str] = {}
    layout = _Layout(changed.graph, View(model.graph), constants)
    layout.rewrite()
    layout.close()
    for (dtype, value), name in constants.items():
        array = np.array(value, helper.tensor_dtype_to_np_dtype(dtype))
        changed.graph.initializer.append(numpy_helper.from_array(array, name))
    import_microsoft(changed)
    return changed


def to_last(shape: Sequence[int]) -> Shape:
    """A shape, or its axes, with the second one behind the others."""
    return (shape[0], *shape[2:], shape[1])


class _Layout:
    """A graph in the making: the main one, or a branch, which also reads what is around it. view: of what it was.

    Tensors go by the names and shapes that they have with their channels second. last: their names with the channels last.
    turned: those that are made so; of these, back: those that are there with their channels second, too. renamed: where one
    with its channels second has another name.
    """

    def __init__(self, graph: onnx.GraphProto, view: View, constants: dict[Constant, str], outer: _Layout | None = None) -> None:
        self.graph, self.view, self.constants = graph, view, constants
        self.last: MutableMapping[str, str] = ChainMap({}, outer.last) if outer else {}
        self.turned: set[str] = set(outer.turned) if outer else set()
        self.back: set[str] = set(outer.back) if outer else set()
        self.renamed: MutableMapping[str, str] = ChainMap({}, outer.renamed) if outer else {}
        self.first: dict[str, str] = {}  # maps whose channels come first, which a channel's extremes want
        self.suffix = f"/last/{graph.name}" if outer else "/last"
        self.nodes: list[onnx.NodeProto] = []

    # ---- what is there ----

    def shape(self, name: str) -> Shape:
        return tuple(self.view.shape(name))

    def type(self, name: str) -> tuple[int, Shape]:
        """dtype and shape."""
        return self.view.dtype(name), self.shape(name)

    def ints(self, name: str) -> list[int] | None:
        """The values of a constant, such as axes."""
        value = self.view.constant(name)
        return None if value is None else [int(v) for v in value]

    # ---- what is put in ----

    def constant(self, values: Sequence[int]) -> str:
        """One for all that want these values."""
        return self.constants.setdefault((T.INT64, tuple(values)), "channels-last/" + ".".join(map(str, values)))

    def scalar(self, value: int, dtype: int) -> str:
        """One for all that want this value."""
        return self.constants.setdefault((dtype, value), f"channels-last/{T.DataType.Name(dtype)}/{value}")

    def put(self, kind: str, inputs: Sequence[str], output: str, shape: Sequence[int], dtype: int, **attrs: Any) -> str:
        """A new node and the type of its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"{output}/{kind}", **attrs))
        self.graph.value_info.append(helper.make_tensor_value_info(output, dtype, list(shape)))
        return output

    def turn(self, node: onnx.NodeProto, inputs: Sequence[str], **changed: Any) -> bool:
        """``node`` on maps whose channels are last, giving such a one, with ``changed`` attributes; true, as what a rule says."""
        name = node.output[0]
        dtype, shape = self.type(name)
        new = _copy(node, inputs, [name + self.suffix])
        for attribute in [a for a in new.attribute if a.name in changed]:
            new.attribute.remove(attribute)
        new.attribute.extend(helper.make_attribute(key, value) for key, value in changed.items())
        self.nodes.append(new)
        self.turned.add(name)
        self.last[name] = new.output[0]
        self.graph.value_info.append(helper.make_tensor_value_info(new.output[0], dtype, to_last(shape)))
        return True

    def second(self, name: str) -> str:
        """The tensor with its channels second, made where there is none."""
        if name in self.turned and name not in self.back:
            dtype, shape = self.type(name)
            self.back.add(name)
            if self.view.around:  # the graph around it may make one of this name, too
                self.renamed[name] = f"{name}/second{self.suffix}"
            order = [0, len(shape) - 1, *range(1, len(shape) - 1)]
            return self._moved(self.last[name], self.renamed.get(name, name), shape, dtype, order)
        return self.renamed.get(name, name)

    def lasting(self, name: str) -> str:
        """The tensor with its channels last; as it is where it has one element."""
        dtype, shape = self.type(name)
        if math.prod(shape) == 1:
            return self.second(name)
        if name not in self.last:
            order = list(to_last(range(len(shape))))
            self.last[name] = self._moved(self.second(name), name + self.suffix, to_last(shape), dtype, order)
        return self.last[name]

    def _moved(self, source: str, output: str, shape: Shape, dtype: int, order: list[int]) -> str:
        if sum(size > 1 for size in shape[1:]) < 2:  # only sizes of 1 change places
            return self.put("Reshape", [source, self.constant(shape)], output, shape, dtype)
        return self.put("Transpose", [source], output, shape, dtype, perm=order)

    # ---- the rewriting ----

    def rewrite(self) -> None:
        """Put the nodes of ``view`` in their new forms, in their order."""
        for node in self.view.graph.node:
            rule = RULES.get(node.op_type)
            follows = node.op_type == "QLinearConv" or any(name in self.turned for name in node.input) or _turns_back(node)
            if rule is not None and follows and rule(self, node):
                continue
            inputs = [self.second(name) for name in node.input]
            kept = _copy(node, inputs, node.output) if branches(node) or inputs != list(node.input) else node
            if branches(node):
                self._branches(kept)
            self.nodes.append(kept)

    def _branches(self, node: onnx.NodeProto) -> None:
        """Where a branch of an If makes a map with its channels last, the other and the If do, too."""
        layouts = [_Layout(branch, View(copied(branch), self.view), self.constants, self) for branch in branches(node)]
        for layout in layouts:
            layout.rewrite()
        is_turned = any(layout.graph.output[0].name in layout.turned for layout in layouts)
        for layout in layouts:
            layout.close(is_turned)
        if is_turned:
            name = node.output[0]
            dtype, shape = self.type(name)
            node.output[0] = self.last[name] = name + self.suffix
            self.turned.add(name)
            self.graph.value_info.append(helper.make_tensor_value_info(node.output[0], dtype, to_last(shape)))

    def close(self, is_turned: bool = False) -> None:
        """Put the new nodes into the graph, with the types of what they make; its outputs turned, or all as they were."""
        for v in self.graph.output:
            dtype, shape = self.type(v.name)
            name = self.lasting(v.name) if is_turned else self.second(v.name)
            v.CopyFrom(helper.make_tensor_value_info(name, dtype, to_last(shape) if is_turned else shape))
        made = {name for node in self.nodes for name in node.output}
        types = {v.name: v for v in self.graph.value_info if v.name in made}
        for v in self.graph.output:
            types.pop(v.name, None)
        kept = list(types.values())
        infos = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self.graph.value_info.extend(infos)


def _copy(node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    copy = copied(node)
    copy.input[:], copy.output[:] = inputs, outputs
    return copy


# ---- rules: whether a node has a form for maps whose channels are last, which is then put in ----


def _axis(axis: int, rank: int) -> int:
    """Where an axis is when the channels are last."""
    return to_last(range(rank)).index(axis % rank)


def _convolution(layout: _Layout, node: onnx.NodeProto) -> bool:
    image, *others = node.input
    if len(layout.shape(image)) != 4:
        return False
    layout.turn(node, [layout.lasting(image), *(layout.second(name) for name in others)], channels_last=1)
    layout.nodes[-1].domain = MICROSOFT  # which alone knows of channels_last
    return True


def _elementwise(layout: _Layout, node: onnx.NodeProto) -> bool:
    rank = len(layout.shape(node.output[0]))
    shapes = [layout.shape(name) for name in node.input]
    if rank < 3 or any(len(shape) != rank and math.prod(shape) != 1 for shape in shapes):
        return False
    return layout.turn(node, [layout.lasting(name) for name in node.input])


def _along_axis(layout: _Layout, node: onnx.NodeProto) -> bool:
    rank = len(layout.shape(node.output[0]))
    return layout.turn(node, [layout.lasting(name) for name in node.input], axis=_axis(attributes(node)["axis"], rank))


def _reshape(layout: _Layout, node: onnx.NodeProto) -> bool:
    """Of rows and columns alone."""
    before, after = layout.shape(node.input[0]), layout.shape(node.output[0])
    if len(after) < 3 or before[:2] != after[:2]:
        return False
    return layout.turn(node, [layout.lasting(node.input[0]), layout.constant(to_last(after))])


def _unsqueeze(layout: _Layout, node: onnx.NodeProto) -> bool:
    rank = len(layout.shape(node.output[0]))
    axes = layout.ints(node.input[1])
    if axes is None or any(axis % rank < 2 for axis in axes):
        return False
    return layout.turn(node, [layout.lasting(node.input[0]), layout.constant([_axis(axis, rank) for axis in axes])])


def _slice(layout: _Layout, node: onnx.NodeProto) -> bool:
    axes = layout.ints(node.input[3]) if len(node.input) > 3 else None
    if axes is None:
        return False
    moved = layout.constant([_axis(axis, len(layout.shape(node.input[0]))) for axis in axes])
    return layout.turn(node, [layout.lasting(node.input[0]), *node.input[1:3], moved, *node.input[4:]])


def _pad(layout: _Layout, node: onnx.NodeProto) -> bool:
    pads, rank = layout.ints(node.input[1]), len(layout.shape(node.input[0]))
    if pads is None or len(node.input) > 3:
        return False
    moved = layout.constant([*to_last(pads[:rank]), *to_last(pads[rank:])])
    return layout.turn(node, [layout.lasting(node.input[0]), moved, *node.input[2:]])


def _turns_back(node: onnx.NodeProto) -> bool:
    """Whether ``node`` puts channels that are last second: then its input is the map wanted."""
    return node.op_type == "Transpose" and list(attributes(node)["perm"]) == [0, 3, 1, 2]


def _transpose(layout: _Layout, node: onnx.NodeProto) -> bool:
    """It gives what it gave, from another order; nothing at all where that is the order wanted."""
    name = node.input[0]
    if _turns_back(node) and (name not in layout.turned or name in layout.back):
        layout.last[node.output[0]] = layout.second(name)
        layout.turned.add(node.output[0])
        return True
    perm = [_axis(axis, len(layout.shape(name))) for axis in attributes(node)["perm"]]
    source = layout.lasting(name)
    if perm == sorted(perm) and node.output[0] not in {v.name for v in layout.graph.output}:
        layout.renamed[node.output[0]] = source
    else:
        dtype, shape = layout.type(node.output[0])
        layout.put("Transpose", [source], node.output[0], shape, dtype, perm=perm)
    return True


def _reduction(layout: _Layout, node: onnx.NodeProto) -> bool:
    shape = layout.shape(node.input[0])
    axes = layout.ints(node.input[1]) if len(node.input) > 1 else list(range(len(shape)))
    if axes is None:
        return False
    axes = [axis % len(shape) for axis in axes]
    source, name = layout.lasting(node.input[0]), node.output[0]
    operands = [source, layout.constant([_axis(axis, len(shape)) for axis in axes])][: len(node.input)]
    if len(axes) == len(shape):
        layout.nodes.append(_copy(node, operands, node.output))
        return True
    if 1 not in axes and node.op_type in ("ReduceMax", "ReduceMin") and len(axes) == len(shape) - 1:
        return _extreme(layout, node, source)
    if not attributes(node).get("keepdims", 1):
        left = [axis for axis in range(len(shape)) if axis not in axes]
        if 1 in left and left[-1] > 1:
            return False
        layout.nodes.append(_copy(node, operands, node.output))
        return True
    layout.turn(node, operands)
    if sum(size > 1 for size in layout.shape(name)[1:]) < 2:
        layout.second(name)
        layout.turned.discard(name)  # numbers of channels are no map
    return True


def _extreme(layout: _Layout, node: onnx.NodeProto, source: str) -> bool:
    """A channel's greatest or least. Of maps of 8 bits a pool takes the greatest of each column, beside all channels, and the
    least as the greatest of their complements; of numbers side by side the rest takes a third of the time."""
    dtype, shape = layout.type(node.input[0])
    rank, channels, name, kind = len(shape), shape[1], node.output[0], node.op_type
    pooled = rank == 4 and shape[2] > 1 and dtype in (T.INT8, T.UINT8)
    last = layout.scalar(-1 if dtype == T.INT8 else 255, dtype) if pooled and kind == "ReduceMin" else None
    if last:
        source = layout.put("Sub", [last, source], f"{name}/complement", to_last(shape), dtype)
    if pooled:
        window, shape, kind = [shape[2], 1], (shape[0], channels, 1, shape[3]), "ReduceMax"
        source = layout.put(
            "NhwcMaxPool", [source], f"{name}/columns", to_last(shape), dtype, domain=MICROSOFT, kernel_shape=window
        )
    if source not in layout.first:
        order = [rank - 1, *range(rank - 1)]
        first = (channels, shape[0], *shape[2:])
        layout.first[source] = layout.put("Transpose", [source], f"{source}/first", first, dtype, perm=order)
    inner = layout.constant(range(1, rank))
    found = layout.put(kind, [layout.first[source], inner], f"{name}/first", (channels,), dtype, keepdims=0)
    if last:
        found = layout.put("Sub", [last, found], f"{name}/least", (channels,), dtype)
    result = layout.shape(name)
    layout.put("Reshape", [found, layout.constant(result)], name, result, dtype)
    return True


RULES: dict[str, Callable[[_Layout, onnx.NodeProto], bool]] = {
    "QLinearConv": _convolution,
    "Concat": _along_axis,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Pad": _pad,
    "Transpose": _transpose,
    **dict.fromkeys(("Identity", "QLinearAdd", "QLinearMul", *ELEMENTWISE), _elementwise),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceSum", "ReduceSumSquare"), _reduction),
}


PASS = Form("channels-last", "maps as [N, H, W, C], as QLinearConv's kernel wants them", channels_last, needs=LAST)

"""Where the tensors of a graph lie in one static array: those that are not alive at the same time share their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from wageubn_onnx.passes.targets.kernels import Type, tensor_types

ALIGN = 8  # bytes
VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))  # the same bytes under another shape
# Kernels that read element i of their operands for element i of the result alone ...
BY_ELEMENT = frozenset(  # ... and before they write it: any operand may become the result
    ("Abs", "Add", "Cast", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Neg", "Not", "Sub")
    + ("Where",)
)
FROM_FIRST = frozenset(("And", "BitwiseAnd", "BitwiseXor", "Max", "Min", "Or"))  # ... copied from the first: that one alone may


@dataclass
class _Buffer:
    """Bytes that are taken from node ``start`` to node ``end``."""

    bytes: int
    start: int
    end: int
    offset: int = 0


@dataclass(frozen=True)
class Memory:
    """A plan. offsets: of tensors in the array. roots: of views, the tensor whose bytes they are. copied: outputs that lie in the
    array because their home is still read when they are made. size: bytes of the array."""

    offsets: dict[str, int]
    roots: dict[str, str]
    copied: tuple[str, ...]
    size: int


def planned(model: onnx.ModelProto, homes: Mapping[str, str]) -> Memory:
    """A plan for the nodes in their order. Inputs, constants and outputs lie elsewhere.

    homes: an output's name to the input whose bytes it takes over; other outputs have a home of their own. An output is written
    straight to its home, unless the input there is read later.
    """
    nodes, types = list(model.graph.node), tensor_types(model)
    outputs = {output.name for output in model.graph.output}
    roots = dict[str, str]()
    for node in nodes:
        if node.op_type in VIEWS and node.output[0] not in outputs:
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    last = dict[str, int]()  # the last reader of a tensor or of its views
    for index, node in enumerate(nodes):
        if node.output[0] not in roots:
            last |= {roots.get(name, name): index for name in node.input if name}
    copied, buffers = list[str](), dict[str, _Buffer]()
    for index, node in enumerate(nodes):
        if node.output[0] in roots:
            continue
        reused = {roots.get(name, name) for name in node.input if _in_place(node, name, roots, types)}
        for name in filter(None, node.output):
            if name in outputs:
                home = homes.get(name)
                read = last.get(home, -1) if home else -1
                if read < index or (read == index and home in reused):
                    continue
                copied.append(name)
            dying = [root for root in reused if root in buffers and last.get(root) == index and buffers[root].end == index]
            if dying:
                buffers[name] = buffers[min(dying)]
            else:
                buffers[name] = _Buffer(types[name].bytes, index, index)
            buffers[name].end = len(nodes) if name in outputs else last.get(name, index)
    size = _place(list({id(b): b for b in buffers.values()}.values()))
    return Memory({name: buffer.offset for name, buffer in buffers.items()}, roots, tuple(copied), size)


def _in_place(node: onnx.NodeProto, name: str, roots: Mapping[str, str], types: Mapping[str, Type]) -> bool:
    """Whether the result may take the bytes of operand ``name``."""
    made, root = types[node.output[0]], roots.get(name, name)
    same = [other for other in node.input if other and roots.get(other, other) == root]
    suits = same == [node.input[0]] if node.op_type in FROM_FIRST else node.op_type in BY_ELEMENT and bool(same)
    return suits and all((types[o].shape, types[o].dtype.itemsize) == (made.shape, made.dtype.itemsize) for o in same)


def _place(buffers: list[_Buffer]) -> int:
    """Give every buffer an offset, the largest first, each as low as those before it allow. Returns the bytes needed."""
    buffers.sort(key=lambda b: (-b.bytes, b.start))
    starts, ends = (np.array([getattr(b, key) for b in buffers], np.int64) for key in ("start", "end"))
    offsets = np.zeros(len(buffers), np.int64)
    size = 0
    for i, buffer in enumerate(buffers):
        alive = np.flatnonzero((starts[:i] <= buffer.end) & (ends[:i] >= buffer.start))
        offset = 0
        for j in alive[np.argsort(offsets[alive], kind="stable")]:
            if offset + buffer.bytes <= offsets[j]:
                break
            offset = max(offset, int(offsets[j]) + _aligned(buffers[j].bytes))
        buffer.offset = offsets[i] = offset
        size = max(size, offset + _aligned(buffer.bytes))
    return size


def _aligned(count: int) -> int:
    return -(-count // ALIGN) * ALIGN

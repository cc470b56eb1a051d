"""Channels of one map that are put in another order, or copied: into the first convolution that reads them.

    Conv(x[:, p], w)        = Conv(x, v),  v[:, j] the sum of all w[:, c] with p[c] = j   (BGR for RGB; a grey image thrice)
    x[:, p] * a             = (x * b)[:, p],  b[p[c]] = a[c], where the copies of a channel have the same a
    MaxPool(x[:, p])        = MaxPool(x)[:, p],  and so whatever works on each channel alike

x[:, p] is a Gather here, however the source writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.operators import ACTIVATIONS
from wageubn_onnx.passes.importing.surgery import Array, Rewrite, absorb, maker, redirect, set_operand, values
from wageubn_onnx.passes.importing.windows import padding


@dataclass(frozen=True)
class Selection:
    """Channel c of a map [N, C, H, W] is channel ``picked[c]`` of ``source``; ``nodes`` make it so."""

    source: gs.Tensor
    picked: Array  # int64 [C]
    nodes: tuple[gs.Node, ...]


def selected(tensor: gs.Tensor) -> Selection | None:
    """What ``tensor`` takes of another map, by a Gather that `_as_gather` has made; None where it is a map of its own."""
    node = maker(tensor)
    if node is None or node.op != "Gather" or not _is_plain(node):
        return None
    return Selection(node.inputs[0], values(node, 1), (node,))


def _is_plain(node: gs.Node) -> bool:
    """Whether a Gather takes whole channels of a map, none counted from the end."""
    index, size = values(node, 1), _channels(node.inputs[0])
    along = size and node.attrs.get("axis", 0) == 1 and index is not None and index.ndim == 1
    return bool(along and len(index) and (index >= 0).all() and (index < size).all())


def _channels(tensor: gs.Tensor) -> int:
    """0 of what is no map."""
    return tensor.shape[1] if len(tensor.shape or ()) == 4 and not isinstance(tensor, gs.Constant) else 0


def _of(x: gs.Tensor, picked: Array, *nodes: gs.Node) -> Selection:
    """The channels ``picked`` of x, which may be a selection itself; ``nodes`` make it so."""
    inner = selected(x)
    if inner is None:
        return Selection(x, picked, nodes)
    return Selection(inner.source, inner.picked[picked], (*inner.nodes, *nodes))


def _gathered(node: gs.Node, result: gs.Tensor) -> Selection | None:
    size, index = _channels(node.inputs[0]), values(node, 1)
    if not size or node.attrs.get("axis", 0) not in (1, -3) or index is None or index.ndim != 1:
        return None
    return _of(node.inputs[0], index % size, node) if ((index >= -size) & (index < size)).all() else None


def _one_gathered(node: gs.Node, result: gs.Tensor) -> Selection | None:
    """Unsqueeze of one channel, of which Gather, or Squeeze, has dropped the axis."""
    gather, axes = maker(node.inputs[0]), values(node, 1)
    if gather is None or axes is None or list(axes) not in ([1], [-3]):
        return None
    if gather.op == "Squeeze" and _channels(gather.inputs[0]) == 1 and list(gather.inputs[0].shape) == list(result.shape or ()):
        return _of(gather.inputs[0], np.zeros(1, np.int64), gather, node)
    if gather.op != "Gather":
        return None
    size, index = _channels(gather.inputs[0]), values(gather, 1)
    if not size or gather.attrs.get("axis", 0) not in (1, -3) or index is None or index.ndim or not -size <= index < size:
        return None
    return _of(gather.inputs[0], np.array([index % size]), gather, node)


def _sliced(node: gs.Node, result: gs.Tensor) -> Selection | None:
    size, starts, ends = _channels(node.inputs[0]), values(node, 1), values(node, 2)
    if not size or starts is None or ends is None or len(starts) != 1:
        return None
    axes, steps = values(node, 3, np.zeros(1, np.int64)), values(node, 4, np.ones(1, np.int64))
    if axes is None or steps is None or int(axes[0]) not in (1, -3) or int(steps[0]) == 0:
        return None
    start, end, step = int(starts[0]), int(ends[0]), int(steps[0])
    before_all = step < 0 and end < -size  # which a Python slice writes as None
    return _of(node.inputs[0], np.arange(size)[start : None if before_all else end : step], node)


def _split(node: gs.Node, result: gs.Tensor) -> Selection | None:
    size, parts = _channels(node.inputs[0]), [_channels(o) for o in node.outputs]
    if not size or node.attrs.get("axis", 0) not in (1, -3) or sum(parts) != size or not all(parts):
        return None
    place = next(i for i, o in enumerate(node.outputs) if o is result)
    return _of(node.inputs[0], np.arange(size)[sum(parts[:place]) :][: parts[place]], node)


def _expanded(node: gs.Node, result: gs.Tensor) -> Selection | None:
    x = node.inputs[0]
    if _channels(x) != 1 or not _channels(result) or [x.shape[axis] for axis in REST] != [result.shape[axis] for axis in REST]:
        return None
    return _of(x, np.zeros(_channels(result), np.int64), node)


REST = (0, 2, 3)  # every axis of a map but that of its channels


def _tiled(node: gs.Node, result: gs.Tensor) -> Selection | None:
    size, repeats = _channels(node.inputs[0]), values(node, 1)
    if not size or repeats is None or len(repeats) != 4 or any(repeats[axis] != 1 for axis in REST):
        return None
    return _of(node.inputs[0], np.tile(np.arange(size), int(repeats[1])), node) if repeats[1] <= MOST else None


MOST = 2**16  # channels


def _concatenated(node: gs.Node, result: gs.Tensor) -> Selection | None:
    """Parts of one map, or the whole map more than once."""
    if node.attrs.get("axis") not in (1, -3) or not all(_channels(i) for i in node.inputs):
        return None
    parts = [_of(i, np.arange(_channels(i))) for i in node.inputs]
    if any(part.source is not parts[0].source for part in parts):
        return None
    nodes = {id(n): n for part in parts for n in part.nodes}
    return Selection(parts[0].source, np.concatenate([part.picked for part in parts]), (*nodes.values(), node))


def _shuffled(node: gs.Node, result: gs.Tensor) -> Selection | None:
    """Reshape to groups of channels, Transpose of the two axes, and Reshape back."""
    turn = maker(node.inputs[0])
    groups = maker(turn.inputs[0]) if turn is not None and turn.op == "Transpose" else None
    if turn is None or groups is None or groups.op != "Reshape" or list(turn.attrs.get("perm", [])) != [0, 2, 1, 3, 4]:
        return None
    x, shape = groups.inputs[0], groups.outputs[0].shape
    if not _channels(x) or len(shape or ()) != 5 or list(x.shape) != list(result.shape or ()):
        return None
    if [shape[0], shape[1] * shape[2], *shape[3:]] != list(x.shape):
        return None
    return _of(x, np.arange(x.shape[1]).reshape(shape[1:3]).T.reshape(-1), groups, turn, node)


SELECTIONS: dict[str, Callable[[gs.Node, gs.Tensor], Selection | None]] = {
    "Gather": _gathered,
    "Unsqueeze": _one_gathered,
    "Slice": _sliced,
    "Split": _split,
    "Expand": _expanded,
    "Tile": _tiled,
    "Concat": _concatenated,
    "Reshape": _shuffled,
}


# -- the rewrites ---------------------------------------------------------------------------------------------------------


def _as_gather(graph: gs.Graph, node: gs.Node) -> bool:
    """Any spelling of a selection is one Gather of the map itself; all channels in their order are the map."""
    changed = False
    for result, found in [(result, SELECTIONS[node.op](node, result)) for result in node.outputs]:
        if found is None or not len(found.picked) or (found.nodes == (node,) and node.op == "Gather" and _is_plain(node)):
            continue
        node.outputs = [o for o in node.outputs if o is not result]
        if list(found.picked) == list(range(found.source.shape[1])):
            redirect(graph, result, found.source)
        else:
            _gather(graph, found, found.source, result)
        changed = True
    return changed


def _into_convolution(graph: gs.Graph, node: gs.Node) -> bool:
    found, weight = selected(node.inputs[0]), values(node, 1)
    if found is None or weight is None or node.attrs.get("group", 1) != 1 or weight.shape[1] != len(found.picked):
        return False
    merged = np.zeros((weight.shape[0], found.source.shape[1], *weight.shape[2:]))
    for place, channel in enumerate(found.picked):
        merged[:, channel] += weight[:, place]
    set_operand(node, 1, merged, "weight")
    node.inputs = [found.source, *node.inputs[1:]]
    absorb(node, *found.nodes)
    return True


def _behind(*positions: int) -> Rewrite:
    """A rewrite that lets a node work before a selection, if its constants at ``positions`` are the same for all copies."""

    def rewrite(graph: gs.Graph, node: gs.Node) -> bool:
        place = next((i for i, x in enumerate(node.inputs) if not isinstance(x, gs.Constant) and not x.is_empty()), None)
        found = None if place is None else selected(node.inputs[place])
        if place is None or found is None or (node.op == "Pad" and not _is_spatial(node)):
            return False
        constants: dict[int, Array] = {}
        for position in positions:
            if position != place and position < len(node.inputs):
                value = values(node, position)
                before = None if value is None else _before(value, found, 1 if node.op == "BatchNormalization" else 3)
                if before is None:
                    return False
                constants[position] = before
        for position, before in constants.items():
            set_operand(node, position, before, f"operand{position}")
        node.inputs = [found.source if i == place else x for i, x in enumerate(node.inputs)]
        result = node.outputs[0]
        shape = [result.shape[0], found.source.shape[1], *result.shape[2:]]
        node.outputs = [gs.Variable(f"{result.name}/whole", result.dtype, shape)]
        _gather(graph, found, node.outputs[0], result)
        return True

    return rewrite


def _is_spatial(node: gs.Node) -> bool:
    amounts = padding(node)
    return amounts is not None and amounts.shape == (2, 4) and not amounts[:, :2].any()


def _before(value: Array, found: Selection, trailing: int) -> Array | None:
    """A constant [C, 1, 1], of ``trailing`` axes, for the channels of the source; None where copies of one differ."""
    if value.size == 1:
        return value
    channels = len(found.picked)
    if value.size != channels or value.shape[value.ndim - trailing : value.ndim - trailing + 1] != (channels,):
        return None
    given = value.reshape(-1)
    result = np.ones(found.source.shape[1], value.dtype)  # of channels that nobody reads; 1 may divide
    result[found.picked] = given
    return result.reshape(-1, *[1] * (trailing - 1)) if (result[found.picked] == given).all() else None


def _gather(graph: gs.Graph, found: Selection, source: gs.Tensor, result: gs.Tensor) -> None:
    """``result`` is what ``found`` takes, now of ``source``."""
    index = gs.Constant(f"{result.name}/channels", np.asarray(found.picked, np.int64))
    gather = gs.Node("Gather", f"{result.name}/select", {"axis": 1}, [source, index], [result])
    gather.sources = {}
    absorb(gather, *found.nodes)
    graph.nodes.append(gather)


CHANNELS: dict[str, tuple[Rewrite, ...]] = {
    **dict.fromkeys(SELECTIONS, (_as_gather,)),
    "Conv": (_into_convolution,),
    **dict.fromkeys(["Mul", "Div", "Add", "Sub"], (_behind(0, 1),)),
    "BatchNormalization": (_behind(1, 2, 3, 4),),
    **dict.fromkeys([*ACTIVATIONS, "Pad", "MaxPool", "AveragePool"], (_behind(),)),
}

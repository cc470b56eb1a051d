"""Channels first, whatever the source's order: transposes are carried along the graph until nothing is left of them.

A tensor of the source may have the axes of our [N, C, H, W] in another order: its axis i is our axis order[i]. A Transpose
changes that order and moves nothing; an operator with axes gets ours; a product or window must read ours as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.errors import UnsupportedOperator, WageubnError
from wageubn_onnx.operators import ELEMENTWISE, OPERATORS
from wageubn_onnx.passes.importing.heads import RESHAPES
from wageubn_onnx.passes.importing.shapes import is_nhwc
from wageubn_onnx.passes.importing.surgery import Array, at, bypass, set_operand, values

Order = tuple[int, ...]
NCHW, NHWC = (0, 1, 2, 3), (0, 2, 3, 1)


def to_nchw(graph: gs.Graph, layout: str) -> None:
    """Remove every Transpose of a map; shapes, axes and constants follow.

    Raises WageubnError, naming the node, where an operator reads another order than it works on.
    """
    orders: dict[str, Order] = {}
    (image,) = graph.inputs
    if is_nhwc(image.shape, layout):
        orders[image.name] = NHWC
        image.shape = _ours(image.shape, NHWC)
    transposes = []
    for node in graph.toposort().nodes:
        read = {orders.get(i.name, NCHW) for i in node.inputs if isinstance(i, gs.Variable) and len(i.shape or ()) == 4}
        if node.op == "Transpose" and read:
            (before,) = read
            order: Order | None = tuple(before[axis] for axis in node.attrs.get("perm", (3, 2, 1, 0)))
            transposes.append(node)
        elif read <= {NCHW}:
            continue
        else:
            order = _carried(node, read)
        for result in node.outputs:
            if order is not None and order != NCHW:
                orders[result.name] = order
            if order is not None and result.shape is not None:
                result.shape = _ours(result.shape, order)
    for node in transposes:
        bypass(graph, node)
    graph.cleanup()


def _carried(node: gs.Node, read: set[Order]) -> Order | None:
    """Let ``node``, which reads maps in another order, work on ours; the order of its result, None where that is no map."""
    if node.op not in CARRIERS and node.op not in IN_OUR_ORDER:
        raise UnsupportedOperator(f"{at(node)}: operator {node.op} has no rule")
    if node.op not in CARRIERS:
        raise WageubnError(
            f"{at(node)}: {node.op} reads a map with its axes as {_letters(next(iter(read)))}; if the image's layout was "
            "taken wrongly, pass --layout nchw or nhwc"
        )
    if len(read) > 1:
        raise WageubnError(f"{at(node)}: {node.op} reads maps with their axes in different orders")
    (order,) = read
    return CARRIERS[node.op](node, order)


def _elementwise(node: gs.Node, order: Order) -> Order:
    """The same elements, paired as before; a constant's axes are put in our order."""
    for position, operand in enumerate(node.inputs):
        if isinstance(operand, gs.Constant) and operand.values.ndim > 0:
            padded = operand.values.reshape([1] * (4 - operand.values.ndim) + list(operand.values.shape))
            set_operand(node, position, padded.transpose(np.argsort(order)), f"operand{position}")
    return order


def _reduce(node: gs.Node, order: Order) -> Order | None:
    axes = node.attrs.get("axes") or values(node, 1)
    if axes is None:
        raise UnsupportedOperator(f"{at(node)}: {node.op} over all axes has no rule")
    ours = sorted(order[int(axis) % 4] for axis in axes)
    _set_integers(node, 1, ours)
    node.attrs.pop("axes", None)
    if node.attrs.get("keepdims", 1):
        return order
    kept = [axis for axis in order if axis not in ours]
    if kept != sorted(kept):
        raise UnsupportedOperator(f"{at(node)}: {node.op} leaves the axes {_letters(kept)}; it has no rule")
    return None


def _flatten(node: gs.Node, order: Order) -> None:
    """[N, H, W, C] to [N, H*W*C]: the columns of the dense layer that reads it are put in our order."""
    size, shape = (list(tensor.shape or []) for tensor in (node.inputs[0], node.outputs[0]))
    if len(shape) != 2 or shape[0] != size[0]:
        raise UnsupportedOperator(f"{at(node)}: {node.op} of a map {_letters(order)} to {list(shape)} has no rule")
    node.op, node.attrs, node.inputs = "Flatten", {"axis": 1}, node.inputs[:1]
    if size[2:] == [1, 1]:
        return
    readers = node.outputs[0].outputs
    for dense in readers:
        is_dense = dense.op in ("Gemm", "MatMul") and dense.inputs[0] is node.outputs[0]
        if not is_dense or not isinstance(dense.inputs[1], gs.Constant):
            raise UnsupportedOperator(f"{at(dense)}: {dense.op} of a flattened map {_letters(order)} has no rule")
        weight: Array = dense.inputs[1].values
        turned = bool(dense.attrs.get("transB", 0))
        rows = (weight.T if turned else weight).reshape([size[axis] for axis in order[1:]] + [-1])
        places = np.argsort([axis - 1 for axis in order[1:]])
        rows = rows.transpose([*places, 3]).reshape(-1, weight.shape[0 if turned else 1])
        set_operand(dense, 1, rows.T if turned else rows, "weight")


def _pad(node: gs.Node, order: Order) -> Order:
    axes, pads = values(node, 3), values(node, 1)
    if pads is not None:
        half = len(pads) // 2
        ours = np.zeros((2, 4), np.int64)
        for place, axis in enumerate(range(4) if axes is None else axes):
            ours[:, order[int(axis) % 4]] = [pads[place], pads[place + half]]
        _set_integers(node, 1, ours.reshape(-1))
        node.inputs = node.inputs[:3]
    return order


def _slice(node: gs.Node, order: Order) -> Order:
    starts = values(node, 1)
    axes = values(node, 3, None if starts is None else np.arange(len(starts)))
    if axes is not None:
        node.inputs = [*node.inputs[:3], gs.Variable.empty(), *node.inputs[4:]]
        _set_integers(node, 3, [order[int(axis) % 4] for axis in axes])
    return order


def _concat(node: gs.Node, order: Order) -> Order:
    node.attrs["axis"] = order[node.attrs["axis"] % 4]
    return _elementwise(node, order)


def _gather(node: gs.Node, order: Order) -> Order | None:
    """Channels in another order; else the one entry of an axis, which then falls away."""
    index = values(node, 1)
    if index is None or index.ndim != 1:
        _flatten(node, order)
        return None
    return _along(node, order)


def _along(node: gs.Node, order: Order) -> Order:
    """An operator along one axis."""
    node.attrs["axis"] = order[node.attrs.get("axis", 0) % 4]
    return order


def _tile(node: gs.Node, order: Order) -> Order:
    repeats = values(node, 1)
    if repeats is not None:
        _set_integers(node, 1, repeats[np.argsort(order)])
    return order


def _expand(node: gs.Node, order: Order) -> Order:
    """Its result's shape says all; the operand, of the source's axes, is not read again."""
    return order


CARRIERS: dict[str, Callable[[gs.Node, Order], Order | None]] = {
    **dict.fromkeys([*ELEMENTWISE, "Clip", "Sub", "Mul", "Div", "Sum", "Max", "Min"], _elementwise),
    **dict.fromkeys(["ReduceMean", "ReduceMax"], _reduce),
    **dict.fromkeys(RESHAPES, _flatten),
    "Gather": _gather,
    "Split": _along,
    "Tile": _tile,
    "Expand": _expand,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
}
IN_OUR_ORDER = (OPERATORS.keys() - CARRIERS.keys()) | {"GlobalMaxPool"}


def _set_integers(node: gs.Node, position: int, numbers: Sequence[Any] | Array) -> None:
    new = gs.Constant(f"{node.name or node.outputs[0].name}.ours{position}", np.asarray(numbers, np.int64))
    node.inputs = [*node.inputs[:position], new, *node.inputs[position + 1 :]]


def _ours(shape: Sequence[int], order: Order) -> list[int]:
    """A shape of the source in our order."""
    return [shape[place] for place in np.argsort(order)] if len(shape) == 4 else list(shape)


def _letters(order: Sequence[int]) -> str:
    return "[" + ", ".join("NCHW"[axis] for axis in order) + "]"

"""Rewrites of padding, slices and zeros around windows: into the windows themselves, or into a Pad of channels."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.passes.importing.surgery import Array, absorb, bypass, maker, only_reader, values

LOWEST = -3.0e38  # and below: as good as minus infinity


def pad_into_windows(graph: gs.Graph, node: gs.Node) -> bool:
    """A window over a padded map is a padded window over the map.

    For a Conv and an average with zeros, which then count; for a maximum with minus infinity, with zeros where the map is
    not negative, or with copies of pixels (mode edge, reflect, wrap) where every window that sees a copy sees its pixel too.
    """
    x, amounts, fill, mode = node.inputs[0], padding(node), values(node, 2, np.zeros(1)), node.attrs.get("mode", "constant")
    if amounts is None or fill is None or x.shape is None:
        return False
    if not amounts.any():
        return bypass(graph, node)
    fill = float(np.reshape(fill, -1)[0])
    if amounts.shape != (2, 4) or amounts[:, :2].any() or (amounts < 0).any():
        return False
    y, absorbed = node.outputs[0], False
    for reader in list(y.outputs):
        if mode != "constant":
            fill = -np.inf if mode in COPIES and _sees_copied_pixels(reader, x, amounts[:, 2:], mode) else np.nan
        if _absorb(reader, y, amounts[:, 2:], fill, _is_positive(x)):
            reader.inputs = [x if i is y else i for i in reader.inputs]
            absorb(reader, node)
            absorbed = True
    return absorbed


COPIES = ("edge", "reflect", "wrap")


def _sees_copied_pixels(reader: gs.Node, x: gs.Tensor, amounts: Array, mode: str) -> bool:
    """Whether every window of a MaxPool over ``x``, padded with copies, that holds a copy holds the pixel that it copies.

    Then the copy changes no maximum. A window is rows by columns, so it is asked of rows and of columns alone.
    """
    if reader.op != "MaxPool":
        return False
    own = np.reshape(reader.attrs.get("pads", [0] * 4), (2, 2))
    for axis in range(2):
        size, kernel = int(x.shape[2 + axis]), int(reader.attrs["kernel_shape"][axis])
        stride, dilation = (int(reader.attrs.get(name, [1, 1])[axis]) for name in ("strides", "dilations"))
        before, after = (int(amount) for amount in amounts[:, axis])
        reach = dilation * (kernel - 1) + 1
        if max(before, after) >= min(reach, size):  # a window of copies alone, or copies of copies
            return False
        copied = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
        for start in range(-own[0, axis], len(copied) + own[1, axis] - reach + 1, stride):
            places = np.arange(start, start + reach, dilation)
            seen = copied[places[(places >= 0) & (places < len(copied))]]
            real = places[(places >= before) & (places < before + size)] - before
            if not np.isin(seen, real).all():
                return False
    return True


def padding(node: gs.Node) -> Array | None:
    """[before or after, axis], of every axis of the map."""
    pads, axes, rank = values(node, 1), values(node, 3), len(node.inputs[0].shape or ())
    if pads is None:
        return None
    amounts = np.zeros((2, rank), np.int64)
    amounts[:, list(range(rank)) if axes is None else [int(a) % rank for a in axes]] = np.reshape(pads, (2, -1))
    return amounts


def _absorb(reader: gs.Node, y: gs.Tensor, amounts: Array, fill: float, positive: bool) -> bool:
    attrs = reader.attrs
    if reader.inputs[0] is not y or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attrs.get("ceil_mode", 0):
        return False
    own = np.reshape(attrs.get("pads", [0] * 4), (2, 2))
    if reader.op != "Conv" and (own + amounts >= attrs.get("kernel_shape", 0)).any():  # a window in nothing but padding
        return False
    if reader.op == "AveragePool" and fill == 0:
        if own.any() and not attrs.get("count_include_pad", 0):
            return False
        attrs["count_include_pad"] = 1
    elif not ((reader.op == "Conv" and fill == 0) or (reader.op == "MaxPool" and (fill < LOWEST or (fill == 0 and positive)))):
        return False
    attrs.pop("auto_pad", None)
    attrs["pads"] = [int(p) for p in (own + amounts).reshape(-1)]
    return True


def _is_positive(x: gs.Tensor) -> bool:
    """Whether no element can be below zero: a ReLU, and pools of one."""
    while (made := maker(x)) is not None and made.op in ("MaxPool", "AveragePool"):
        x = made.inputs[0]
    return made is not None and made.op == "Relu"


def strided_slice(graph: gs.Graph, node: gs.Node) -> bool:
    """x[:, :, ::s, ::t] is a MaxPool with windows of one pixel; a slice of everything is nothing."""
    x = node.inputs[0]
    starts, ends = values(node, 1), values(node, 2)
    if starts is None or ends is None or len(x.shape or ()) != 4:
        return False
    axes, steps = values(node, 3, np.arange(len(starts))), values(node, 4, np.ones(len(starts), np.int64))
    if axes is None or steps is None:
        return False
    strides = [1, 1, 1, 1]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[int(axis) % 4]
        if start not in (0, -size) or not (end >= size) or step < 1:
            return False
        strides[int(axis) % 4] = int(step)
    if strides == [1, 1, 1, 1]:
        return bypass(graph, node)
    if strides[:2] != [1, 1]:
        return False
    node.op, node.attrs, node.inputs = "MaxPool", {"kernel_shape": [1, 1], "strides": strides[2:]}, [x]
    return True


def merged_strides(graph: gs.Graph, node: gs.Node) -> bool:
    """Strides over rows, then over columns, are strides over both."""
    before = maker(node.inputs[0])
    if before is None or before.op != "MaxPool" or only_reader(graph, node.inputs[0]) is None:
        return False
    first, second = before.attrs, node.attrs
    if any(set(attrs) != {"kernel_shape", "strides"} or list(attrs["kernel_shape"]) != [1, 1] for attrs in (first, second)):
        return False
    second["strides"] = [a * b for a, b in zip(first["strides"], second["strides"], strict=True)]
    node.inputs = before.inputs[:1]
    absorb(node, before)
    return True


def concatenated_zeros(graph: gs.Graph, node: gs.Node) -> bool:
    """Concat of a map and zeros over the channels is Pad."""
    if node.attrs.get("axis") != 1 or len(node.outputs[0].shape or ()) != 4:
        return False
    parts = [None if _is_zero(i) else i for i in node.inputs]
    if sum(part is not None for part in parts) != 1:
        return False
    place = next(i for i, part in enumerate(parts) if part is not None)
    before, after = (sum(i.shape[1] for i in some) for some in (node.inputs[:place], node.inputs[place + 1 :]))
    amounts = gs.Constant(f"{node.name or node.outputs[0].name}.pads", np.array([0, before, 0, 0, 0, after, 0, 0], np.int64))
    node.op, node.attrs, node.inputs = "Pad", {}, [parts[place], amounts]
    return True


def _is_zero(x: gs.Tensor) -> bool:
    """Zeros, stored or computed as something times 0."""
    if isinstance(x, gs.Constant):
        return not np.any(x.values)
    made = maker(x)
    return made is not None and made.op == "Mul" and any(isinstance(i, gs.Constant) and not np.any(i.values) for i in made.inputs)

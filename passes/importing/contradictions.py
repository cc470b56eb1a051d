"""What a source says twice must agree: attributes with weights, axes with ranks, numbers with what they stand for.

Runtimes differ in which of the two they believe; here neither is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.importing.surgery import at, values

MOST_MAGNITUDE = 2.0**60  # of a number that a network is made with: beyond it, float32 itself ends after few layers
AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def refuse_contradictions(graph: gs.Graph) -> None:
    """Raise WageubnError, naming the node, at the first that contradicts itself. Constants must be folded, shapes inferred."""
    for node in graph.nodes:
        problem = _not_finite(node) or CHECKS.get(node.op, _nothing)(node)
        if problem:
            raise WageubnError(f"{at(node)}: {node.op} {problem}; correct the export")


def _nothing(node: gs.Node) -> str:
    return ""


def _shown(shape: Sequence[int]) -> str:
    """A shape with N for the images, whose number the source may leave open."""
    return f"[{', '.join(map(str, ['N', *shape[1:]]))}]"


def _not_finite(node: gs.Node) -> str:
    for name, value in node.attrs.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"has {name} {value}, no finite number"
        if isinstance(value, float) and abs(value) > MOST_MAGNITUDE:
            return f"has {name} {value:g}, beyond 2^60"
    return ""


def _convolution(node: gs.Node) -> str:
    x, w, bias = node.inputs[0].shape, values(node, 1), values(node, 2)
    if w is None:
        return f"has a weight {node.inputs[1].name!r} that is computed, not stored"
    if x is None:
        return ""
    weights, group, kernel = f"weights {list(w.shape)}", int(node.attrs.get("group", 1)), node.attrs.get("kernel_shape")
    if w.ndim != len(x) or w.ndim < 3 or 0 in w.shape:
        return f"of {_shown(x)} has {weights}"
    if kernel is not None and list(kernel) != list(w.shape[2:]):
        return f"says kernel_shape {list(kernel)} and has {weights}"
    if group < 1 or x[1] != group * w.shape[1] or w.shape[0] % group:
        return (
            f"of {x[1]} channels with {weights} in {group} groups does not fit: inputs and outputs must both be shared out "
            "evenly among the groups"
        )
    if bias is not None and bias.shape != w.shape[:1]:
        return f"has {weights} and a bias {list(bias.shape)}"
    return _window(node, w.ndim - 2)


def _pool(node: gs.Node) -> str:
    rank = len(node.inputs[0].shape or ())
    kernel = node.attrs.get("kernel_shape")
    if rank and (kernel is None or len(kernel) != rank - 2 or min(kernel) < 1):
        return f"of {_shown(node.inputs[0].shape)} has kernel_shape {None if kernel is None else list(kernel)}"
    problem = _window(node, rank - 2) if rank else ""
    pads = list(node.attrs.get("pads", []))
    if not problem and kernel is not None and any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=False)):
        return f"has pads {pads} and windows of {list(kernel)}, some of which would hold padding alone"
    return problem


def _window(node: gs.Node, axes: int) -> str:
    """Of strides, dilations and pads over so many axes."""
    for name, count, least in (("strides", axes, 1), ("dilations", axes, 1), ("pads", 2 * axes, 0)):
        found = node.attrs.get(name)
        if found is not None and (len(found) != count or min(found) < least):
            return f"over {axes} axes has {name} {list(found)}; it takes {count} numbers, each at least {least}"
    auto = node.attrs.get("auto_pad", "NOTSET")
    return "" if auto in AUTO_PADS else f"has auto_pad {auto!r}; it is one of {', '.join(AUTO_PADS)}"


PARAMETERS = ("gamma", "beta", "running mean", "running variance")


def _batch_normalization(node: gs.Node) -> str:
    epsilon, momentum = float(node.attrs.get("epsilon", 1e-5)), float(node.attrs.get("momentum", 0.9))
    if epsilon < 0:
        return f"has epsilon {epsilon}; it must not be negative"
    if not 0 <= momentum <= 1:
        return f"has momentum {momentum}; it must lie between 0 and 1"
    shape = node.inputs[0].shape
    for position, kind in enumerate(PARAMETERS, 1):
        value = values(node, position)
        if value is not None and shape is not None and (len(shape) < 2 or value.shape != (shape[1],)):
            return f"of {_shown(shape)} has a {kind} {list(value.shape)}; it takes one a channel"
    variance = values(node, 4)
    if variance is not None and (variance < 0).any():
        return f"has a running variance {node.inputs[4].name!r} with negative entries"
    if variance is not None and not (variance + np.float32(epsilon) > 0).all():
        return f"divides by 0: its running variance {node.inputs[4].name!r} has zeros, and epsilon is {epsilon}"
    return ""


def _flatten(node: gs.Node) -> str:
    shape, axis = node.inputs[0].shape, int(node.attrs.get("axis", 1))
    if shape is not None and not -len(shape) <= axis <= len(shape):
        return f"of {_shown(shape)} has axis {axis}"
    is_last = all(reader.op in ("Gemm", "MatMul") for reader in node.outputs[0].outputs)  # what reshapes again may want it
    if shape is not None and is_last and math.prod(shape[: axis if axis >= 0 else axis + len(shape)]) != shape[0]:
        return f"of {_shown(shape)} from axis {axis} mixes images; it must be from axis 1"
    return ""


def _axis(default: int | None) -> Callable[[gs.Node], str]:
    """A check that the operator has the axis that it says; ``default`` None where it must say one."""

    def check(node: gs.Node) -> str:
        shape, axis = node.inputs[0].shape, node.attrs.get("axis", default)
        if shape is not None and (axis is None or not -len(shape) <= axis < len(shape)):
            return f"of {_shown(shape)} has axis {axis}"
        return ""

    return check


def _dense(node: gs.Node) -> str:
    """Gemm, whose operands are transposed or not, and bias spreads over rows and columns."""
    x, w, bias = node.inputs[0].shape, values(node, 1), values(node, 2)
    if x is None or w is None:
        return ""
    if len(x) != 2 or w.ndim != 2 or 0 in w.shape:
        return f"of {_shown(x)} has weights {list(w.shape)}"
    inner, (rows, columns) = x[0 if node.attrs.get("transA", 0) else 1], w.shape[:: -1 if node.attrs.get("transB", 0) else 1]
    if inner != rows:
        return f"of {_shown(x)} has weights {list(w.shape)}: {inner} features for {rows}"
    if bias is not None and (bias.ndim > 2 or (bias.shape or (1,))[-1] not in (1, columns)):
        return f"has weights {list(w.shape)} and a bias {list(bias.shape)}"
    return ""


CHECKS: dict[str, Callable[[Any], str]] = {
    "Conv": _convolution,
    **dict.fromkeys(["MaxPool", "AveragePool"], _pool),
    "BatchNormalization": _batch_normalization,
    "Flatten": _flatten,
    "Gemm": _dense,
    "Concat": _axis(None),
    **dict.fromkeys(["Split", "Gather"], _axis(0)),
    **dict.fromkeys(["Softmax", "LogSoftmax"], _axis(-1)),
}

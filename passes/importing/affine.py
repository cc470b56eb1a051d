"""Rewrites of Mul, Div, Add and Sub with constants: a scale and a shift a channel go into layers before, are a BN, or stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.passes.importing.surgery import Array, absorb, maker, only_reader, redirect, set_operand, values

OPS = ("Mul", "Div", "Add", "Sub")
EPSILON = 1e-5  # of a BN put together again
KNOWN, UNKNOWN, FIXED = "known", "unknown", "fixed"  # what a BN made here says of its statistics


@dataclass(frozen=True)
class Step:
    """One factor ("Mul") or offset ("Add"), float64 [C]; ``own``: every channel was given its own."""

    op: str
    constant: Array
    own: bool


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift, float64 [C] each: ``nodes`` of the source, and their factors and offsets in order."""

    nodes: list[gs.Node]
    steps: list[Step]
    scale: Array
    shift: Array


def affine(graph: gs.Graph, node: gs.Node) -> bool:
    """A chain of scales and shifts a channel goes where it belongs, by the first rule that fits.

    1. BN(x) * a + b is BN with gamma * a, beta * a + b; Conv(x) * a + b is Conv with weights * a, bias * a + b.
    2. (x - mean) / std * gamma + beta is BN.
    3. A factor and an offset for every channel may have been a BN, whose statistics went into the factor: the function is kept,
       and the node says that its statistics are unknown. The pass `folded` judges.
    4. A factor goes through Add, ReLU and pooling into the layers before, where these make nothing else: a * relu(x) is
       relu(a * x) for a > 0.
    5. Else it stays what it is, a constant map: a BN whose statistics, gamma and beta are all frozen. So does normalisation of
       the image.
    """
    start = _operand(node)
    if start is None or _operand(maker(start)) is not None and only_reader(graph, start) is node:
        return False
    chain = _chain(graph, node, start.shape[1])
    if chain is None:
        return False
    result, edits = chain.nodes[-1].outputs[0], _into_layer(graph, start, node, chain.scale, chain.shift)
    statistics = FIXED if any(start is i for i in graph.inputs) else _statistics(chain)
    if edits is None and statistics == FIXED and not chain.shift.any():
        edits = _into_layers(graph, start, node, chain.scale)
    if edits is None:
        made = gs.Variable(f"{result.name}/bn", np.float32, list(start.shape))
        graph.nodes.append(_batch_norm(chain, start, made, statistics))
        redirect(graph, result, made)
    else:
        for layer, edit in edits:
            edit()
            absorb(layer, *chain.nodes)
        redirect(graph, result, start)
    for link in chain.nodes:
        link.inputs.clear()
        link.outputs.clear()
    return True


def _operand(node: gs.Node | None) -> gs.Tensor | None:
    """The map that ``node`` shifts or scales by a constant a channel; None where it does something else."""
    if node is None or node.op not in OPS or len(node.inputs) != 2:
        return None
    maps = [i for i in node.inputs if not isinstance(i, gs.Constant)]
    if len(maps) != 1 or len(maps[0].shape or ()) != 4 or (node.op == "Div" and maps[0] is not node.inputs[0]):
        return None
    (constant,) = (i.values for i in node.inputs if isinstance(i, gs.Constant))
    shape = (1,) * (4 - constant.ndim) + constant.shape
    fits = len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1 and shape[1] in (1, maps[0].shape[1])
    return maps[0] if fits and (node.op != "Mul" or constant.any()) else None


def _chain(graph: gs.Graph, node: gs.Node, channels: int) -> Affine | None:
    """``node`` and the scales and shifts that alone follow it; None where one divides by zero."""
    nodes, steps = [], []
    following: gs.Node | None = node
    while following is not None and _operand(following) is not None:
        position = next(i for i, operand in enumerate(following.inputs) if isinstance(operand, gs.Constant))
        given = following.inputs[position].values.astype(np.float64).reshape(-1)
        constant, own, op = np.broadcast_to(given, (channels,)), given.size == channels, following.op
        if op == "Div":
            if not constant.all():
                return None
            op, constant = "Mul", 1 / constant
        elif op == "Sub":
            if position == 0:  # c - x = -1 * x + c
                steps.append(Step("Mul", -np.ones(channels), own))
            op, constant = "Add", constant if position == 0 else -constant
        nodes.append(following)
        steps.append(Step(op, constant, own))
        following = only_reader(graph, following.outputs[0])
    scale, shift = np.ones(channels), np.zeros(channels)
    for step in steps:
        scale, shift = (scale * step.constant, shift * step.constant) if step.op == "Mul" else (scale, shift + step.constant)
    return Affine(nodes, steps, scale, shift)


# -- into the layers before -----------------------------------------------------------------------------------------------

Edits = list[tuple[gs.Node, Callable[[], None]]]
POSITIVE = ("Relu", "MaxPool")  # f(a * x) = a * f(x) for a > 0
LINEAR = ("Add", "AveragePool", "GlobalAveragePool")  # for any a


def _into_layers(graph: gs.Graph, x: gs.Tensor, reader: gs.Node, scale: Array) -> Edits | None:
    """What to change in which layers so that ``x``, which ``reader`` alone may read, becomes scale * x; None where one cannot."""
    edits: Edits = []
    waiting = [(x, reader)]
    while waiting:
        x, reader = waiting.pop()
        node = maker(x)
        if node is None or only_reader(graph, x) is not reader:
            return None
        if node.op in LINEAR or (node.op in POSITIVE and (scale > 0).all()):
            waiting += [(operand, node) for operand in node.inputs]
            continue
        found = _into_layer(graph, x, reader, scale, np.zeros_like(scale))
        if found is None:
            return None
        edits += found
    return edits


def _into_layer(graph: gs.Graph, x: gs.Tensor, reader: gs.Node, scale: Array, shift: Array) -> Edits | None:
    """What to change in the BN or convolution that makes ``x``, for ``reader`` alone, so that it makes scale * x + shift."""
    node = maker(x)
    if node is None or only_reader(graph, x) is not reader or node.op not in INTO:
        return None
    known = all(values(node, i, 0) is not None for i in (1, 2))
    return [(node, lambda: INTO[node.op](node, scale, shift))] if known else None


def _into_batch_norm(node: gs.Node, scale: Array, shift: Array) -> None:
    gamma, beta = (values(node, i).astype(np.float64) for i in (1, 2))
    set_operand(node, 1, gamma * scale, "gamma")
    set_operand(node, 2, beta * scale + shift, "beta")


def _into_convolution(node: gs.Node, scale: Array, shift: Array) -> None:
    if (scale != 1).any():
        set_operand(node, 1, values(node, 1) * scale.reshape(-1, 1, 1, 1), "weight")
    if shift.any() or len(node.inputs) > 2:
        set_operand(node, 2, values(node, 2, np.zeros(1)).astype(np.float64) * scale + shift, "bias")


INTO = {"BatchNormalization": _into_batch_norm, "Conv": _into_convolution}


# -- a BN of its own ------------------------------------------------------------------------------------------------------


def _statistics(chain: Affine) -> str:
    """What is known of the statistics of a BN that ``chain`` would be; FIXED where it never was one."""
    ops = [step.op for step in chain.steps]
    if not all(step.own for step in chain.steps) or len(set(ops)) < 2:
        return FIXED
    if ops[:3] == ["Add", "Mul", "Mul"] and ops[3:] in ([], ["Add"]) and (chain.steps[1].constant > 0).all():
        return KNOWN
    return UNKNOWN


def _batch_norm(chain: Affine, start: gs.Tensor, made: gs.Tensor, statistics: str) -> gs.Node:
    """BN of the same function: with the statistics of (x - mean) / std * gamma + beta, else with mean 0 and variance 1, until the
    range of its input is known."""
    name = chain.nodes[0].name or made.name
    mean, variance, gamma, beta = np.zeros_like(chain.scale), np.ones_like(chain.scale), chain.scale, chain.shift
    attrs: dict[str, Any] = {"epsilon": 0.0, "statistics": statistics}
    if statistics == KNOWN:
        constants = [step.constant for step in chain.steps]
        mean, std, gamma = -constants[0], 1 / constants[1], constants[2]
        beta = constants[3] if len(constants) > 3 else np.zeros_like(mean)
        attrs["epsilon"] = EPSILON if (std**2 > EPSILON).all() else 0.0
        variance = std**2 - attrs["epsilon"]
    kinds = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
    operands = [gs.Constant(f"{name}.{kind}", np.asarray(value, np.float32)) for kind, value in kinds.items()]
    node = gs.Node("BatchNormalization", name, attrs, [start, *operands], [made])
    absorb(node, *chain.nodes)
    return node

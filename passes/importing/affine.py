"""Rewrites of Mul, Div, Add and Sub with constants: a scale and a shift a channel belong to the layer before, or were a BN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.passes.importing.surgery import Array, absorb, maker, only_reader, redirect, set_operand, values

OPS = ("Mul", "Div", "Add", "Sub")
EPSILON = 1e-5  # of a BN put together again
UNKNOWN, FIXED = "unknown", "fixed"  # what a BN made here says of its statistics


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift, float64 [C] each, and the factors and offsets in the order of the graph."""

    nodes: list[gs.Node]
    steps: list[tuple[str, Array]]
    scale: Array
    shift: Array


def affine(graph: gs.Graph, node: gs.Node) -> bool:
    """A chain of shifts and scales a channel, merged into what makes its input.

    BN(x) * a + b is BN with gamma * a, beta * a + b. Conv(x) * a + b is Conv with weights * a and bias * a + b.
    (x - mean) / std * gamma + beta is BN. Anything else is a BN whose statistics went into its factor: the function is kept, and
    the node says that they are unknown. On the image it is normalisation, which stays as it is.
    """
    start = _operand(node)
    if start is None or _operand(maker(start)) is not None and only_reader(graph, start) is node:
        return False
    chain = _chain(graph, node, start.shape[1])
    if chain is None:
        return False
    result, source = chain.nodes[-1].outputs[0], maker(start)
    if source is not None and source.op in ("BatchNormalization", "Conv") and only_reader(graph, start) is node:
        if not _into_batch_norm(source, chain) and not _into_convolution(source, chain):
            return False
        absorb(source, *chain.nodes)
        redirect(graph, result, start)
    else:
        made = gs.Variable(f"{result.name}/bn", np.float32, list(start.shape))
        graph.nodes.append(_batch_norm(graph, chain, start, made))
        redirect(graph, result, made)
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
    scale, shift = np.ones(channels), np.zeros(channels)
    nodes, steps = [], []
    following: gs.Node | None = node
    while following is not None and _operand(following) is not None:
        position = next(i for i, operand in enumerate(following.inputs) if isinstance(operand, gs.Constant))
        constant = np.broadcast_to(following.inputs[position].values.astype(np.float64).reshape(-1), (channels,))
        op = following.op
        if op == "Div":
            if not constant.all():
                return None
            op, constant = "Mul", 1 / constant
        elif op == "Sub":
            if position == 0:  # c - x = -1 * x + c
                scale, shift = -scale, -shift
                steps.append(("Mul", -np.ones(channels)))
            op, constant = "Add", constant if position == 0 else -constant
        scale, shift = (scale * constant, shift * constant) if op == "Mul" else (scale, shift + constant)
        nodes.append(following)
        steps.append((op, constant))
        following = only_reader(graph, following.outputs[0])
    return Affine(nodes, steps, scale, shift)


def _into_batch_norm(source: gs.Node, chain: Affine) -> bool:
    if source.op != "BatchNormalization" or any(values(source, i) is None for i in (1, 2)):
        return False
    gamma, beta = (values(source, i).astype(np.float64) for i in (1, 2))
    set_operand(source, 1, gamma * chain.scale, "gamma")
    set_operand(source, 2, beta * chain.scale + chain.shift, "beta")
    return True


def _into_convolution(source: gs.Node, chain: Affine) -> bool:
    if source.op != "Conv" or values(source, 1) is None or values(source, 2, 0) is None:
        return False
    if (chain.scale != 1).any():
        set_operand(source, 1, values(source, 1) * chain.scale.reshape(-1, 1, 1, 1), "weight")
    if chain.shift.any() or len(source.inputs) > 2:
        bias = values(source, 2, np.zeros(1)).astype(np.float64) * chain.scale + chain.shift
        set_operand(source, 2, bias, "bias")
    return True


def _batch_norm(graph: gs.Graph, chain: Affine, start: gs.Tensor, made: gs.Tensor) -> gs.Node:
    """BN of the same function: with the statistics of (x - mean) / std * gamma + beta, else with mean 0 and variance 1, until the
    range of its input is known."""
    name = chain.nodes[0].name or made.name
    mean, variance, gamma, beta = np.zeros_like(chain.scale), np.ones_like(chain.scale), chain.scale, chain.shift
    attrs: dict[str, Any] = {"epsilon": 0.0}
    ops = [op for op, _ in chain.steps]
    if any(start is i for i in graph.inputs):
        attrs["statistics"] = FIXED
    elif ops[:3] == ["Add", "Mul", "Mul"] and ops[3:] in ([], ["Add"]) and (chain.steps[1][1] > 0).all():
        mean, std, gamma = -chain.steps[0][1], 1 / chain.steps[1][1], chain.steps[2][1]
        beta = chain.steps[3][1] if len(ops) > 3 else np.zeros_like(mean)
        attrs["epsilon"] = EPSILON if (std**2 > EPSILON).all() else 0.0
        variance = std**2 - attrs["epsilon"]
    else:
        attrs["statistics"] = UNKNOWN
    kinds = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
    operands = [gs.Constant(f"{name}.{kind}", np.asarray(value, np.float32)) for kind, value in kinds.items()]
    node = gs.Node("BatchNormalization", name, attrs, [start, *operands], [made])
    absorb(node, *chain.nodes)
    return node

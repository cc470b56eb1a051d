"""Rewrites of what follows the last activation: global pooling, flattening, the dense layer, and what a loss makes needless."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.passes.importing.surgery import (
    Array,
    absorb,
    bypass,
    insert,
    maker,
    only_reader,
    set_operand,
    take_over,
    values,
)


def to_flatten(graph: gs.Graph, node: gs.Node) -> bool:
    """What lays [N, ...] out as [N, everything else], in one step or more, is Flatten(axis=1); what keeps a shape is nothing."""
    x, y = node.inputs[0], node.outputs[0]
    if x.shape is None or y.shape is None or not _keeps_elements(node):
        return False
    if list(x.shape) == list(y.shape):
        return bypass(graph, node)
    before = maker(x)
    if before is not None and before.op in RESHAPES and _keeps_elements(before):  # the last one decides
        absorb(node, before)
        node.op, node.attrs = "Reshape", {}
        node.inputs = [before.inputs[0], gs.Constant(f"{node.name}.shape", np.asarray(y.shape, np.int64))]
        return True
    if len(y.shape) != 2 or y.shape[0] != x.shape[0] or (node.op == "Flatten" and node.attrs == {"axis": 1}):
        return False
    node.op, node.attrs, node.inputs = "Flatten", {"axis": 1}, [x]
    return True


RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather")


def _keeps_elements(node: gs.Node) -> bool:
    """Not so of a Gather, unless it picks the only entry of an axis: one of several may also change their order."""
    if node.op != "Gather":
        return True
    shape, picked = node.inputs[0].shape, math.prod(node.inputs[1].shape or [1])
    return shape is not None and shape[node.attrs.get("axis", 0)] == 1 and picked == 1


def global_pool(graph: gs.Graph, node: gs.Node) -> bool:
    """An average over the whole map is the global average; over one pixel, nothing."""
    x, y = node.inputs[0], node.outputs[0]
    if node.op == "ReduceMean":
        return _reduced_mean(graph, node)
    if x.shape is None or len(x.shape) != 4:
        return False
    if node.op == "AveragePool":
        kernel, pads = list(node.attrs["kernel_shape"]), node.attrs.get("pads", [0])
        if kernel != list(x.shape[2:]) or any(pads) or y.shape[2:] != [1, 1]:
            return False
    elif list(x.shape[2:]) == [1, 1]:
        return bypass(graph, node)
    else:
        return False
    node.op, node.attrs = "GlobalAveragePool", {}
    return True


def _reduced_mean(graph: gs.Graph, node: gs.Node) -> bool:
    """A mean over rows and columns, at once or one after the other, with or without the axes that it leaves."""
    x, merged = node.inputs[0], [node]
    axes = _axes(node, len(x.shape or ()))
    before = maker(x)
    if axes == [2] and before is not None and before.op == "Reshape" and _is_map_of_rows(before):
        x, axes, merged = before.inputs[0], [2, 3], [before, node]
    last, keeps = node, node.attrs.get("keepdims", 1)
    following = only_reader(graph, node.outputs[0])
    if len(axes) == 1 and following is not None and following.op == "ReduceMean":
        others = _axes(following, 4 if keeps else 3)
        axes += [axis if keeps or axis < axes[0] else axis + 1 for axis in others]
        if following.attrs.get("keepdims", 1) != keeps:
            return False
        last = following
        merged.append(last)
    if sorted(axes) != [2, 3] or len(x.shape or ()) != 4:
        return False
    name = node.name or node.outputs[0].name
    pooled = insert(graph, "GlobalAveragePool", name, {}, [x], [*x.shape[:2], 1, 1], merged)
    if not keeps or len(last.inputs[0].shape) != 4:
        name = last.name or last.outputs[0].name
        pooled = insert(graph, "Flatten", name, {"axis": 1}, [pooled], list(x.shape[:2]), [last])
    take_over(graph, last.outputs[0], pooled)
    last.outputs.clear()
    return True


def _is_map_of_rows(node: gs.Node) -> bool:
    """Whether a Reshape lays [N, C, H, W] out as [N, C, H*W]."""
    before, after = (list(tensor.shape or []) for tensor in (node.inputs[0], node.outputs[0]))
    return len(before) == 4 and after == [*before[:2], math.prod(before[2:])]


def _axes(node: gs.Node, rank: int) -> list[int]:
    """The axes of a reduction, which opset 18 has as an operand."""
    axes = node.attrs.get("axes") or values(node, 1)
    return [] if axes is None else [int(axis) % rank for axis in axes]


def global_max_pool(graph: gs.Graph, node: gs.Node) -> bool:
    """The greatest of the map is a MaxPool whose window is the map."""
    size = node.inputs[0].shape
    if size is None or len(size) != 4:
        return False
    node.op, node.attrs = "MaxPool", {"kernel_shape": list(size[2:])}
    return True


def matmul_to_gemm(graph: gs.Graph, node: gs.Node) -> bool:
    """x @ W + b = Gemm(x, W, b)."""
    x, w = node.inputs
    if not isinstance(w, gs.Constant) or w.values.ndim != 2 or len(x.shape or ()) != 2:
        return False
    node.op, node.attrs = "Gemm", {}
    return True


def gemm_as_stored(graph: gs.Graph, node: gs.Node) -> bool:
    """alpha A W + beta b = A (alpha W) + (beta b), and A W = A (W^T)^T: the weight is kept as [out, in]."""
    attrs, weight, bias = node.attrs, values(node, 1), values(node, 2, np.zeros(1, np.float32))
    alpha, beta, turned = attrs.get("alpha", 1.0), attrs.get("beta", 1.0), bool(attrs.get("transB", 0))
    if weight is None or bias is None or (alpha, beta, turned) == (1.0, 1.0, True):
        return False
    set_operand(node, 1, (weight if turned else weight.T) * np.float32(alpha), "weight")
    if len(node.inputs) > 2:
        set_operand(node, 2, bias * np.float32(beta), "bias")
    attrs |= {"alpha": 1.0, "beta": 1.0, "transB": 1}
    return True


def gemm_affine(graph: gs.Graph, node: gs.Node) -> bool:
    """Gemm(x, W, b) * c + d = Gemm(x, W c, b c + d), for a number a class or one for all; so quotients and differences."""
    following = only_reader(graph, node.outputs[0])
    weight, bias = values(node, 1), values(node, 2, np.zeros(1, np.float32))
    if following is None or weight is None or bias is None:
        return False
    found = _scale_and_shift(following, node.outputs[0], len(weight))
    if found is None:
        return False
    scale, shift = found
    (other,) = (i for i in following.inputs if i is not node.outputs[0])
    if (scale != 1).any():
        set_operand(node, 1, weight * scale.reshape(-1, 1), "weight")
    if following.op == "Add" and len(node.inputs) < 3 and other.values.ndim <= 1:
        node.inputs = [*node.inputs, other]  # under its own name
    elif shift.any() or len(node.inputs) > 2:
        set_operand(node, 2, bias.reshape(-1) * scale + shift, "bias")
    absorb(node, following)
    result = following.outputs[0]
    following.inputs.clear()
    following.outputs.clear()
    node.outputs = [result]
    return True


def affine_gemm(graph: gs.Graph, node: gs.Node) -> bool:
    """Gemm(x * c + d, W, b) = Gemm(x, W c, b + W d), for a number a feature or one for all."""
    before = maker(node.inputs[0])
    weight, bias = values(node, 1), values(node, 2, np.zeros(1, np.float32))
    if before is None or before.op not in AFFINE or weight is None or bias is None or not node.attrs.get("transB", 0):
        return False
    x = next((i for i in before.inputs if not isinstance(i, gs.Constant)), None)
    if x is None or len(x.shape or ()) != 2 or only_reader(graph, before.outputs[0]) is None:
        return False
    found = _scale_and_shift(before, x, weight.shape[1])
    if found is None:
        return False
    scale, shift = found
    if shift.any():
        set_operand(node, 2, bias.reshape(-1) + weight.astype(np.float64) @ shift, "bias")
    set_operand(node, 1, weight * scale, "weight")
    absorb(node, before)
    node.inputs = [x, *node.inputs[1:]]
    return True


AFFINE = ("Add", "Sub", "Mul", "Div")


def _scale_and_shift(node: gs.Node, x: gs.Tensor, count: int) -> tuple[Array, Array] | None:
    """Float64 [count] each: what ``node`` makes of features ``x`` [N, count] is x * scale + shift; None of anything else."""
    if node.op not in AFFINE or len(node.inputs) != 2 or all(isinstance(i, gs.Constant) for i in node.inputs):
        return None
    other = next((i for i in node.inputs if isinstance(i, gs.Constant)), None)
    if other is None or not any(i is x for i in node.inputs):
        return None
    if other.values.size not in (1, count) or other.values.shape[:-1] not in ((), (1,)):
        return None
    c = np.broadcast_to(other.values.astype(np.float64).reshape(-1), count)
    ones, zeros, first = np.ones(count), np.zeros(count), node.inputs[0] is x
    if node.op in ("Add", "Sub"):
        return (ones if first or node.op == "Add" else -ones), (-c if first and node.op == "Sub" else c)
    if node.op == "Div":
        return (1 / c, zeros) if first and c.all() else None
    return c, zeros


def dense_convolution(graph: gs.Graph, node: gs.Node) -> bool:
    """Flatten(Conv(x)) = Gemm(Flatten(x)) where the kernel covers the whole map: how some exporters write the dense layer."""
    x, y, flatten = node.inputs[0], node.outputs[0], only_reader(graph, node.outputs[0])
    weight = values(node, 1)
    if flatten is None or flatten.op != "Flatten" or weight is None or x.shape is None or y.shape is None:
        return False
    whole = list(weight.shape[2:]) == list(x.shape[2:]) and list(y.shape[2:]) == [1, 1]
    if not whole or any(node.attrs.get("pads", [0])) or node.attrs.get("group", 1) != 1:
        return False
    name = node.name or y.name
    flat = insert(graph, "Flatten", f"{name}/flatten", {"axis": 1}, [x], [x.shape[0], math.prod(x.shape[1:])], [flatten])
    set_operand(node, 1, weight.reshape(len(weight), -1), "weight")
    logits = insert(graph, "Gemm", name, {"transB": 1}, [flat, *node.inputs[1:]], [x.shape[0], len(weight)], [node])
    take_over(graph, flatten.outputs[0], logits)
    node.inputs.clear()
    node.outputs.clear()
    flatten.outputs.clear()
    return True


def trailing_quotient(graph: gs.Graph, node: gs.Node) -> bool:
    """exp(z - max z) / sum(exp(z - max z)), or without the maximum, at the end, is softmax(z)."""
    powers, total = (maker(operand) for operand in node.inputs)
    if powers is None or total is None or powers.op != "Exp" or total.op != "ReduceSum":
        return False
    if total.inputs[0] is not powers.outputs[0]:
        return False
    logits = powers.inputs[0]
    shift = maker(logits)
    if shift is not None and shift.op == "Sub":
        greatest = maker(shift.inputs[1])
        if greatest is None or greatest.op != "ReduceMax" or greatest.inputs[0] is not shift.inputs[0]:
            return False
        logits = shift.inputs[0]
    if node.outputs[0].outputs or not any(node.outputs[0] is o for o in graph.outputs) or len(logits.shape or ()) != 2:
        return False
    node.op, node.attrs, node.inputs = "Softmax", {}, [logits]
    return True


def trailing(graph: gs.Graph, node: gs.Node) -> bool:
    """Softmax, its logarithm, argmax and a cast of that, over the classes, end the network for a reader.

    The loss applies softmax itself. A softmax of logits that others read too stays, and is refused.
    """
    result, logits = node.outputs[0], node.inputs[0]
    if result.outputs or not any(result is o for o in graph.outputs):
        return False
    made = maker(logits)
    if node.op == "Cast" and (made is None or made.op != "ArgMax"):
        return False
    axis = node.attrs.get("axis", 0 if node.op == "ArgMax" else -1)
    if node.op != "Cast" and (len(logits.shape or ()) != 2 or axis not in (1, -1)):
        return False
    bypass(graph, node)
    graph.outputs = list({id(output): output for output in graph.outputs}.values())
    return True

"""Rewrites of what follows the last activation: global pooling, flattening, the dense layer, and what a loss makes needless."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.passes.importing.surgery import absorb, bypass, insert, maker, only_reader, redirect, set_operand, values


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
    """Not so of a Gather, unless it picks the only entry of an axis."""
    sizes = [math.prod(tensor.shape or [0]) for tensor in (node.inputs[0], node.outputs[0])]
    return bool(node.op != "Gather" or sizes[0] == sizes[1])


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
    redirect(graph, last.outputs[0], pooled)
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


def gemm_bias(graph: gs.Graph, node: gs.Node) -> bool:
    """Gemm(x, W, b) + c = Gemm(x, W, b + c), for a constant of one number, or one a class."""
    following = only_reader(graph, node.outputs[0])
    if following is None or following.op != "Add" or not isinstance(node.inputs[1], gs.Constant):
        return False
    (other,) = (i for i in following.inputs if i is not node.outputs[0])
    classes = node.inputs[1].values.shape[0 if node.attrs.get("transB", 0) else 1]
    if not isinstance(other, gs.Constant) or other.values.size not in (1, classes) or values(node, 2, 0) is None:
        return False
    if node.attrs.get("beta", 1.0) != 1.0:
        return False
    if len(node.inputs) < 3:
        node.inputs = [*node.inputs, other]
        if other.values.ndim > 1:
            set_operand(node, 2, other.values.reshape(-1), "bias")
    else:
        set_operand(node, 2, values(node, 2).reshape(-1) + other.values.reshape(-1), "bias")
    absorb(node, following)
    redirect(graph, following.outputs[0], node.outputs[0])
    following.inputs.clear()
    following.outputs.clear()
    return True


def gemm_scale(graph: gs.Graph, node: gs.Node) -> bool:
    """Gemm(x, W, b) * a = Gemm(x, W a, b a), for a constant of one number, or one a class."""
    following = only_reader(graph, node.outputs[0])
    if following is None or following.op != "Mul" or not isinstance(node.inputs[1], gs.Constant):
        return False
    (factor,) = (i for i in following.inputs if i is not node.outputs[0])
    weight, turned = node.inputs[1].values, bool(node.attrs.get("transB", 0))
    if not isinstance(factor, gs.Constant) or factor.values.size not in (1, weight.shape[0 if turned else 1]):
        return False
    if len(node.inputs) > 2:
        if values(node, 2) is None:
            return False
        set_operand(node, 2, values(node, 2) * factor.values.reshape(-1), "bias")
    scale = factor.values.reshape(-1, 1) if turned else factor.values.reshape(1, -1)
    set_operand(node, 1, weight * scale, "weight")
    absorb(node, following)
    redirect(graph, following.outputs[0], node.outputs[0])
    following.inputs.clear()
    following.outputs.clear()
    return True


def gemm_as_stored(graph: gs.Graph, node: gs.Node) -> bool:
    """alpha A W + beta b = A (alpha W) + (beta b), and A W = A (W^T)^T: the weight is kept as [out, in]."""
    attrs = node.attrs
    alpha, beta = (attrs.pop(name, 1.0) for name in ("alpha", "beta"))
    if not isinstance(node.inputs[1], gs.Constant):
        return False
    changed = 0
    if alpha != 1.0 or not attrs.get("transB", 0):
        weight = node.inputs[1].values * np.float32(alpha)
        set_operand(node, 1, weight if attrs.get("transB", 0) else weight.T, "weight")
        attrs["transB"] = changed = 1
    if beta != 1.0 and len(node.inputs) > 2:
        set_operand(node, 2, values(node, 2) * np.float32(beta), "bias")
        changed = 1
    return bool(changed)


def dense_convolution(graph: gs.Graph, node: gs.Node) -> bool:
    """Flatten(Conv(x)) = Gemm(Flatten(x)) where the kernel covers the whole map: how some exporters write the dense layer."""
    x, y, flatten = node.inputs[0], node.outputs[0], only_reader(graph, node.outputs[0])
    if flatten is None or flatten.op != "Flatten" or not isinstance(node.inputs[1], gs.Constant):
        return False
    whole = list(node.inputs[1].values.shape[2:]) == list(x.shape[2:]) and y.shape[2:] == [1, 1]
    if not whole or any(node.attrs.get("pads", [0])) or node.attrs.get("group", 1) != 1:
        return False
    weight = node.inputs[1].values
    name = node.name or y.name
    flat = insert(graph, "Flatten", f"{name}/flatten", {"axis": 1}, [x], [x.shape[0], math.prod(x.shape[1:])], [flatten])
    set_operand(node, 1, weight.reshape(len(weight), -1), "weight")
    logits = insert(graph, "Gemm", name, {"transB": 1}, [flat, *node.inputs[1:]], [x.shape[0], len(weight)], [node])
    redirect(graph, flatten.outputs[0], logits)
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
    """Softmax, its logarithm, argmax and a cast of that end the network for a reader; the loss applies softmax itself.

    A softmax of logits that others read too stays, and is refused.
    """
    result = node.outputs[0]
    if result.outputs or not any(result is o for o in graph.outputs):
        return False
    made = maker(node.inputs[0])
    if node.op == "Cast" and (made is None or made.op != "ArgMax"):
        return False
    bypass(graph, node)
    graph.outputs = list({id(output): output for output in graph.outputs}.values())
    return True

"""Rewrites of what works on features [N, C] and is known of maps alone: features are maps of one pixel.

BN(Flatten(x))            = Flatten(BN(x))                  x [N, C, 1, 1]
BN(Gemm(Flatten(x), w))   = Flatten(BN(Conv(x, w)))         x [N, C, H, W], the kernel as large as the map
Relu(Flatten(x))          = Flatten(Relu(x))
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.passes.importing.surgery import absorb, insert, maker, only_reader, set_operand, values


def features_before_flatten(graph: gs.Graph, node: gs.Node) -> bool:
    """BatchNormalization or Relu of features works on the map that they are, where that is known; Flatten follows."""
    x, y = node.inputs[0], node.outputs[0]
    if len(x.shape or ()) != 2 or len(y.shape or ()) != 2:
        return False
    if node.op == "Relu" and not _is_flattened_batch_norm(x):
        return False
    before = _as_map(graph, x)
    if before is None:
        return False
    after = gs.Variable(f"{y.name}/map", y.dtype, [*y.shape, 1, 1])
    node.inputs = [before, *node.inputs[1:]]
    node.outputs = [after]
    flatten = gs.Node("Flatten", f"{node.name}/flatten", {"axis": 1}, [after], [y])
    flatten.sources = {}
    absorb(flatten, node)
    graph.nodes.append(flatten)
    return True


def _is_flattened_batch_norm(x: gs.Tensor) -> bool:
    flatten = maker(x)
    source = maker(flatten.inputs[0]) if flatten is not None and flatten.op == "Flatten" else None
    return source is not None and source.op == "BatchNormalization"


def _as_map(graph: gs.Graph, x: gs.Tensor) -> gs.Tensor | None:
    """The map [N, C, 1, 1] whose features are ``x``; None where there is none."""
    made = maker(x)
    if made is None:
        return None
    before = made.inputs[0]
    if made.op == "Flatten":
        return before if len(before.shape or ()) == 4 and list(before.shape[2:]) == [1, 1] else None
    if only_reader(graph, x) is None:
        return None
    if made.op == "Relu":
        inner = _as_map(graph, before)
        return None if inner is None else insert(graph, "Relu", made.name, {}, [inner], [*x.shape, 1, 1], [made])
    return _as_convolution(graph, made) if made.op == "Gemm" else None


def _as_convolution(graph: gs.Graph, gemm: gs.Node) -> gs.Tensor | None:
    """The dense layer as a convolution whose kernel covers the map that it reads."""
    weight, bias, flatten = values(gemm, 1), values(gemm, 2, 0), maker(gemm.inputs[0])
    attributes = [
        gemm.attrs.get(name, default) for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0), ("transB", 0))
    ]
    if weight is None or bias is None or attributes != [1.0, 1.0, 0, 1] or np.size(bias) not in (1, len(weight)):
        return None
    if flatten is not None and flatten.op == "Flatten" and len(flatten.inputs[0].shape or ()) == 4:
        x: gs.Tensor | None = flatten.inputs[0]
    else:
        x = _as_map(graph, gemm.inputs[0])
    if x is None or math.prod(x.shape[1:]) != weight.shape[1]:
        return None
    if len(gemm.inputs) > 2:
        set_operand(gemm, 2, np.broadcast_to(np.reshape(bias, -1), len(weight)), "bias")
    kernel = gs.Constant(gemm.inputs[1].name, weight.reshape(len(weight), *x.shape[1:]))
    shape = [x.shape[0], len(weight), 1, 1]
    made = insert(graph, "Conv", gemm.name, {"kernel_shape": list(x.shape[2:])}, [x, kernel, *gemm.inputs[2:]], shape, [gemm])
    gemm.inputs.clear()
    return made

"""One spelling of each idea: tables of rewrites over the source graph, each with the algebra that it relies on.

Shapes are fixed and constants folded first, so that exporters' arithmetic on shapes is gone before a rewrite looks; then
layouts become NCHW, and the rewrites run until none applies.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.passes.importing.affine import affine
from wageubn_onnx.passes.importing.channels import CHANNELS
from wageubn_onnx.passes.importing.features import features_before_flatten
from wageubn_onnx.passes.importing.heads import (
    RESHAPES,
    affine_gemm,
    dense_convolution,
    gemm_affine,
    gemm_as_stored,
    global_max_pool,
    global_pool,
    matmul_to_gemm,
    to_flatten,
    trailing,
    trailing_quotient,
)
from wageubn_onnx.passes.importing.layout import to_nchw
from wageubn_onnx.passes.importing.read import Source
from wageubn_onnx.passes.importing.shapes import folded
from wageubn_onnx.passes.importing.surgery import Rewrite, bypass, insert, rewrite_all, values
from wageubn_onnx.passes.importing.windows import concatenated_zeros, merged_strides, pad_into_windows, strided_slice


def respell(source: Source, config: Config) -> gs.Graph:
    """The source graph with fixed shapes, its constants folded, in the spelling of the `forward` stage.

    Raises WageubnError where the network's input is not one float image tensor of known size, or a node contradicts itself.
    """
    graph = folded(source, config)
    to_nchw(graph, config.layout)
    rewrite_all(graph, CHANNELS)
    rewrite_all(graph, REWRITES)
    _without_zero_biases(graph)
    return graph


def _without_zero_biases(graph: gs.Graph) -> None:
    """Drop biases of zeros in a file that gives them to convolutions before BN, too: an exporter's habit, not the network's."""
    zero = [n for n in graph.nodes if n.op == "Conv" and values(n, 2) is not None and not values(n, 2).any()]
    if any(user.op == "BatchNormalization" for node in zero for user in node.outputs[0].outputs):
        for node in zero:
            node.inputs = node.inputs[:2]


def _sum(graph: gs.Graph, node: gs.Node) -> bool:
    """Sum(a, b, c) = Add(Add(a, b), c)."""
    total, *others = node.inputs
    for count, other in enumerate(others[:-1]):
        name = f"{node.name or node.outputs[0].name}.{count}"
        total = insert(graph, "Add", name, {}, [total, other], node.outputs[0].shape, [node])
    if not others:
        return bypass(graph, node)
    node.op, node.inputs = "Add", [total, others[-1]]
    return True


def _clip(graph: gs.Graph, node: gs.Node) -> bool:
    """Clip(x, 0, inf) = Relu(x); without bounds it is nothing."""
    low, high = (values(node, i, default) for i, default in ((1, -np.inf), (2, np.inf)))
    if low is None or high is None or high < GREATEST:
        return False
    if low <= -GREATEST:
        return bypass(graph, node)
    if low != 0:
        return False
    node.op, node.inputs = "Relu", node.inputs[:1]
    return True


PARAMETERS = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}  # of a BN, by position


def _own_parameters(kinds: dict[int, str]) -> Rewrite:
    """Exporters store equal parameters once; a layer trains its own. Weights of products that are shared are meant to be."""

    def rewrite(graph: gs.Graph, node: gs.Node) -> bool:
        changed = False
        for position, kind in kinds.items():
            value, before = values(node, position), node.inputs[:position]
            if value is None:
                continue
            operand = node.inputs[position]
            if operand.outputs[0] is not node or any(operand is other for other in before):
                node.inputs[position] = gs.Constant(f"{node.name}.{kind}", value)
                changed = True
        return changed

    return rewrite


GREATEST = 3.0e38  # and beyond: as good as infinity


def _max(graph: gs.Graph, node: gs.Node) -> bool:
    """max(x, 0) = Relu(x)."""
    zeros = [i for i in node.inputs if isinstance(i, gs.Constant) and not np.any(i.values)]
    if len(node.inputs) != 2 or len(zeros) != 1:
        return False
    node.op, node.inputs = "Relu", [i for i in node.inputs if i is not zeros[0]]
    return True


REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "Sum": (_sum,),
    "Clip": (_clip,),
    "Max": (_max,),
    "Pad": (pad_into_windows,),
    "Slice": (strided_slice,),
    "MaxPool": (merged_strides,),
    "BatchNormalization": (_own_parameters(PARAMETERS), features_before_flatten),
    "Relu": (features_before_flatten,),
    "Concat": (concatenated_zeros,),
    **dict.fromkeys(["Mul", "Add", "Sub"], (affine,)),
    "Div": (trailing_quotient, affine),
    **dict.fromkeys(RESHAPES, (to_flatten,)),
    **dict.fromkeys(["AveragePool", "ReduceMean", "GlobalAveragePool"], (global_pool,)),
    "GlobalMaxPool": (global_max_pool,),
    "MatMul": (matmul_to_gemm,),
    "Gemm": (_own_parameters({2: "bias"}), gemm_as_stored, gemm_affine, affine_gemm),
    "Conv": (_own_parameters({2: "bias"}), dense_convolution),
    **dict.fromkeys(["Softmax", "LogSoftmax", "ArgMax", "Cast"], (trailing,)),
}

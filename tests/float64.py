"""A float model's copy in float64, for onnx's reference evaluator (onnxruntime has no float64 Conv), and that evaluator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_conv_transpose import ConvTranspose as TheirConvTranspose

from wageubn_onnx.quantizers import tables


def float64_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every float32 tensor, Cast and Constant as float64, in the graph and in function bodies.

    A Constant whose value is a function's attribute stays: such an attribute is float32 by ONNX's definition, and a CastLike
    follows it. The thresholds of ``PowerOfTwoRange`` are the least float32 not below 2^(j-1/2); they become the least such
    float64.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == T.FLOAT:
            value.type.tensor_type.elem_type = T.DOUBLE
    for tensor in graph.initializer:
        if tensor.data_type == T.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    _widen(graph.node)
    for function in copy.functions:
        _widen(function.node)
        if function.name == "PowerOfTwoRange":
            _use_thresholds(function)
    return copy


def _widen(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == T.FLOAT:
                attribute.i = T.DOUBLE
            if node.op_type == "Constant" and attribute.t.data_type == T.FLOAT:
                _set_value(node, numpy_helper.to_array(attribute.t).astype(np.float64))


def _use_thresholds(function: onnx.FunctionProto) -> None:
    narrow, wide = (np.array(tables.float_thresholds(dtype)[0]) for dtype in (np.float32, np.float64))
    values = {i: numpy_helper.to_array(n.attribute[0].t) for i, n in enumerate(function.node) if n.op_type == "Constant"}
    (index,) = (i for i, value in values.items() if np.array_equal(value, narrow))
    _set_value(function.node[index], wide)


def _set_value(node: onnx.NodeProto, value: np.ndarray[Any, Any]) -> None:
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(value))


class ConvTranspose(TheirConvTranspose):
    """Each group by itself: onnx 1.23 mixes up groups of more than one channel."""

    def _run(self, x: Any, w: Any, group: int = 1, **attributes: Any) -> tuple[Any]:
        pairs = zip(np.split(x, group, 1), np.split(w, group), strict=True)
        return (np.concatenate([super(ConvTranspose, self)._run(*pair, group=1, **attributes)[0] for pair in pairs], 1),)


def reference_evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """onnx's reference evaluator, with the operator above."""
    return ReferenceEvaluator(model, new_ops=[ConvTranspose])


def run_reference(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Every output by name, by onnx's reference evaluator."""
    evaluator = reference_evaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))

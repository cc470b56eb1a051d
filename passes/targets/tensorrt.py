"""What TensorRT's documentation asks of a model in QDQ form: a check of the file, without TensorRT.

Source: NVIDIA TensorRT documentation, *Working with Quantized Types*: symmetric int8, zero point 0; constant positive float
scales; activations in -128..127 quantized by tensor, weights in -127..127 by tensor or along the output channels, behind a
DequantizeLinear where they are stored in 8 bits; biases stay in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.errors import WageubnError

Array = np.ndarray[Any, Any]
PRODUCTS = {"Conv": 0, "Gemm": 0}  # operator -> the axis of its weights' output channels, Gemm with transB = 1


def require_tensorrt(model: onnx.ModelProto, name: str) -> None:
    """Raise WageubnError, naming the first node of ``model`` that breaks a rule."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        wrong = _wrong(node, constants, makers)
        if wrong:
            raise WageubnError(f"{name}: node {node.name!r}: {wrong}; TensorRT would not take it in 8 bits")


def _wrong(node: onnx.NodeProto, constants: dict[str, Array], makers: dict[str, onnx.NodeProto]) -> str:
    """The rule that ``node`` breaks; empty where it keeps all."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _wrong_grid(node, constants)
    if node.op_type not in PRODUCTS:
        return ""
    for operand in node.input[:2]:
        if makers.get(operand, node).op_type != "DequantizeLinear":
            return f"its operand {operand!r} comes from no DequantizeLinear"
    if len(node.input) > 2 and (node.input[2] not in constants or constants[node.input[2]].dtype != np.float32):
        return f"its bias {node.input[2]!r} is no float constant"
    scale = constants[makers[node.input[0]].input[1]]
    if scale.ndim and scale.size > 1:
        return f"its activation has {scale.size} scales instead of one"
    weights = makers[node.input[1]]
    axis = next((a.i for a in weights.attribute if a.name == "axis"), 1)
    if constants[weights.input[1]].ndim and axis != PRODUCTS[node.op_type]:
        return f"its weights have scales along axis {axis}, not along the output channels"
    stored = constants.get(weights.input[0])
    if stored is not None and stored.min() < -127:
        return f"its weights reach {stored.min()}, below -127"
    return ""


def _wrong_grid(node: onnx.NodeProto, constants: dict[str, Array]) -> str:
    scale, zero = (constants.get(name) for name in (*node.input[1:], "")[:2])
    if scale is None or scale.dtype != np.float32 or not (scale > 0).all():
        return "its scale is no positive float constant"
    if zero is None or zero.dtype != np.int8 or zero.any():
        return "its zero point is not the int8 constant 0"
    return ""

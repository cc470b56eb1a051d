"""What TensorRT's documentation asks of a model in QDQ form: a check of the file, without TensorRT.

Source: NVIDIA TensorRT documentation, *Working with Quantized Types*: symmetric int8, zero point 0; constant positive float
scales; activations in -128..127 quantized by tensor, weights in -127..127 by tensor or along the output channels, behind a
DequantizeLinear where they are stored in 8 bits; biases stay in float.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.onnxir.view import View

T = onnx.TensorProto
PRODUCTS = {"Conv": 0, "Gemm": 0}  # operator -> the axis of its weights' output channels, Gemm with transB = 1


def require_tensorrt(model: onnx.ModelProto, name: str) -> None:
    """Raise WageubnError, naming the first node of ``model`` that breaks a rule."""
    view = View(model.graph)
    for node in model.graph.node:
        wrong = _wrong(node, view)
        if wrong:
            raise WageubnError(f"{name}: node {node.name!r}: {wrong}; TensorRT would not take it in 8 bits")


def _wrong(node: onnx.NodeProto, view: View) -> str:
    """The rule that ``node`` breaks; empty where it keeps all."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _wrong_grid(node, view)
    if node.op_type not in PRODUCTS:
        return ""
    activation, weights = (view.maker(operand, "DequantizeLinear") for operand in node.input[:2])
    if activation is None or weights is None:
        loose = node.input[0 if activation is None else 1]
        return f"its operand {loose!r} comes from no DequantizeLinear"
    if len(node.input) > 2 and (node.input[2] not in view.constants or view.dtype(node.input[2]) != T.FLOAT):
        return f"its bias {node.input[2]!r} is no float constant"
    scales = math.prod(view.shape(activation.input[1]))
    if scales > 1:
        return f"its activation has {scales} scales instead of one"
    axis = next((a.i for a in weights.attribute if a.name == "axis"), 1)
    if view.shape(weights.input[1]) and axis != PRODUCTS[node.op_type]:
        return f"its weights have scales along axis {axis}, not along the output channels"
    stored = view.constant(weights.input[0])
    if stored is not None and stored.min() < -127:
        return f"its weights reach {stored.min()}, below -127"
    return ""


def _wrong_grid(node: onnx.NodeProto, view: View) -> str:
    scale, zero = (view.constant(name) for name in (*node.input[1:], "")[:2])
    if scale is None or scale.dtype != np.float32 or not (scale > 0).all():
        return "its scale is no positive float constant"
    if zero is None or zero.dtype != np.int8 or zero.any():
        return "its zero point is not the int8 constant 0"
    return ""

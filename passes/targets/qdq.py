"""An int8 network in QDQ form: float operators between QuantizeLinear and DequantizeLinear, by TensorRT's rules.

All integers are int8 with zero point 0; weights have a scale for each output channel, activations one; biases are float, on the
grid of the products. Every scale is a power of two, so a runtime that computes in float and one that fuses the operators to
integer kernels give the same bits, as long as float32 holds the sums (`Int8Network.is_exact`).
"""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.graph import PREFIX
from wageubn_onnx.onnxir.nodes import Nodes, attributes, retyped
from wageubn_onnx.passes.targets.image import ImageQuantizer
from wageubn_onnx.passes.targets.int8 import Int8Network, Layer

T = onnx.TensorProto
NAME = "qdq"


def qdq(network: Int8Network, image: ImageQuantizer) -> onnx.ModelProto:
    """uint8 images [N, C, H, W] -> logits, float32 [N, classes]."""
    nodes = Nodes(NAME)
    _image(nodes, network, image)
    for layer in network.layers:
        is_last, is_fused = layer.output == network.logits.name, layer.output in network.fused
        inputs = [_read(name, network) for name in layer.inputs]
        if layer.weight is not None:
            inputs += _weights(nodes, network, layer)
        if layer.op == "Pad":
            amounts = next(t for t in network.forward.graph.initializer if t.name == layer.node.input[1])
            inputs.append(nodes.constant(amounts.name, onnx.numpy_helper.to_array(amounts), np.int64))
        nodes.add(layer.op, inputs, layer.output, layer.node, **attributes(layer.node))
        if not is_last and not is_fused:
            _quantized(nodes, network, layer.output, layer.output, layer.node)
    images = retyped(network.images, T.UINT8)
    return nodes.model(network.forward.graph.name, images, network.logits, {PREFIX + "stage": NAME})


def _read(name: str, network: Int8Network) -> str:
    """An activation as its readers take it: from its grid, unless a ReLU alone reads it."""
    return name if name in network.fused else f"{name}/dequantized"


def _quantized(nodes: Nodes, network: Int8Network, value: str, name: str, like: onnx.NodeProto) -> None:
    """``value`` on the grid of the activation ``name``."""
    grid = [nodes.scale(network.exponents[name]), nodes.constant("zero", 0, np.int8)]
    nodes.add("QuantizeLinear", [value, *grid], f"{name}/quantized", like, "/quantize")
    nodes.add("DequantizeLinear", [f"{name}/quantized", *grid], f"{name}/dequantized", like, "/dequantize")


def _weights(nodes: Nodes, network: Int8Network, layer: Layer) -> list[str]:
    """Weights behind a DequantizeLinear, and the bias in float, an integer times a power of two."""
    assert layer.weight is not None and layer.bias is not None and layer.exponents is not None  # the caller's condition
    name = layer.node.input[1] if len(layer.node.input) > 1 else f"{layer.output}.weight"
    scales = np.ldexp(1.0, layer.exponents)
    grid = [nodes.constant(f"{name}.scale", scales, np.float32), nodes.constant(f"{name}.zero", np.zeros(len(scales)), np.int8)]
    weight = nodes.constant(name, layer.weight, np.int8)
    nodes.add("DequantizeLinear", [weight, *grid], f"{name}/dequantized", layer.node, "/weight", axis=0)
    bias = np.ldexp(layer.bias.astype(np.float64), layer.exponents + network.exponents[layer.inputs[0]])
    return [f"{name}/dequantized", nodes.constant(f"{layer.output}.bias", bias, np.float32)]


def _image(nodes: Nodes, network: Int8Network, image: ImageQuantizer) -> None:
    """(pixel - mean) / std in float32, without rounding, and its 8 bits."""
    name, exponent = network.images.name, network.exponents[network.images.name]
    like = onnx.NodeProto(name="input")
    like.metadata_props.extend(network.images.metadata_props)
    pixels = nodes.add("Cast", [name], f"{name}/float", like, "/cast", to=T.FLOAT)
    factor = nodes.constant("input.factor", np.ldexp(image.factor, exponent), np.float32)
    offset = nodes.constant("input.offset", np.ldexp(image.offset, exponent), np.float32)
    scaled = nodes.add("Mul", [pixels, factor], f"{name}/scaled", like, "/scale")
    nodes.add("Add", [scaled, offset], f"{name}/normalised", like, "/shift")
    _quantized(nodes, network, f"{name}/normalised", name, like)

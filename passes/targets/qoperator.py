"""An int8 network in QOperator form, for onnxruntime: QLinearConv and its like, and no tensor in float but their scales.

Activations are uint8: in 0..127 with zero point 0 where a ReLU made them, else with zero point 128. The product of the former
and int8 weights is exact on x86 without VNNI too, and onnxruntime's fastest; the latter are multiplied by uint8 weights. A ReLU
is the saturation of what comes before it at the zero point 0, and a Clip to 127.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.graph import PREFIX, node_tag
from wageubn_onnx.onnxir.nodes import Nodes, attributes, retyped
from wageubn_onnx.onnxir.view import View
from wageubn_onnx.operators import Table
from wageubn_onnx.passes.targets.image import ImageQuantizer
from wageubn_onnx.passes.targets.int8 import GREATEST, Array, Int8Network, Layer
from wageubn_onnx.proofs.targets import MICROSOFT

T = onnx.TensorProto
MIDDLE = 128  # the zero point of signed activations and of weights in uint8
NAME = "qoperator"


def qoperator(network: Int8Network, image: ImageQuantizer) -> onnx.ModelProto:
    """uint8 images [N, C, H, W] -> logits, int32 [N, classes] in units of 2^``network.exponents[logits]``."""
    return _QOperator(network).build(image)


class _QOperator:
    def __init__(self, network: Int8Network) -> None:
        self.network = network
        self.nodes = Nodes(NAME)
        self.view = View(network.forward.graph)
        self.expected: dict[str, set[str]] = {}
        self.quantized: dict[str, list[tuple[str, str]]] = {}  # constants that stand for quantizers: layer and role

    def build(self, image: ImageQuantizer) -> onnx.ModelProto:
        network, nodes = self.network, self.nodes
        self.image(image)
        for layer in network.layers:
            RULES.of(layer.op, f"layer {layer.name!r}")(self, layer)
        logits = network.logits
        if network.layers[-1].op != "Gemm":  # an average may end the network
            self.rename_output(network.layers[-1], logits.name)
        scales = sorted(name for name, value in nodes.constants.items() if value.dtype == np.float32)
        metadata = {
            "stage": NAME,
            "expected": json.dumps({layer: sorted(roles) for layer, roles in self.expected.items()}, sort_keys=True),
            "constants": json.dumps(self.quantized, sort_keys=True),
            "ranges": "{}",
            "float_parameters": json.dumps(scales),
        }
        metadata = {PREFIX + key: value for key, value in metadata.items()}
        return nodes.model(network.forward.graph.name, retyped(network.images, T.UINT8), retyped(logits, T.INT32), metadata)

    # -- operands -------------------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> str:
        """The activation ``name`` of `forward` in this graph."""
        return f"{name}/q" if name in (self.network.images.name, self.network.logits.name) else name

    def zero(self, name: str) -> str:
        is_unsigned = name in self.network.unsigned or name in self.network.fused
        return self.zero_point(0 if is_unsigned else MIDDLE)

    def zero_point(self, value: int) -> str:
        return self.nodes.constant(f"zero/{value}", value, np.uint8)

    def grid(self, name: str) -> list[str]:
        """Scale and zero point of an activation."""
        return [self.nodes.scale(self.network.exponents[name]), self.zero(name)]

    def operand(self, name: str) -> list[str]:
        """An activation, its scale and its zero point."""
        return [self.tensor(name), *self.grid(name)]

    def weight(self, layer: Layer) -> tuple[str, str]:
        """The weights' initializer and its zero point, int8 beside an operand in 0..127, else uint8."""
        assert layer.weight is not None  # of Conv and Gemm
        name = layer.node.input[1] if len(layer.node.input) > 1 else f"{layer.output}.weight"
        if layer.inputs[0] in self.network.unsigned:
            value, zero = layer.weight, self.nodes.constant("zero/int8", 0, np.int8)
        else:
            value, zero = (layer.weight.astype(np.int16) + MIDDLE).astype(np.uint8), self.zero_point(MIDDLE)
        self.nodes.constant(name, value, value.dtype)
        self.stands_for(name, layer.name, "W")
        return name, zero

    def bias(self, layer: Layer) -> str:
        name = self.nodes.constant(f"{layer.output}.bias", layer.bias, np.int32)
        self.stands_for(name, layer.name, "bias")
        return name

    def stands_for(self, name: str, layer: str, role: str) -> None:
        self.quantized.setdefault(name, []).append((layer, role))
        self.expected.setdefault(layer, set()).add(role)

    def scales(self, layer: Layer) -> str:
        """Of the weights, one for each output channel."""
        assert layer.exponents is not None  # of Conv and Gemm
        return self.nodes.constant(f"{layer.output}.scale", np.ldexp(1.0, layer.exponents), np.float32)

    def requantized(self, kind: str, layer: Layer, inputs: list[str], suffix: str = "", **attrs: Any) -> None:
        """A node whose result, the layer's output with ``suffix``, saturates on the grid of that output."""
        result, domain = f"{self.tensor(layer.output)}{suffix}", "" if kind == "QLinearConv" else MICROSOFT
        self.nodes.add(kind, inputs, result, layer.node, domain=domain, **attrs)
        self.nodes.declare(result, T.UINT8, self.view.sizes(layer.output))
        self.expected.setdefault(layer.name, set()).add(node_tag(layer.node).role)

    # -- rules ------------------------------------------------------------------------------------------------------------

    def image(self, image: ImageQuantizer) -> None:
        """A table of 256 entries a channel."""
        nodes, name = self.nodes, self.network.images.name
        table = nodes.constant("input.table", image.table.reshape(-1).astype(np.int16) + MIDDLE, np.uint8)
        self.stands_for(table, "input", "I")
        starts = np.arange(len(image.table)).reshape(1, -1, 1, 1) * image.table.shape[1]
        like = onnx.NodeProto(name="input")
        like.metadata_props.extend(self.network.images.metadata_props)
        wide = nodes.add("Cast", [name], f"{name}/wide", like, "/cast", to=T.INT32)
        index = nodes.add("Add", [wide, nodes.constant("input.start", starts, np.int32)], f"{name}/index", like, "/index")
        nodes.add("Gather", [table, index], self.tensor(name), like, "/table", axis=0)
        nodes.declare(self.tensor(name), T.UINT8, self.view.sizes(name))

    def conv(self, layer: Layer) -> None:
        weight, zero = self.weight(layer)
        filters = [weight, self.scales(layer), zero]
        inputs = [*self.operand(layer.inputs[0]), *filters, *self.grid(layer.output), self.bias(layer)]
        self.requantized("QLinearConv", layer, inputs, **attributes(layer.node))

    def gemm(self, layer: Layer) -> None:
        """The last one gives its int32 sums; another is rounded to 8 bits."""
        weight, zero = self.weight(layer)
        x, scale, zero_x = self.operand(layer.inputs[0])
        if layer.output != self.network.logits.name:
            inputs = [x, scale, zero_x, weight, self.scales(layer), zero, self.bias(layer), *self.grid(layer.output)]
            self.requantized("QGemm", layer, inputs, transB=1)
            return
        self.nodes.constants[weight] = np.ascontiguousarray(self.nodes.constants[weight].T)
        product = self.nodes.add("MatMulInteger", [x, weight, zero_x, zero], f"{layer.output}/product", layer.node, "/product")
        self.nodes.add("Add", [product, self.bias(layer)], layer.output, layer.node)

    def add(self, layer: Layer) -> None:
        a, b = layer.inputs
        self.requantized("QLinearAdd", layer, [*self.operand(a), *self.operand(b), *self.grid(layer.output)])

    def relu(self, layer: Layer) -> None:
        x = layer.inputs[0]
        if x in self.network.fused:
            self.clip(self.tensor(x), layer)
        else:
            self.requantized("QLinearLeakyRelu", layer, [*self.operand(x), *self.grid(layer.output)], "/raw", alpha=0.0)
            self.clip(f"{self.tensor(layer.output)}/raw", layer)

    def clip(self, x: str, layer: Layer) -> None:
        """Unsigned activations end at 127."""
        bounds = [self.zero_point(0), self.nodes.constant("greatest", GREATEST, np.uint8)]
        self.nodes.add("Clip", [x, *bounds], self.tensor(layer.output), layer.node, "/clip")

    def average(self, layer: Layer) -> None:
        """On a finer grid than its operand's it may pass 127."""
        inputs = [*self.operand(layer.inputs[0]), *self.grid(layer.output)]
        if layer.output in self.network.unsigned:
            self.requantized(f"QLinear{layer.op}", layer, inputs, "/raw", **attributes(layer.node))
            self.clip(f"{self.tensor(layer.output)}/raw", layer)
        else:
            self.requantized(f"QLinear{layer.op}", layer, inputs, **attributes(layer.node))

    def move(self, layer: Layer) -> None:
        self.nodes.add(layer.op, [self.tensor(layer.inputs[0])], self.tensor(layer.output), layer.node, **attributes(layer.node))

    def pad(self, layer: Layer) -> None:
        amounts = next(t for t in self.network.forward.graph.initializer if t.name == layer.node.input[1])
        pads = self.nodes.constant(amounts.name, onnx.numpy_helper.to_array(amounts), np.int64)
        x = layer.inputs[0]
        self.nodes.add("Pad", [self.tensor(x), pads, self.zero(x)], self.tensor(layer.output), layer.node)

    def rename_output(self, last: Layer, logits: str) -> None:
        """What ends in no dense layer gives its mantissas."""
        wide = self.nodes.add("Cast", [self.tensor(last.output)], f"{logits}/wide", last.node, "/cast", to=T.INT32)
        zero: Array = self.nodes.constants[self.zero(last.output)]
        self.nodes.add("Sub", [wide, self.nodes.constant("logits.zero", zero, np.int32)], logits, last.node, "/centred")


RULES = Table[Callable[[_QOperator, Layer], None]](
    "QOperator form",
    Conv=_QOperator.conv,
    Gemm=_QOperator.gemm,
    Add=_QOperator.add,
    Relu=_QOperator.relu,
    AveragePool=_QOperator.average,
    GlobalAveragePool=_QOperator.average,
    Pad=_QOperator.pad,
    **dict.fromkeys(["MaxPool", "Flatten"], _QOperator.move),
)

"""forward -> an int8 network: BN folded into products, every scale a power of two.

An activation is a mantissa in -128..127, after a ReLU in 0..127, times 2^exponent; a weight is one in -127..127, times a power
of two for each output channel; a bias is int32 on the grid of its channel's products. So a product is a sum of integers, and what
follows it a shift with one rounding, half to even, and a saturation. `qoperator` and `qdq` write it down for runtimes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import node_tag
from wageubn_onnx.operators import MOVES, OPERATORS, POOLS

Array = np.ndarray[Any, Any]
GREATEST = 127
DEVIATIONS = 6  # of a BN's output that its grid holds, as Q_A's
BIAS = 2.0**22  # mantissas of biases stay below: a channel with weights of next to nothing gets a coarser grid
EXACT = 2**24  # float32 holds every integer up to here


@dataclass
class Layer:
    """A node of `forward` on int8 tensors.

    node: its data inputs come first. weight and bias: float64 at first, int8 and int32 [O] after `quantize`; None where the
    operator has none. exponents: of the weights, int [O]. reach: what |output| seldom passes, where BN says so.
    """

    node: onnx.NodeProto
    weight: Array | None = None
    bias: Array | None = None
    exponents: Array | None = None
    reach: float | None = None

    @property
    def op(self) -> str:
        return str(self.node.op_type)

    @property
    def name(self) -> str:
        """The layer, as the artifact folder's other files call it."""
        return node_tag(self.node).layer or str(self.node.name)

    @property
    def inputs(self) -> list[str]:
        """The activations that it reads."""
        return list(self.node.input[: OPERATORS[self.op].operands])

    @property
    def output(self) -> str:
        return str(self.node.output[0])


@dataclass
class Int8Network:
    """layers in order; the exponent of every activation; ``unsigned``: those in 0..127; fused: those that a ReLU alone reads.

    forward: for names, shapes and what is neither layer nor weight. greatest: the greatest magnitude that a sum of products can
    have, its bias included.
    """

    forward: onnx.ModelProto
    layers: list[Layer]
    exponents: dict[str, int] = field(default_factory=dict)
    unsigned: set[str] = field(default_factory=set)
    fused: set[str] = field(default_factory=set)
    greatest: int = 0

    @property
    def images(self) -> onnx.ValueInfoProto:
        value: onnx.ValueInfoProto = self.forward.graph.input[0]
        return value

    @property
    def logits(self) -> onnx.ValueInfoProto:
        value: onnx.ValueInfoProto = self.forward.graph.output[0]
        return value

    @property
    def is_exact(self) -> bool:
        """Whether float32 computes every sum of products without rounding, so that all forms and runtimes give the same bits."""
        return self.greatest <= EXACT


def quantize(forward: onnx.ModelProto, parameters: Mapping[str, Array], quantizers: Iterable[Mapping[str, Any]]) -> Int8Network:
    """``forward`` with these float64 ``parameters`` by name, on the grids of the ``quantizers`` that the manifest lists.

    Where the step has no 8-bit grid, on one that follows: of 16 bits the upper 8, of a BN's output what holds beta and 6 gamma.
    """
    network = Int8Network(forward, _folded(forward, parameters))
    grids = {(q["layer"], q["role"]): 8 - q["bits"] + q["fraction"] for q in quantizers if "fraction" in q and q["bits"] >= 8}
    readers: dict[str, list[Layer]] = {}
    for layer in network.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    network.exponents[network.images.name] = -grids["input", "I"]
    for layer in network.layers:
        following = readers.get(layer.output, [])
        is_fused = [reader.op for reader in following] == ["Relu"] and layer.op not in MOVES
        if is_fused:
            network.fused.add(layer.output)
        network.exponents[layer.output] = _exponent(following[0] if is_fused else layer, network, grids)
        if layer.op == "Relu" or layer.op in (*POOLS, *MOVES) and layer.inputs[0] in network.unsigned:
            network.unsigned.add(layer.output)
        if layer.weight is not None:
            _quantize_product(layer, network)
    return network


def _folded(forward: onnx.ModelProto, parameters: Mapping[str, Array]) -> list[Layer]:
    """The layers in float64: BN in the weights of the convolution that it alone reads, else a convolution channel by channel."""
    counts = Counter(name for node in forward.graph.node for name in node.input) + Counter(o.name for o in forward.graph.output)
    made: dict[str, Layer] = {}
    for source in forward.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        operands = [parameters[name] for name in node.input[1:] if name in parameters]
        if node.op_type == "BatchNormalization":
            layer = _with_batch_norm(node, operands, made, counts)
        elif operands:
            bias = operands[1] if len(operands) > 1 else np.zeros(len(operands[0]))
            layer = Layer(node, operands[0], bias)
        else:
            layer = Layer(node)
        made[layer.output] = layer
    return list(made.values())


def _with_batch_norm(node: onnx.NodeProto, operands: list[Array], made: dict[str, Layer], counts: Counter[str]) -> Layer:
    gamma, beta, mean, variance = operands
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    slope = gamma / np.sqrt(np.maximum(variance + epsilon, np.finfo(np.float32).tiny))
    shift, reach = beta - mean * slope, float(np.max(np.abs(beta) + DEVIATIONS * np.abs(gamma)))
    x = node.input[0]
    if x in made and made[x].op == "Conv" and counts[x] == 1 and made[x].reach is None:
        layer = made.pop(x)
        assert layer.weight is not None and layer.bias is not None  # of every Conv
        layer.weight, layer.bias = layer.weight * slope.reshape(-1, 1, 1, 1), layer.bias * slope + shift
        layer.node.output[0], layer.reach = node.output[0], reach
        return layer
    alone = helper.make_node("Conv", [x], list(node.output), node.name, group=len(slope), kernel_shape=[1, 1])
    alone.metadata_props.extend(node.metadata_props)
    return Layer(alone, slope.reshape(-1, 1, 1, 1), shift, reach=reach)


def _exponent(layer: Layer, network: Int8Network, grids: Mapping[tuple[str, str], int]) -> int:
    """That of the int8 grid of a layer's output."""
    if layer.op in MOVES:
        return network.exponents[layer.inputs[0]]
    for role in ("A", "S"):
        if (layer.name, role) in grids:
            return -grids[layer.name, role]
    if layer.reach is not None:
        return int(_least_exponent(np.array([layer.reach]))[0])
    for role in ("C", "Z"):
        if (layer.name, role) in grids:
            return -grids[layer.name, role]
    raise WageubnError(
        f"layer {layer.name!r}: the manifest has no grid for the output of its {layer.op}; convert the model again"
    )


def _quantize_product(layer: Layer, network: Int8Network) -> None:
    """Weights on the finest grid of each output channel; one grid for all channels of logits, whose sums are the result."""
    assert layer.weight is not None and layer.bias is not None  # the caller's condition
    x, is_logits = layer.inputs[0], layer.output == network.logits.name
    flat = layer.weight.reshape(len(layer.weight), -1)
    exponents = np.maximum(_least_exponent(np.abs(flat).max(axis=1)), _least_exponent(layer.bias, BIAS) - network.exponents[x])
    if is_logits:
        exponents[:] = exponents.max()
        network.exponents[layer.output] = network.exponents[x] + int(exponents[0])
    integers = np.rint(np.ldexp(flat, -exponents[:, None])).astype(np.int8)
    bias = np.rint(np.ldexp(layer.bias, -exponents - network.exponents[x])).astype(np.int32)
    reach = GREATEST if x in network.unsigned else GREATEST + 1
    sums = np.abs(integers.astype(np.int64)).sum(axis=1) * reach + np.abs(bias)
    network.greatest = max(network.greatest, int(sums.max()))
    layer.weight, layer.bias, layer.exponents = integers.reshape(layer.weight.shape), bias, exponents


def _least_exponent(values: Array, greatest: float = GREATEST) -> Array:
    """The least e for which round(|value| / 2^e) <= greatest; that of a tiny value, or of 0, is not below -64."""
    magnitudes = np.maximum(np.abs(values), 2.0**-64)
    exponents: Array = np.ceil(np.log2(magnitudes / (greatest + 0.5))).astype(int)
    return exponents + (np.rint(np.ldexp(magnitudes, -exponents)) > greatest)

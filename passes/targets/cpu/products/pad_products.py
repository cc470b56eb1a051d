"""Integer products with their columns in multiples of 16, where a release is wrong about the rest.

    MatMulInteger(a, b [K, 10])  ->  Slice(MatMulInteger(a, Pad(b, [K, 16])), columns 0..9)
    ConvInteger of 7x7 places    ->  Slice(ConvInteger, padded below and to the right, of 7x16 places)

onnxruntime 1.21 to 1.24 has a kernel for processors with AMX that is wrong where a product has at least 32 rows, and a number of
columns that is no multiple of 16. Of a MatMulInteger these are the columns of its second operand; of a ConvInteger the places of
an output map.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.onnxir.nodes import attributes, copied
from wageubn_onnx.onnxir.view import View, branches
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import Kernel

WHOLE = 16
SUFFIX = "/whole"


def pad_matrix_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers, no MatMulInteger with a rest of columns; of an inlined model that states the type of every tensor.

    Raises WageubnError, naming the node, where the number of columns is open.
    """
    return _changed(model, "MatMulInteger", _product)


def pad_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers, no ConvInteger with a rest of places; of an inlined model that states the type of every tensor.

    Raises WageubnError, naming the node, where the size of a map is open.
    """
    return _changed(model, "ConvInteger", _convolution)


class _Put:
    """What takes the place of a node: nodes, with the types of what they make, and constants."""

    def __init__(self, view: View, constants: dict[str, list[int]]) -> None:
        self.view, self.constants = view, constants
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[onnx.ValueInfoProto] = []

    def constant(self, values: list[int]) -> str:
        """int64 [len(values)]."""
        name = "whole/" + ".".join(map(str, values))
        self.constants[name] = values
        return name

    def node(self, kind: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{output}/{kind}"))
        return output

    def type(self, name: str, dtype: int, shape: list[int | str]) -> None:
        self.values.append(helper.make_tensor_value_info(name, dtype, shape))

    def size(self, node: onnx.NodeProto, name: str, axis: int) -> int:
        """That of tensor ``name``, which ``node`` has to do with."""
        shape = self.view.shape(name)
        size = shape[axis] if shape else 0
        if size < 1:
            raise WageubnError(f"node {node.name!r}: the size of {name} is open; convert the model again")
        return size


Rule = Callable[[_Put, onnx.NodeProto], bool]


def _changed(model: onnx.ModelProto, kind: str, rule: Rule) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants: dict[str, list[int]] = {}
    _rewrite(View(result.graph), constants, kind, rule)
    result.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items())
    return result


def _rewrite(view: View, constants: dict[str, list[int]], kind: str, rule: Rule) -> None:
    """Put what ``rule`` makes in the place of the nodes of ``kind``, in branches, too."""
    graph, put = view.graph, _Put(view, constants)
    for node in graph.node:
        for branch in branches(node):
            _rewrite(View(branch, view), constants, kind, rule)
        if node.op_type != kind or not rule(put, node):
            put.nodes.append(node)
    del graph.node[:]
    graph.node.extend(put.nodes)
    graph.value_info.extend(put.values)


def _product(put: _Put, node: onnx.NodeProto) -> bool:
    right, output = node.input[1], node.output[0]
    columns = put.size(node, right, -1)
    more = -columns % WHOLE
    if not more:
        return False
    dtype, shape = put.view.dtype(right), put.view.sizes(right)
    wide = put.node("Pad", [right, put.constant([0] * (2 * len(shape) - 1) + [more])], output + SUFFIX + "/right")
    put.type(wide, dtype, [*shape[:-1], columns + more])
    new = copied(node)
    new.input[1], new.output[0] = wide, output + SUFFIX
    put.nodes.append(new)
    put.type(new.output[0], onnx.TensorProto.INT32, [*put.view.sizes(output)[:-1], columns + more])
    put.node("Slice", [new.output[0], put.constant([0]), put.constant([columns]), put.constant([-1])], output)
    return True


def _convolution(put: _Put, node: onnx.NodeProto) -> bool:
    output, described = node.output[0], attributes(node)
    height, width = (put.size(node, output, axis) for axis in (2, 3))
    grown = [s for s in product(range(height, height + WHOLE), range(width, width + WHOLE)) if s[0] * s[1] % WHOLE == 0]
    whole = min(grown, key=lambda size: size[0] * size[1])
    if whole == (height, width):
        return False
    strides, pads = described.get("strides", [1, 1]), list(described.get("pads", [0] * 4))
    for axis, (size, wanted) in enumerate(zip((height, width), whole, strict=True)):
        pads[2 + axis] += (wanted - size) * strides[axis]
    new = copied(node)
    for attribute in [a for a in new.attribute if a.name == "pads"]:
        new.attribute.remove(attribute)
    new.attribute.append(helper.make_attribute("pads", pads))
    new.output[0] = output + SUFFIX
    put.nodes.append(new)
    put.type(new.output[0], onnx.TensorProto.INT32, [*put.view.sizes(output)[:2], *whole])
    put.node("Slice", [new.output[0], put.constant([0, 0]), put.constant([height, width]), put.constant([2, 3])], output)
    return True


PRODUCTS = Form(
    "pad-matrix-products",
    "columns of MatMulInteger in multiples of 16, by padding",
    pad_matrix_products,
    instead_of=Kernel.MATMUL,
)
CONVOLUTIONS = Form(
    "pad-convolutions", "places of ConvInteger in multiples of 16, by padding", pad_convolutions, instead_of=Kernel.CONV
)

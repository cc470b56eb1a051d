"""A graph as calls of its distinct nodes: many nodes of a step differ in nothing but their tensors, so that one function does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.onnxir.view import Array, View

INSIDE = 16  # elements: a constant that is smaller belongs to the kernel. Shapes, axes and divisors are


@dataclass(frozen=True)
class Type:
    """dtype and shape of a tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def proto(self) -> onnx.TypeProto:
        return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(self.dtype), self.shape)


@dataclass(frozen=True)
class Call:
    """Of the kernel ``kernel``: what tensor its graph's inputs and outputs are, by their names there."""

    kernel: str
    node: str
    tensors: dict[str, str]


class Kernels:
    """One model for any number of graphs: each distinct node once, between inputs and outputs of its own."""

    def __init__(self) -> None:
        self._names: dict[tuple[Any, ...], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    def call(self, node: onnx.NodeProto, types: Mapping[str, Type], constants: Mapping[str, Array]) -> Call:
        """The call that does the work of ``node``, whose kernel is made where none is yet."""
        inside = {name: constants[name] for name in node.input if name in constants and constants[name].size <= INSIDE}
        operands = tuple(_key(inside[name]) if name in inside else types.get(name) for name in node.input)
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        results = tuple(types.get(name) for name in node.output)
        key = (node.op_type, *attributes, operands, results)
        if key not in self._names:
            self._names[key] = self._add(node, types, inside)
        kernel = self._names[key]
        tensors = {f"{kernel}_x{i}": name for i, name in enumerate(node.input) if name and name not in inside}
        return Call(kernel, node.name, tensors | {f"{kernel}_y{i}": name for i, name in enumerate(node.output) if name})

    def _add(self, node: onnx.NodeProto, types: Mapping[str, Type], inside: Mapping[str, Array]) -> str:
        name, made = f"k{len(self._nodes)}", onnx.NodeProto()
        made.op_type, made.name = node.op_type, name
        made.attribute.extend(node.attribute)
        for i, operand in enumerate(node.input):
            if operand in inside:
                made.input.append(self._constant(inside[operand]))
            else:
                made.input.append(f"{name}_x{i}" if operand else "")
                if operand:
                    self._inputs.append(onnx.ValueInfoProto(name=f"{name}_x{i}", type=types[operand].proto))
        for i, result in enumerate(node.output):
            made.output.append(f"{name}_y{i}" if result else "")
            if result:
                self._outputs.append(onnx.ValueInfoProto(name=f"{name}_y{i}", type=types[result].proto))
        self._nodes.append(made)
        return name

    def _constant(self, value: Array) -> str:
        key = _key(value)
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, f"c{len(self._constants)}")
        return str(self._constants[key].name)

    def model(self, opset: int) -> onnx.ModelProto:
        """All kernels as one graph of nodes that know nothing of each other."""
        graph = onnx.helper.make_graph(self._nodes, "kernels", self._inputs, self._outputs, list(self._constants.values()))
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)


def _key(value: Array) -> tuple[str, tuple[int, ...], bytes]:
    return value.dtype.str, value.shape, value.tobytes()


def tensor_types(model: onnx.ModelProto) -> dict[str, Type]:
    """Of every tensor of an inlined model with shapes, constants included."""
    view = View(model.graph)
    return {
        name: Type(onnx.helper.tensor_dtype_to_np_dtype(view.dtype(name)), tuple(view.shape(name)))
        for name in (*view.types, *view.constants)
    }

"""What the other modules ask of a graph: the type of every tensor, and what a product of it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

SMALL = 1024  # elements: no axes, shape or pads, which shape inference must read, are longer
Cost = Callable[["Tensors", onnx.NodeProto], int]


@dataclass(frozen=True)
class Tensor:
    """Element type by its numpy name, and shape; a symbolic dimension is its name, an unknown one empty."""

    dtype: str
    shape: tuple[int | str, ...]

    @property
    def elements(self) -> int:
        """How many, with 1 for what is not a number."""
        return math.prod(d if isinstance(d, int) else 1 for d in self.shape)

    @property
    def bytes(self) -> int:
        """Of all elements; strings have no size."""
        return 0 if self.dtype == "string" else math.ceil(self.elements * BITS.get(self.dtype, 0) / 8)


def _element(code: int) -> str:
    """The numpy name of an element type; onnx's own, in small letters, where numpy has none."""
    name = str(TensorProto.DataType.Name(code)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


BITS = {name: width for width, names in {
    4: ("int4", "uint4", "float4e2m1"),
    8: ("int8", "uint8", "bool", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0"),
    16: ("int16", "uint16", "float16", "bfloat16"),
    32: ("int32", "uint32", "float32"),
    64: ("int64", "uint64", "float64", "complex64"),
    128: ("complex128",),
}.items() for name in names}  # fmt: skip


class Tensors:
    """Every tensor of ``model`` by name, as far as its type is known; ``stored``: initializers and constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = _inferred(model).graph
        self.known: dict[str, Tensor] = {}
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type and kind.HasField("shape"):
                shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
                self.known[value.name] = Tensor(_element(kind.elem_type), shape)
        constants = [node for node in graph.node if node.op_type == "Constant"]
        held = {node.output[0]: a.t for node in constants for a in node.attribute if a.name == "value"}
        self.stored = {
            name: Tensor(_element(tensor.data_type), tuple(tensor.dims))
            for name, tensor in [*((t.name, t) for t in graph.initializer), *held.items()]
        }
        self.known |= self.stored
        self.unknown = sum(1 for node in graph.node for name in node.output if name and name not in self.known)

    def __getitem__(self, name: str) -> Tensor:
        return self.known.get(name, NOTHING)

    @property
    def symbols(self) -> list[str]:
        """Names of the dimensions that the file leaves open."""
        return sorted({d for tensor in self.known.values() for d in tensor.shape if isinstance(d, str) and d})

    def parameters(self) -> dict[str, Tensor]:
        """What is stored but for scalars and lists of integers, which say axes and shapes."""
        return {n: t for n, t in self.stored.items() if t.shape and not (t.dtype == "int64" and len(t.shape) == 1)}

    def flops(self, node: onnx.NodeProto) -> int:
        """Two a multiply-accumulate of convolutions and matrix products, in floats or integers; nothing for other operators."""
        macs = MACS.get(node.op_type)
        return 2 * macs(self, node) if macs and node.domain in ("", "ai.onnx") else 0


NOTHING = Tensor("", (0,))


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the shapes that onnx infers, where it can, and large tensors without contents: protobuf ends at 2 GB."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    attributes = [a.t for node in light.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in (*light.graph.initializer, *attributes):
        if math.prod(tensor.dims) > SMALL:
            for contents in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
                tensor.ClearField(contents)
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError:  # what the file itself says is left
        return light


# -- multiply-accumulates ---------------------------------------------------------------------------------------------------


def _convolution(weight: int) -> Cost:
    """Every output element sums over a kernel: w [O, I/G, ...] at that position of the operands."""
    return lambda tensors, node: tensors[node.output[0]].elements * math.prod(_sizes(tensors, node, weight)[1:])


def _transposed(tensors: Tensors, node: onnx.NodeProto) -> int:
    """Every input element meets a kernel: w [I, O/G, ...]."""
    return math.prod(_sizes(tensors, node, 0)) * math.prod(_sizes(tensors, node, 1)[1:])


def _product(tensors: Tensors, node: onnx.NodeProto) -> int:
    """Every output element sums over the rows of the second operand, or, transposed, over its columns."""
    sizes = _sizes(tensors, node, 3 if node.op_type == "QLinearMatMul" else 1)
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return tensors[node.output[0]].elements * (sizes[-1:] if turned else sizes[-2:] or [0])[0]


def _sizes(tensors: Tensors, node: onnx.NodeProto, position: int) -> list[int]:
    """Of an operand, with 1 for what is not a number; [0] where the node has none there."""
    tensor = tensors[node.input[position]] if position < len(node.input) else NOTHING
    return [d if isinstance(d, int) else 1 for d in tensor.shape]


MACS: dict[str, Cost] = {
    **dict.fromkeys(["Conv", "ConvInteger"], _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    **dict.fromkeys(["Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"], _product),
}

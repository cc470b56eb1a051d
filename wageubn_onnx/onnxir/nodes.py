"""What a model for another runtime is put together from: nodes, and constants of which equal ones are stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import helper, numpy_helper

from wageubn_onnx.graph import IR_VERSION, OPSET, PREFIX
from wageubn_onnx.onnxir.view import Array, branches

M = TypeVar("M", bound=Message)
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
ELEMENTWISE = (
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Cast", "Clip", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not", "Or", "Sign", "Sub", "Where",
)  # fmt: skip


class Nodes:
    """A graph in the making; ``made_by`` is the pass, for the metadata of its nodes."""

    def __init__(self, made_by: str) -> None:
        self.made_by = made_by
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.types: list[onnx.ValueInfoProto] = []

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """``name``, now that of an initializer; whoever gives the same name means the same value."""
        self.constants[name] = np.asarray(value, dtype)
        return name

    def scale(self, exponent: int) -> str:
        """The float32 scalar 2^exponent."""
        return self.constant(f"scale/2^{exponent}", np.ldexp(1.0, exponent), np.float32)

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str,
        like: onnx.NodeProto,
        suffix: str = "",
        domain: str = "",
        **attrs: Any,
    ) -> str:
        """Append a node named as ``like``, with a ``suffix``, and with its metadata; return ``output``."""
        node = helper.make_node(kind, list(inputs), [output], f"{like.name}{suffix}", domain=domain, **attrs)
        props = {p.key: p.value for p in like.metadata_props} | {PREFIX + "pass": self.made_by}
        for key, value in props.items():
            node.metadata_props.add(key=key, value=value)
        self.nodes.append(node)
        return output

    def declare(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Say a tensor's type where onnx's shape inference does not know its operator."""
        self.types.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def model(
        self,
        name: str,
        images: onnx.ValueInfoProto,
        logits: onnx.ValueInfoProto,
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The file's contents, with the type of every tensor."""
        tensors = [numpy_helper.from_array(value, key) for key, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, name, [images], [logits], tensors, value_info=self.types)
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wageubn-onnx")
        helper.set_model_props(model, dict(metadata))
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def retyped(value: onnx.ValueInfoProto, dtype: int) -> onnx.ValueInfoProto:
    """``value`` of another dtype."""
    copy = copied(value)
    copy.type.tensor_type.elem_type = dtype
    return copy


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def import_microsoft(model: onnx.ModelProto) -> None:
    """Let ``model`` have nodes of onnxruntime's own operators."""
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def copied(message: M) -> M:
    """A node, graph or model like it, that belongs to nothing."""
    copy: M = type(message)()
    copy.CopyFrom(message)
    return copy


def only_typed(graph: onnx.GraphProto) -> None:
    """Forget the types of tensors that no node of ``graph`` makes."""
    made = {name for node in graph.node for name in node.output}
    types = [v for v in graph.value_info if v.name in made]
    if len(types) < len(graph.value_info):
        kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in types]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def only_read(graph: onnx.GraphProto) -> None:
    """Forget the initializers that no node of ``graph``, nor of a subgraph, reads: a runtime would warn of them."""
    read = _read(graph)
    kept = [t for t in graph.initializer if t.name in read]
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def _read(graph: onnx.GraphProto) -> set[str]:
    inner = (branch for node in graph.node for branch in branches(node))
    own = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    return own.union(*map(_read, inner))


def without_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` without the nodes of its graph."""
    copy = onnx.ModelProto()
    _copy_fields(model, copy, but="graph")
    _copy_fields(model.graph, copy.graph, but="node")
    return copy


def _copy_fields(source: Any, target: Any, but: str) -> None:
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name == but:
            continue
        if hasattr(value, "extend"):
            getattr(target, name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)

"""What every reader of an ONNX file may rely on, asked once, as the file is loaded, before anything of onnx walks through it.

A file may claim anything: numbers that it does not hold, functions that call themselves, types that ONNX does not have.
onnx.checker looks at what operators ask for; this looks at what the checker, the inliner and numpy take for granted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import AttributeProto, TensorProto

from wageubn_onnx.errors import WageubnError

MOST_NODES = 500_000  # with every function in place of its calls: ten times a ResNet-152's training step
MOST_ELEMENTS = 2**28  # of what a network makes of one image, in one tensor
MOST_RANK = 64  # numpy's own limit
TYPES = frozenset(TensorProto.DataType.values())
FIELDS = {  # where an attribute's value of each type lies
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
# Bytes of an element in raw_data, and the field that holds elements otherwise, with how many entries each takes there
STORED: dict[int, tuple[float, str, float]] = {
    TensorProto.FLOAT: (4, "float_data", 1),
    TensorProto.DOUBLE: (8, "double_data", 1),
    TensorProto.INT64: (8, "int64_data", 1),
    TensorProto.UINT64: (8, "uint64_data", 1),
    TensorProto.UINT32: (4, "uint64_data", 1),
    TensorProto.INT32: (4, "int32_data", 1),
    TensorProto.COMPLEX64: (8, "float_data", 2),
    TensorProto.COMPLEX128: (16, "double_data", 2),
    TensorProto.STRING: (math.inf, "string_data", 1),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16), (2, "int32_data", 1)),
    **{t: (0.5, "int32_data", 0.5) for name, t in TensorProto.DataType.items() if name in ("INT4", "UINT4", "FLOAT4E2M1")},
    **{t: (0.25, "int32_data", 0.25) for name, t in TensorProto.DataType.items() if name in ("INT2", "UINT2")},
}
BYTE = (1, "int32_data", 1)  # of all other types


def check_sound(model: onnx.ModelProto) -> None:
    """Raise WageubnError, in one line that names the place, where ``model`` is not what it claims to be.

    Afterwards: all texts are text; every tensor has a known type and the numbers that its shape claims; every attribute has a
    type and a value of it; every node has an operator and a result; no two functions have one name, none calls itself, and with
    all of them in place of their calls the model has at most `MOST_NODES` nodes. Data in other files must have been loaded.
    """
    _check_text(model)
    for opset in (*model.opset_import, *(o for f in model.functions for o in f.opset_import)):
        if not 0 <= opset.version < 2**31:
            raise WageubnError(f"opset {opset.version} of {opset.domain or 'ai.onnx'!r}: no such version; export the model again")
    for value in _values(model):
        element = value.type.tensor_type.elem_type
        if element not in TYPES:
            raise WageubnError(f"tensor {value.name!r}: has the unknown element type {element}; export the model again")
    for where, graph in _graphs(model):
        for tensor in graph.initializer:
            _check_tensor(tensor, f"initializer {tensor.name!r}")
        for sparse in graph.sparse_initializer:
            _check_sparse(sparse, f"sparse initializer {sparse.values.name!r}")
        _check_nodes(graph.node, where)
    for function in model.functions:
        _check_nodes(function.node, f"function {function.name!r}: ")
    _check_calls(model)


# -- what is where --------------------------------------------------------------------------------------------------------


def _graphs(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The model's graph and all within nodes, with what to say before a node of it."""
    pending = [("", model.graph)]
    pending += [(f"function {f.name!r}: ", g) for f in model.functions for g in _inner(f.node)]
    while pending:
        where, graph = pending.pop()
        yield where, graph
        pending += [(where, inner) for inner in _inner(graph.node)]


def _inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for _, graph in _graphs(model):
        yield from (*graph.input, *graph.output, *graph.value_info)


# -- texts, tensors, nodes ------------------------------------------------------------------------------------------------


def _check_text(message: Any) -> None:
    """Strings that are no UTF-8 come out of protobuf as bytes."""
    pending = [message]
    while pending:
        each = pending.pop()
        for field, value in each.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                pending += value if field.is_repeated else [value]
            elif field.type == FieldDescriptor.TYPE_STRING:
                wrong = next((v for v in (value if field.is_repeated else [value]) if not isinstance(v, str)), None)
                if wrong is not None:
                    raise WageubnError(
                        f"the {field.name} {wrong!r} of a {each.DESCRIPTOR.name} is not UTF-8; export the model again"
                    )


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Type, shape and numbers fit together."""
    if tensor.data_type not in TYPES or tensor.data_type == TensorProto.UNDEFINED:
        raise WageubnError(f"{where}: has the unknown element type {tensor.data_type}; export the model again")
    if tensor.data_location == TensorProto.EXTERNAL:
        raise WageubnError(f"{where}: its data lies in another file, which was not read; save the model with its data")
    shape = list(tensor.dims)
    if min(shape, default=0) < 0 or len(shape) > MOST_RANK:
        raise WageubnError(f"{where}: has the shape {shape[:8]}, which no tensor can have; export the model again")
    size, name, entries = STORED.get(tensor.data_type, BYTE)
    elements = math.prod(shape)
    held, wanted = len(getattr(tensor, name)), math.ceil(elements * entries)
    if tensor.HasField("raw_data"):
        held, wanted, name = len(tensor.raw_data), -1 if math.isinf(size) else math.ceil(elements * size), "bytes"
    if held != wanted or tensor.HasField("segment"):
        raise WageubnError(f"{where}: claims the shape {shape}, but holds {held} {name}; the file is damaged, export it again")


def _check_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    """Its values and their places; whoever writes it out looks at the shape that it claims."""
    _check_tensor(sparse.values, where)
    _check_tensor(sparse.indices, f"{where}, indices")


def _check_nodes(nodes: Iterable[onnx.NodeProto], where: str) -> None:
    for index, node in enumerate(nodes):
        name = f"{where}node {node.name or next(filter(None, node.output), index)!r}"
        if not node.op_type:
            raise WageubnError(f"{name}: has no operator; export the model again")
        if not any(node.output):
            raise WageubnError(f"{name}: {node.op_type} has no result; export the model again")
        for attribute in node.attribute:
            _check_attribute(attribute, f"{name}: attribute {attribute.name!r}")


def _check_attribute(attribute: onnx.AttributeProto, where: str) -> None:
    field = FIELDS.get(attribute.type)
    if attribute.ref_attr_name:
        return
    present = field is not None and (field in LISTS or attribute.HasField(field))
    if not attribute.name or not present:
        raise WageubnError(f"{where}: has no value of its type ({attribute.type}); export the model again")
    for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
        _check_tensor(tensor, where)
    for sparse in ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + list(attribute.sparse_tensors):
        _check_sparse(sparse, where)


LISTS = frozenset(field for field in FIELDS.values() if AttributeProto.DESCRIPTOR.fields_by_name[field].is_repeated)


# -- functions ------------------------------------------------------------------------------------------------------------


def _check_calls(model: onnx.ModelProto) -> None:
    """Count nodes with bodies in place of calls, without putting them there: each function once, callees first."""
    bodies = {(f.domain, f.name, f.overload): list(_with_inner(f.node)) for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(sizes.get((n.domain, n.op_type, n.overload), 1) for n in nodes)

    if len(bodies) < len(model.functions):
        raise WageubnError("two functions have one domain, name and overload; export the model again")
    for root in bodies:
        pending, open_calls = [root], set[tuple[str, str, str]]()
        while pending:
            key = pending[-1]
            waits = {k for n in bodies[key] if (k := (n.domain, n.op_type, n.overload)) in bodies and k not in sizes}
            if key in sizes or not waits:
                sizes.setdefault(key, size(bodies[key]))
                open_calls.discard(pending.pop())
                continue
            open_calls.add(key)
            if waits & open_calls:
                raise WageubnError(f"function {key[1]!r} calls itself; it cannot be inlined, export the model without it")
            pending += sorted(waits)
    total = size(_with_inner(model.graph.node))
    if total > MOST_NODES:
        raise WageubnError(f"{total:,} nodes, with functions in place of their calls; {MOST_NODES:,} can be read at most")


def _with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """``nodes`` and all in graphs within them."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        pending += [inner for graph in _inner([node]) for inner in graph.node]

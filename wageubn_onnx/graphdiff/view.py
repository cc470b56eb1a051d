"""A model as a diff sees it: one flat list of nodes that know what they read and who reads them, whatever the file calls them.

What two files may spell differently and still mean the same is spelled one way here:

* a Constant node and an initializer are a `Constant`; so is data beside the file;
* attributes that are absent have the default of the operator's schema; empty operands and results at the end are dropped;
* graph inputs and outputs are nodes of their own (`INPUT`, `OUTPUT`), an initializer that callers may override is its input's
  default;
* the graphs inside If, Loop and Scan stand beside their owner. What such a graph takes is a node `TAKEN` that reads what its
  owner reads; what it gives are further operands of its owner.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, numpy_helper

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import PREFIX
from wageubn_onnx.symbols import direction

INPUT, OUTPUT, TAKEN = "graph input", "graph output", "input of an inner graph"
PLACES = frozenset({INPUT, OUTPUT, TAKEN})  # these stand for no node of the file

Dim: TypeAlias = "int | str | None"  # None where the file leaves it open


@dataclass(frozen=True)
class TensorType:
    """What the file declares of a tensor: dtype as numpy names it, and its shape, None where there is none."""

    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return self.dtype
        return f"{self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor whose value the file holds. proto: TensorProto, or SparseTensorProto, which is compared by its bytes."""

    name: str
    proto: Any

    @cached_property
    def values(self) -> np.ndarray[Any, Any]:
        """Raises WageubnError where the file's data does not fit its shape, or lies in another file that was not loaded."""
        if isinstance(self.proto, onnx.SparseTensorProto):
            return np.frombuffer(self.proto.SerializeToString(deterministic=True), np.uint8)
        if self.proto.data_location == onnx.TensorProto.EXTERNAL:
            raise WageubnError(f"initializer {self.name!r}: its data lies in another file; load the model with its external data")
        try:
            return numpy_helper.to_array(self.proto)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise WageubnError(f"initializer {self.name!r}: its data cannot be read ({reason}); export the model again") from None

    @cached_property
    def content(self) -> bytes:
        """Dtype, shape and every bit of the values: equal constants have equal ones."""
        values = self.values
        raw = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
        return f"{values.dtype} {values.shape} ".encode() + raw

    @cached_property
    def digest(self) -> bytes:
        """A short stand-in for `content`, good for finding candidates; `equals` decides."""
        return hashlib.blake2b(self.content, digest_size=16).digest()

    def equals(self, other: Constant) -> bool:
        """Dtype, shape and every bit."""
        return self.proto is other.proto or self.content == other.content

    @property
    def type(self) -> TensorType:
        return TensorType(self.values.dtype.name, self.values.shape)


@dataclass(eq=False)
class Tensor:
    """A result of a node. maker, slot: whose, and which; uses: (node, operand's place) of all that read it."""

    name: str
    maker: Node
    slot: int
    type: TensorType | None = None
    uses: list[tuple[Node, int]] = field(default_factory=list)


Operand: TypeAlias = "Tensor | Constant | None"


def default_of(operand: Operand) -> Constant | None:
    """What the operand is where no caller says otherwise: a constant, or the default of an input."""
    return operand.maker.default if isinstance(operand, Tensor) else operand


@dataclass(eq=False)
class Node:
    """A node, an input or an output.

    op: with its domain, if it has one. attributes: name -> what decides equality. protos: name -> as the file or the schema has
    it, for reports; given: those that the file has. owner: the node, and the name of its attribute, in whose graph this one
    stands. facts: its provenance, where the pipeline made it (docs/artifacts.md), without the keys' prefix. position: of an
    input or output, among them. default: of an input.
    """

    index: int
    op: str
    name: str
    attributes: dict[str, Hashable] = field(default_factory=dict)
    protos: dict[str, AttributeProto] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    operands: list[Operand] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    owner: tuple[Node, str] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    position: int = 0
    default: Constant | None = None

    @property
    def is_place(self) -> bool:
        """No node of the file, but an input or an output."""
        return self.op in PLACES

    @property
    def label(self) -> str:
        """What to call it: its name, else its first result's."""
        return self.name or next((r.name for r in self.results if r.name), "") or f"{self.op} without a name"

    @property
    def origin(self) -> tuple[str, str, str]:
        """Layer, direction and data path; empty where the file does not say."""
        path = self.facts.get("role", "")
        return (self.facts.get("layer", ""), direction(path) if path else "", path)

    @cached_property
    def scope(self) -> tuple[str, ...]:
        """The attributes through which its graph is reached from the model's own."""
        return (*self.owner[0].scope, self.owner[1]) if self.owner else ()


@dataclass
class View:
    """A graph or a function's body.

    nodes: makers before readers; spare: constants that nobody reads.
    """

    name: str
    nodes: list[Node]
    spare: list[Constant]
    is_function: bool = False

    @property
    def real(self) -> list[Node]:
        """The nodes of the file."""
        return [node for node in self.nodes if not node.is_place]

    def places(self, op: str) -> list[Node]:
        """Inputs or outputs, in the file's order."""
        return sorted((n for n in self.nodes if n.op == op), key=lambda n: n.position)


def view_model(model: onnx.ModelProto) -> View:
    """The main graph. Raises WageubnError where a name is undefined or defined twice, or nodes wait for each other."""
    reader = _Reader(model.opset_import)
    reader.graph(model.graph, None, {})
    return reader.view(model.graph.name)


def view_function(function: onnx.FunctionProto) -> View:
    """A function's body; its inputs and outputs are matched by place, since callers give them so."""
    reader = _Reader(function.opset_import)
    body = onnx.GraphProto(name=function.name, node=function.node, value_info=function.value_info)
    body.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
    body.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    reader.graph(body, None, {})
    return replace(reader.view(function.name), is_function=True)


class _Reader:
    """Reads one graph with all inside it."""

    def __init__(self, opsets: Iterable[onnx.OperatorSetIdProto]) -> None:
        self.opsets = {plain(o.domain): o.version for o in opsets}
        self.nodes: list[Node] = []
        self.constants: list[Constant] = []

    def view(self, name: str) -> View:
        order = _sorted(self.nodes)
        for index, node in enumerate(order):
            node.index = index
            for slot, operand in enumerate(node.operands):
                if isinstance(operand, Tensor):
                    operand.uses.append((node, slot))
        read = {id(o) for n in order for o in n.operands} | {id(n.default) for n in order}
        return View(name, order, [c for c in self.constants if id(c) not in read])

    def graph(
        self, graph: onnx.GraphProto, owner: tuple[Node, str] | None, outer: Mapping[str, Tensor | Constant]
    ) -> list[Operand]:
        """Take in ``graph``; returns what it gives."""
        types = {v.name: _type(v) for v in (*graph.value_info, *graph.output, *graph.input)}
        own: dict[str, Tensor | Constant] = {}

        def define(name: str, value: Tensor | Constant) -> None:
            if name in own:
                raise WageubnError(f"graph {graph.name!r}: tensor {name!r} is defined twice; export the model again")
            own[name] = value

        held = {t.name: Constant(t.name, t) for t in graph.initializer}
        held |= {t.values.name: Constant(t.values.name, t) for t in graph.sparse_initializer}
        self.constants += held.values()
        for position, value in enumerate(graph.input):
            node = self.add(INPUT if owner is None else TAKEN, value.name, owner)
            node.position, node.default, node.facts = position, held.pop(value.name, None), facts(value)
            if owner is not None:
                node.operands = list(owner[0].operands)
            self.give(node, [value.name], types, define)
        for name, constant in held.items():
            define(name, constant)
        made = []
        for proto in graph.node:
            if proto.op_type == "Constant" and not plain(proto.domain) and (tensor := _constant(proto)) is not None:
                self.constants.append(Constant(proto.output[0], tensor))
                define(proto.output[0], self.constants[-1])
                continue
            node = self.add(function_name(proto.domain, proto.op_type, proto.overload), proto.name, owner)
            node.facts = facts(proto)
            self.give(node, _trimmed(proto.output), types, define)
            made.append((node, proto))
        known = {**outer, **own}

        def resolve(name: str, reader: str) -> Operand:
            if not name:
                return None
            if name not in known:
                raise WageubnError(f"{reader}: reads {name!r}, which nothing makes; export the model again")
            return known[name]

        for node, proto in made:
            node.operands = [resolve(name, f"node {node.label!r}") for name in _trimmed(proto.input)]
            self.attributes(node, proto, known)
        given: list[Operand] = []
        for position, value in enumerate(graph.output):
            operand = resolve(value.name, f"graph {graph.name!r}: its output")
            given.append(operand)
            if owner is None:
                node = self.add(OUTPUT, value.name, None)
                node.position, node.operands = position, [operand]
                node.results = [Tensor(value.name, node, 0, types[value.name])]
        return given

    def add(self, op: str, name: str, owner: tuple[Node, str] | None) -> Node:
        self.nodes.append(Node(len(self.nodes), op, name, owner=owner))
        return self.nodes[-1]

    def give(self, node: Node, names: Sequence[str], types: Mapping[str, TensorType | None], define: Any) -> None:
        """Its results; one without a name is counted but can be read by nobody."""
        node.results = [Tensor(name, node, slot, types.get(name)) for slot, name in enumerate(names)]
        for result in node.results:
            if result.name:
                define(result.name, result)

    def attributes(self, node: Node, proto: onnx.NodeProto, known: Mapping[str, Tensor | Constant]) -> None:
        defaults, keys = _defaults(proto.op_type, plain(proto.domain), self.opsets.get(plain(proto.domain), 0))
        node.protos = defaults | {a.name: a for a in proto.attribute}
        node.attributes, node.given = dict(keys), frozenset(a.name for a in proto.attribute)
        read = len(node.operands)
        for attribute in sorted((a for a in proto.attribute if not _is_implied(a, proto)), key=lambda a: a.name):
            name = attribute.name
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
            if not graphs or attribute.ref_attr_name:
                node.attributes[name] = attribute_key(attribute)
                continue
            arities = []
            for i, inner in enumerate(graphs):
                given = self.graph(inner, (node, name if len(graphs) == 1 else f"{name}[{i}]"), known)
                arities.append((len(inner.input), len(given)))
                node.operands += given
            node.attributes[name] = ("graph", read, *arities)


def _sorted(nodes: list[Node]) -> list[Node]:
    """Makers before readers; nodes that could stand in either order stay in the file's. A file may have them in any order."""
    order: list[Node] = []
    state: dict[int, int] = {}  # 1: waits for its operands, 2: placed
    for root in nodes:
        pending = [root]
        while pending:
            node = pending[-1]
            if state.get(node.index) is None:
                state[node.index] = 1
                makers = [o.maker for o in node.operands if isinstance(o, Tensor)]
                if any(state.get(maker.index) == 1 for maker in makers):
                    raise WageubnError(f"node {node.label!r} waits for its own result; export the model again")
                pending += [maker for maker in reversed(makers) if maker.index not in state]
            else:
                pending.pop()
                if state[node.index] == 1:
                    state[node.index] = 2
                    order.append(node)
    return order


def facts(proto: onnx.NodeProto | onnx.ValueInfoProto) -> dict[str, str]:
    """The provenance that the pipeline wrote: layer, role (the data path), pass, source, bits, format."""
    return {p.key.removeprefix(PREFIX): p.value for p in proto.metadata_props if p.key.startswith(PREFIX)}


def plain(domain: str) -> str:
    """ONNX's own operators have two names for their domain."""
    return "" if domain == "ai.onnx" else domain


def function_name(domain: str, name: str, overload: str) -> str:
    """What a call of a function, or a node of an operator, is known by."""
    return (f"{plain(domain)}:" if plain(domain) else "") + name + (f":{overload}" if overload else "")


def _trimmed(names: Iterable[str]) -> list[str]:
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _type(value: onnx.ValueInfoProto) -> TensorType | None:
    """The declared type; None where there is none. Of sequences and the like, ONNX's own text stands for the dtype."""
    if value.type.WhichOneof("value") != "tensor_type":
        return TensorType(" ".join(str(value.type).split()), None) if value.type.WhichOneof("value") else None
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorType("string" if dtype.hasobject else dtype.name, shape)


def _dim(dim: Any) -> Dim:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _constant(proto: onnx.NodeProto) -> Any:
    """The tensor that a Constant node holds; None for one that takes it from its function's caller."""
    if len(proto.attribute) != 1 or proto.attribute[0].ref_attr_name:
        return None
    attribute = proto.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value", "sparse_value"):
        return value
    kind = {"f": np.float32, "i": np.int64, "s": object}[attribute.name.removeprefix("value_")[0]]
    return numpy_helper.from_array(np.asarray(value, kind))


IMPLIED = {"strides": 1, "dilations": 1, "pads": 0}  # along every axis, whose number no schema can know
WINDOWS = ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "MaxPool", "AveragePool", "LpPool")


def _is_implied(attribute: AttributeProto, node: onnx.NodeProto) -> bool:
    """Whether a window would have it without being told."""
    implied = node.op_type in WINDOWS and not plain(node.domain) and attribute.name in IMPLIED and not attribute.ref_attr_name
    return implied and all(i == IMPLIED[attribute.name] for i in attribute.ints)


@cache
def _defaults(op: str, domain: str, version: int) -> tuple[dict[str, AttributeProto], dict[str, Hashable]]:
    """What the schema says of attributes that are absent, and their keys; nothing for an operator without schema."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return {}, {}
    found = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.type}
    return found, {name: attribute_key(value) for name, value in found.items()}


def attribute_key(attribute: AttributeProto) -> Hashable:
    """What decides whether two attributes are equal: floats by their bits."""
    kind = attribute.type
    if attribute.ref_attr_name:
        return ("of the function", attribute.ref_attr_name)
    if kind in (AttributeProto.FLOAT, AttributeProto.FLOATS):
        values = [attribute.f] if kind == AttributeProto.FLOAT else attribute.floats
        return (kind, struct.pack(f"<{len(values)}f", *values))
    if kind == AttributeProto.TENSOR:
        return (kind, Constant(attribute.name, attribute.t).content)
    if kind in (AttributeProto.INT, AttributeProto.STRING):
        return (kind, onnx.helper.get_attribute_value(attribute))
    if kind in (AttributeProto.INTS, AttributeProto.STRINGS):
        return (kind, tuple(onnx.helper.get_attribute_value(attribute)))
    bare = AttributeProto()
    bare.CopyFrom(attribute)
    bare.ClearField("doc_string")
    return (kind, bare.SerializeToString(deterministic=True))

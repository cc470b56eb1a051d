"""The graph that passes rewrite: onnx-graphsurgeon, plus what it would drop (roles, provenance, functions, versions).

`Model.op` is the only way in which nodes are made. It infers shapes and dtypes at once, names the result after its layer, and
records the provenance of what it made (`Tag`); `to_proto` writes that into the ``metadata_props`` of nodes and inputs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import google.protobuf.message
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from wageubn_onnx.errors import ProofFailed, WageubnError
from wageubn_onnx.external import load_external, refuse_pointer
from wageubn_onnx.onnxir.infer import TensorType, dtype_for, infer
from wageubn_onnx.sound import check_sound
from wageubn_onnx.symbols import SYMBOLS
from wageubn_onnx.version import __version__

G_LOGGER.severity = G_LOGGER.CRITICAL  # what gs has to say of a graph in the making is nothing for users
OPSET = 18  # BitwiseAnd needs 18; onnxruntime 1.17 still reads it
IR_VERSION = 9
DOMAIN = "wageubn"  # the project's own functions
PREFIX = "wageubn."  # of every metadata key
INTEGER_STAGES = ("int_training", "int_eval")

Tensor: TypeAlias = gs.Tensor


class Tag(NamedTuple):
    """Where a node comes from and what it is for.

    layer: the source layer; role: the place that passes look for (W, A, C, BN.mu, E1, ..., or Y, sum, ... without a quantizer);
    made_by: the pass, and where that put it in place of another pass's node, that one before it. source: the nodes of the source
    model that it does the work of; path: the data path that it is on, or serves. Several names have commas between them; what
    does not apply is empty.
    """

    layer: str = ""
    role: str = ""
    made_by: str = ""
    source: str = ""
    path: str = ""


@dataclass
class State:
    """One state tensor of a step: graph input ``key``, graph output ``key + '.next'``; kind W, gamma, beta, bias, ...

    A frozen one is a constant of every step instead; in `forward`, whose parameters are inputs all alike, it is only marked.
    """

    key: str
    kind: str
    layer: str
    value: np.ndarray[Any, Any]  # the initial value, in the stage's dtype
    tensor: Tensor
    after: Tensor | None = None  # the step's output
    info: dict[str, Any] = field(default_factory=dict)  # format: exponent, least and greatest mantissa
    frozen: bool = False

    def assign(self, value: np.ndarray[Any, Any]) -> None:
        """Give it another initial value, of the same dtype."""
        self.value = value
        if isinstance(self.tensor, gs.Constant):
            self.tensor.values = value
        else:
            self.tensor.shape = list(value.shape)


@dataclass
class Model:
    """A graph on its way through the stages.

    tags maps a tensor's name to the tag of the node that makes it. functions holds the FunctionProtos that nodes of domain
    ``wageubn`` call. notes carries what one pass leaves for
    a later one (ranges, expected roles, lowered values). named maps a fixed role of the step (``images``, ``loss``, ...)
    to its tensor.
    """

    stage: str
    graph: gs.Graph
    tags: dict[str, Tag] = field(default_factory=dict)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    named: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)  # parameter key -> its gradient
    notes: dict[str, Any] = field(default_factory=dict)
    composites: dict[Any, Any] = field(default_factory=dict)  # `composites.Composite`, by geometry
    _names: set[str] = field(default_factory=set)
    _shared: dict[str, Tensor] = field(default_factory=dict)  # small constants by name
    _by_role: dict[tuple[str, str | None], list[Tensor]] | None = None  # role and layer (None: all); None: nodes were moved
    _context: Tag = field(default_factory=Tag)

    @staticmethod
    def empty(stage: str, name: str) -> Model:
        return Model(stage, gs.Graph(name=name, opset=OPSET))

    # -- making nodes -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def context(self, **changes: str) -> Iterator[None]:
        """Within it, whatever is made carries these fields of Tag; ``path`` counts for nodes whose role is no data path."""
        before = self._context
        self._context = before._replace(**changes)
        try:
            yield
        finally:
            self._context = before

    def beside(self, tag: Tag) -> contextlib.AbstractContextManager[None]:
        """Within it, whatever is made belongs where ``tag`` does: layer, source and path."""
        return self.context(layer=tag.layer, source=tag.source, path=tag.path)

    def _tag(self, role: str) -> Tag:
        here = self._context
        return Tag(here.layer, role, here.made_by, here.source, role if role in SYMBOLS else here.path)

    def unique(self, name: str) -> str:
        """``name``, or ``name.2``, ``name.3`` ... where it is taken."""
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate

    def op(self, kind: str, *inputs: Tensor | None, name: str = "", role: str = "", **attrs: Any) -> Tensor:
        """Append the standard ONNX node ``kind``; return its first output. ``name`` is a hint, put after the layer's."""
        operands = [gs.Variable.empty() if i is None else i for i in inputs]
        return self._append(kind, "", operands, [infer(kind, operands, attrs)], name or kind, role, attrs)[0]

    def slot(self, x: Tensor, role: str) -> Tensor:
        """An Identity that marks where the quantizer of a data path goes: ``role`` says which."""
        return self.op("Identity", x, name=f"slot_{role}", role=role)

    def call(
        self,
        function: onnx.FunctionProto,
        inputs: Sequence[Tensor],
        types: Sequence[TensorType],
        name: str,
        role: str,
        attrs: dict[str, Any],
    ) -> list[Tensor]:
        """Append a call of a function of this project's domain; ``types`` are its outputs'."""
        known = self.functions.setdefault(function.name, function)
        if known is not function and known != function:
            raise WageubnError(f"function {function.name} is defined twice, differently; give one of them another name")
        return self._append(function.name, DOMAIN, list(inputs), list(types), name, role, attrs)

    def _append(
        self, kind: str, domain: str, inputs: list[Tensor], types: list[TensorType], name: str, role: str, attrs: dict[str, Any]
    ) -> list[Tensor]:
        layer = self._context.layer
        base = self.unique(f"{layer}/{name}" if layer else name)
        outputs = [
            gs.Variable(base if i == 0 else self.unique(f"{base}:{i}"), dtype=t.dtype, shape=t.shape) for i, t in enumerate(types)
        ]
        node = gs.Node(kind, base, attrs=attrs, inputs=inputs, outputs=outputs, domain=domain or None)
        self.graph.nodes.append(node)
        tag = self._tag(role)
        for output in outputs:
            self.tags[output.name] = tag
        self._note_role(outputs[0])
        return outputs

    def constant(self, value: Any, dtype: Any = np.float32, name: str = "const") -> Tensor:
        """An initializer of its own; ``value`` as numpy takes it."""
        layer = self._context.layer
        return gs.Constant(self.unique(f"{layer}/{name}" if layer else name), self._array(value, dtype))

    def ints(self, *values: int) -> Tensor:
        """An int64 list operand (axes, shapes, pads); equal lists share one initializer."""
        name = "ints/" + "_".join(map(str, values))
        if name not in self._shared:
            self._names.add(name)
            self._shared[name] = gs.Constant(name, self._array(values, np.int64))
        return self._shared[name]

    def scalar(self, value: Any, dtype: Any = np.float32) -> Tensor:
        """A scalar constant; equal ones share one initializer."""
        name = f"scalar/{np.dtype(dtype).name}/{value!r}"
        if name not in self._shared:
            self._names.add(name)
            self._shared[name] = gs.Constant(name, self._array(value, dtype))
        return self._shared[name]

    def _array(self, value: Any, dtype: Any) -> np.ndarray[Any, Any]:
        """Raises ProofFailed for an integer beyond ``dtype``: of weights, sizes or options that no trained network has."""
        try:
            return np.asarray(value, dtype)
        except OverflowError:
            where = f"layer {self._context.layer!r}: " if self._context.layer else ""
            raise ProofFailed(f"{where}{value} does not fit {np.dtype(dtype).name}; check the weights and the options") from None

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Tensor:
        tensor = gs.Variable(self.unique(name), dtype=np.dtype(dtype), shape=list(shape))
        self.graph.inputs.append(tensor)
        self.tags[tensor.name] = self._tag("")
        return tensor

    def state(self, key: str, kind: str, layer: str, value: np.ndarray[Any, Any], frozen: bool = False, **info: Any) -> State:
        """A state tensor as graph input; a frozen one as a constant."""
        tensor = gs.Constant(self.unique(key), value) if frozen else self.input(key, value.dtype, value.shape)
        self.tags[key] = self._tag(kind)._replace(layer=layer)
        self.states[key] = State(key, kind, layer, value, tensor, info=dict(info), frozen=frozen)
        return self.states[key]

    @property
    def carried(self) -> dict[str, State]:
        """The states that a step takes and gives back: all but the frozen ones."""
        return {key: state for key, state in self.states.items() if not state.frozen}

    # -- rewriting ----------------------------------------------------------------------------------------------------

    def by_role(self, *roles: str, layer: str | None = None) -> list[Tensor]:
        """The tensors, each the first output of its node, with one of these roles, in graph order; of one ``layer`` or all."""
        if self._by_role is None:
            self._by_role = {}
            for node in self.graph.nodes:
                if node.outputs:
                    self._note_role(node.outputs[0])
        if len(roles) == 1:
            return list(self._by_role.get((roles[0], layer), []))
        tags = ((n.outputs[0], self.tag(n.outputs[0])) for n in self.graph.nodes if n.outputs)
        return [tensor for tensor, tag in tags if tag.role in roles and layer in (None, tag.layer)]

    def _note_role(self, tensor: Tensor) -> None:
        if self._by_role is not None:
            tag = self.tag(tensor)
            for layer in (None, tag.layer):
                self._by_role.setdefault((tag.role, layer), []).append(tensor)

    def reordered(self) -> None:
        """To be told when nodes were removed or sorted."""
        self._by_role = None

    def tag(self, tensor: Tensor) -> Tag:
        return self.tags.get(tensor.name, Tag())

    def replace_uses(self, old: Tensor, new: Tensor, keep: Sequence[gs.Node] = ()) -> None:
        """Every node that reads ``old``, except ``keep`` and the maker of ``new``, reads ``new`` instead."""
        spared = {id(n) for n in (*keep, *new.inputs)}
        for user in list(old.outputs):
            if id(user) in spared:
                continue
            for i, operand in enumerate(user.inputs):
                if operand is old:
                    user.inputs[i] = new
        for state in self.states.values():
            if state.after is old:
                state.after = new
        for key, tensor in self.named.items():
            if tensor is old:
                self.named[key] = new


# -- files ------------------------------------------------------------------------------------------------------------


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The ONNX file ``path``. Raises WageubnError, naming it, where it is missing, no ONNX, truncated or without its data."""
    file = Path(path)
    if not file.is_file():
        raise WageubnError(f"{file}: no such file; give the path of an ONNX model")
    refuse_pointer(file)
    try:
        model = onnx.load(file, load_external_data=False)
    except google.protobuf.message.DecodeError:
        raise WageubnError(f"{file}: not an ONNX file, or a truncated one; export the model again") from None
    load_external(model, file)
    if not model.graph.node:
        raise WageubnError(f"{file}: not an ONNX model (no graph in it)")
    try:
        check_sound(model)
    except WageubnError as error:
        raise WageubnError(f"{file}: {error}") from None
    return model


def to_proto(model: Model, outputs: dict[str, Tensor], parameters: bool = True) -> onnx.ModelProto:
    """The model as a file's contents, ``outputs`` by name: nodes named and tagged, shapes and dtypes of all tensors.

    The parameters of `forward` are defaults that a caller may override; ``parameters`` False leaves them out.
    What no output needs is removed from the model for good; the outputs' names are lent for the file only, since later passes
    put other tensors in their place.
    """
    graph, lent, taken = model.graph, list[tuple[Tensor, str]](), set[int]()
    for name, tensor in outputs.items():
        if not tensor.inputs or id(tensor) in taken:
            with model.beside(model.tag(tensor)), model.context(made_by="outputs"):
                tensor = model.op("Identity", tensor, name="output")
        lent.append((tensor, tensor.name))
        taken.add(id(tensor))
        model.tags[name] = model.tag(tensor)
        tensor.name = name
        graph.outputs.append(tensor)
    sort(graph, graph.outputs)
    model.reordered()
    proto = _exported(model)
    if model.stage == "forward" and parameters:
        add_parameters(proto, {key: state.value for key, state in model.states.items()})
    graph.outputs.clear()
    for tensor, name in lent:
        tensor.name = name
    return proto


def sort(graph: gs.Graph, needed: Sequence[Tensor] | None = None) -> None:
    """Order the nodes by depth: after those whose results they read, equal depths as they were; in linear time.

    With ``needed``, nodes that these tensors do not depend on are removed.
    """
    order: list[gs.Node] = []
    depths: dict[int, int] = {}
    kept = {id(node) for node in graph.nodes} if needed is None else _needed(needed)
    for root in (node for node in graph.nodes if id(node) in kept):
        pending = [root]
        while pending:
            node = pending[-1]
            makers = [maker for tensor in node.inputs for maker in tensor.inputs]
            waits_for = next((maker for maker in makers if id(maker) not in depths), None)
            if waits_for is not None:
                pending.append(waits_for)
                if len(pending) > len(graph.nodes):
                    raise WageubnError(f"node {node.name!r} waits for its own result; this is a fault of a pass")
                continue
            pending.pop()
            if id(node) not in depths:
                depths[id(node)] = 1 + max((depths[id(maker)] for maker in makers), default=-1)
                order.append(node)
    for node in graph.nodes:
        if id(node) not in depths:
            node.inputs.clear()
            node.outputs.clear()
    graph.nodes = sorted(order, key=lambda node: depths[id(node)])


def _needed(tensors: Sequence[Tensor]) -> set[int]:
    """ids of the nodes that ``tensors`` depend on."""
    found = set[int]()
    pending = [node for tensor in tensors for node in tensor.inputs]
    while pending:
        node = pending.pop()
        if id(node) not in found:
            found.add(id(node))
            pending += [maker for tensor in node.inputs for maker in tensor.inputs]
    return found


def add_parameters(proto: onnx.ModelProto, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Give inputs of ``proto`` these defaults."""
    for name, value in values.items():
        tensor = proto.graph.initializer.add(name=name, dims=value.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor.raw_data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def next_states(model: Model) -> dict[str, Tensor]:
    """The step's state outputs: ``key.next`` for every state that the step advances."""
    return {f"{key}.next": state.after for key, state in model.states.items() if state.after is not None}


def _exported(model: Model) -> onnx.ModelProto:
    proto = onnx.ModelProto(ir_version=IR_VERSION, producer_name="wageubn-onnx", producer_version=__version__)
    proto.opset_import.add(domain="", version=OPSET)
    _fill(proto.graph, model)
    used = _called(proto.graph.node, model.functions)
    if used:
        proto.opset_import.add(domain=DOMAIN, version=1)
        proto.functions.extend(model.functions[name] for name in used)
    proto.metadata_props.add(key=PREFIX + "stage", value=model.stage)
    if "expected" in model.notes:
        proto.metadata_props.add(key=PREFIX + "expected", value=json.dumps(model.notes["expected"], sort_keys=True))
    if "constants" in model.notes:
        stored = {t.name for t in proto.graph.initializer}
        kept = {name: quantizers for name, quantizers in model.notes["constants"].items() if name in stored}
        proto.metadata_props.add(key=PREFIX + "constants", value=json.dumps(kept, sort_keys=True))
    if "recipe" in model.notes:
        proto.metadata_props.add(key=PREFIX + "recipe", value=model.notes["recipe"])
    if model.stage in INTEGER_STAGES:  # what the overflow proof starts from
        ranges = {v.name: _range(model.states[v.name]) for v in proto.graph.input if v.name in model.states}
        proto.metadata_props.add(key=PREFIX + "ranges", value=json.dumps(ranges, sort_keys=True))
    return proto


def _fill(graph: onnx.GraphProto, model: Model) -> None:
    """Write nodes, constants and the types of all tensors. (`gs.export_onnx` does the same, three times slower.)"""
    graph.name = model.graph.name
    ends = {tensor.name for tensor in (*model.graph.inputs, *model.graph.outputs)}
    constants, variables = dict[str, Tensor](), dict[str, Tensor]()
    for node in model.graph.nodes:
        made = graph.node.add(op_type=node.op, name=node.name, input=[t.name for t in node.inputs])
        made.output.extend(t.name for t in node.outputs)
        if node.domain:
            made.domain = node.domain
        made.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in node.attrs.items())
        _describe(made, model.tag(node.outputs[0]), _format(node.attrs) if "role" in node.attrs else ())
        for tensor in (*node.inputs, *node.outputs):
            (constants if isinstance(tensor, gs.Constant) else variables)[tensor.name] = tensor
    graph.initializer.extend(numpy_helper.from_array(tensor.values, name) for name, tensor in constants.items())
    types: dict[Any, onnx.TypeProto] = {}
    for typed, tensors in (
        (graph.input, model.graph.inputs),
        (graph.output, model.graph.outputs),
        (graph.value_info, [t for name, t in variables.items() if name and name not in ends]),
    ):
        for tensor in tensors:
            dtype, shape = np.dtype(tensor.dtype), tuple(tensor.shape)
            if (dtype, shape) not in types:
                element = onnx.helper.np_dtype_to_tensor_dtype(dtype)
                types[dtype, shape] = onnx.helper.make_tensor_type_proto(element, shape)
            typed.add(name=tensor.name, type=types[dtype, shape])
    for value, tensor in zip(graph.input, model.graph.inputs, strict=True):
        state = model.states.get(value.name)
        _describe(value, model.tag(tensor), _state_format(state) if state else ())


KEYS = tuple(PREFIX + key for key in ("source", "layer", "role", "pass", "bits", "format"))


def _describe(made: onnx.NodeProto | onnx.ValueInfoProto, tag: Tag, form: tuple[str, ...]) -> None:
    """Write what a file says of a node or an input, but what is empty. ``form``: bits and format of what is on a grid."""
    props = made.metadata_props
    for key, value in zip(KEYS, (tag.source, tag.layer, tag.path, tag.made_by, *form), strict=False):
        if value:
            props.add(key=key, value=value)


def _format(attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """Bits and format of what a quantize node makes (docs/artifacts.md)."""
    return _mantissas(attrs["bits"], attrs.get("lo", -math.inf), attrs.get("hi", math.inf), attrs.get("exponent"))


def _state_format(state: State) -> tuple[str, ...]:
    """The same of a state; nothing of one in float."""
    if not {"exponent", "limit"} <= state.info.keys():
        return ()
    limit = int(state.info["limit"])
    return _mantissas(limit.bit_length() + 1, state.info.get("least", -limit), limit, state.info["exponent"])


@functools.cache
def _mantissas(bits: int, least: float, greatest: float, exponent: int | None) -> tuple[str, str]:
    """``int8*2^-7``: the narrowest dtype that holds all mantissas, ``int`` where they have no bounds; their unit."""
    bounded = math.isfinite(least) and math.isfinite(greatest)
    dtype = dtype_for(int(least), int(greatest)).name if bounded else "int"
    return str(bits), f"{dtype}*2^{'run-time' if exponent is None else exponent}"


def _range(state: State) -> list[int]:
    """The least and the greatest mantissa of a state."""
    return [int(state.info["least"]), int(state.info["limit"])]


def _called(nodes: Sequence[onnx.NodeProto], functions: dict[str, onnx.FunctionProto]) -> list[str]:
    """Names of the functions that ``nodes`` call, each after those that it calls: onnx's reference evaluator needs that."""
    order: list[str] = []
    for name in sorted({n.op_type for n in nodes if n.domain == DOMAIN}):
        order += [f for f in (*_called(functions[name].node, functions), name) if f not in order]
    return order


def node_tag(node: onnx.NodeProto | onnx.ValueInfoProto) -> Tag:
    """The tag that `to_proto` wrote into a node or an input, its role the data path; all empty where another program made it."""
    props = {p.key: p.value for p in node.metadata_props}
    layer, role, made_by, source = (props.get(PREFIX + key, "") for key in ("layer", "role", "pass", "source"))
    return Tag(layer, role, made_by, source, path=role)

"""Whether an integer stage is what the conversion makes of its recipe: every output, computed from the inputs by the same nodes.

The stage is made a second time (`remade`), and the two graphs are compared by value numbering: a number stands for an operator
with its attributes and the numbers of its operands, so two tensors of one number are computed alike, whatever they are called.
Nodes that no output needs do not count. This proves every path at once: what a product, a statistic or a state reads has come
through the very quantizers of the conversion, on their grids and within their bounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.composites import kind_of
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import INTEGER_STAGES, PREFIX, Model, node_tag, to_proto
from wageubn_onnx.proofs.form import metadata
from wageubn_onnx.recipe import Recipe

TRAINING, EVALUATION = INTEGER_STAGES
Parameters = Mapping[str, np.ndarray[Any, Any]]
UNSOUND = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)  # of passes, from a forged recipe


@dataclass(frozen=True)
class Made:
    """A stage made a second time of ``recipe``: its file's contents, and the models behind it."""

    recipe: Recipe
    proto: onnx.ModelProto
    integer: Model
    quantized: Model

    @property
    def frozen(self) -> frozenset[str]:
        """The constants that are parameters of frozen layers, or were computed of them."""
        return frozenset(self.integer.notes["frozen"])


def remade(recipe: Recipe, stage: str, parameters: Parameters | None = None) -> Made:
    """``stage`` from its recipe, with these parameters or others of the same magnitudes, which are in no graph but as constants
    of frozen layers. Raises WageubnError where nothing can be made of it.
    """
    try:
        return _remade(recipe, stage, parameters)
    except UNSOUND as error:
        raise WageubnError(f"contradicts itself: {type(error).__name__} {error}") from error


def _remade(recipe: Recipe, stage: str, parameters: Parameters | None) -> Made:
    from wageubn_onnx import pipeline  # which writes recipes

    source = recipe.source(parameters)
    config = replace(recipe.config, profile=recipe.config.profile.on(*pipeline.places(source)))
    if stage == EVALUATION:
        quantized = pipeline.QUANT_EVAL(source, config)
        _file(quantized, config)
        integer = pipeline.INT_EVAL(quantized, config)
    else:
        step = pipeline.FP_TRAINING(source, config)
        _file(step, config)
        step.notes["errors"] = defaultdict(lambda: 1.0)  # initial exponents, which are states
        quantized = pipeline.QUANT_TRAINING(step, config)
        _file(quantized, config)
        integer = pipeline.INT_TRAINING(quantized, config)
    return Made(recipe, _file(integer, config), integer, quantized)


def _file(model: Model, config: Config) -> onnx.ModelProto:
    """What `convert` writes of a stage; it leaves the stage without nodes that no output needs."""
    from wageubn_onnx.pipeline import step_outputs

    outputs = step_outputs(model, config) if "loss" in model.named else {"logits": model.named["logits"]}
    return to_proto(model, outputs, parameters=False)


def differences(file: onnx.ModelProto, made: onnx.ModelProto, free: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """(place, message) of whatever ``file``, which has passed `form.faults`, computes otherwise than ``made``.

    free: constants of which only the names, dtypes and shapes have to be equal.
    """
    yield from _interfaces(file, made)
    yield from _metadata(file, made)
    yield from _composites(file, made)
    numbers: dict[Hashable, int] = {}
    ours, theirs = (_Numbered(model, numbers, free) for model in (made, file))
    yield from _places(ours, theirs)


def _interfaces(file: onnx.ModelProto, made: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    for kind in ("input", "output"):
        has, wanted = ({v.name: _type(v) for v in getattr(m.graph, kind)} for m in (file, made))
        for name in wanted.keys() - has.keys():
            yield f"{kind} {name!r}", "is missing"
        for name in has.keys() - wanted.keys():
            yield f"{kind} {name!r}", "is none of the conversion's"
        for name in has.keys() & wanted.keys():
            if has[name] != wanted[name]:
                yield f"{kind} {name!r}", f"is {has[name]}, and {wanted[name]} in the conversion"
    opsets = [sorted((o.domain, o.version) for o in m.opset_import) for m in (file, made)]
    if opsets[0] != opsets[1]:
        yield "the model", f"imports the operator sets {opsets[0]}, and the conversion {opsets[1]}"


def _composites(file: onnx.ModelProto, made: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    bodies = {function.name: function for function in made.functions}
    for function in file.functions:
        if kind_of(function.name) and function != bodies.get(function.name, function):
            yield f"function {function.name!r}", "is not the conversion's composite of that name"


def _type(value: onnx.ValueInfoProto) -> str:
    """Dtype and shape, as text."""
    tensor = value.type.tensor_type
    dims = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim] if tensor.HasField("shape") else ["?"]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{', '.join(dims)}]"


def _metadata(file: onnx.ModelProto, made: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    for key in ("expected", "constants", "ranges"):
        if metadata(file, key) != metadata(made, key):
            yield "the model", f"its metadata {PREFIX}{key} is not the conversion's"
    stages = ([p.value for p in m.metadata_props if p.key == PREFIX + "stage"] for m in (file, made))
    if next(stages) != next(stages):
        yield "the model", f"its metadata {PREFIX}stage is not the conversion's"


class _Numbered:
    """A graph with a number for every tensor; ``numbers`` are shared with the graph that it is compared with."""

    def __init__(self, model: onnx.ModelProto, numbers: dict[Hashable, int], free: Collection[str]) -> None:
        graph = model.graph
        self.outputs = [o.name for o in graph.output]
        self.makers: dict[str, tuple[onnx.NodeProto, int]] = {}
        self.what: dict[str, Hashable] = {v.name: ("input", v.name) for v in graph.input} | {"": ("none",)}
        for tensor in graph.initializer:
            shape = tensor.data_type, tuple(tensor.dims)
            value = tensor.name if tensor.name in free else onnx.numpy_helper.to_array(tensor).tobytes()
            self.what[tensor.name] = ("constant", *shape, value)
        self.of = {name: numbers.setdefault(what, len(numbers)) for name, what in self.what.items()}
        for node in graph.node:
            self.what[node.output[0]] = what = kind(node)
            number = numbers.setdefault((what, *(self.of[name] for name in node.input)), len(numbers))
            for index, name in enumerate(node.output):
                self.makers[name] = node, index
                self.of[name] = numbers.setdefault((number, index), len(numbers))

    def describe(self, name: str) -> str:
        if name in self.makers:
            node, _ = self.makers[name]
            return f"{node.op_type} {node.name or name!r}"
        what = self.what[name]
        return f"{what[0] if isinstance(what, tuple) else ''} {name!r}"


def kind(node: onnx.NodeProto) -> Hashable:
    """What a node does to its operands."""
    attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
    return node.domain, node.op_type, node.overload, len(node.output), attributes


def _places(made: _Numbered, file: _Numbered) -> Iterator[tuple[str, str]]:
    """The first nodes, from the outputs on down, at which the file leaves the conversion."""
    pending = [(name, name, f"output {name!r}") for name in reversed(made.outputs) if name in file.of]
    seen = set[tuple[str, str]]()
    while pending:
        ours, theirs, reader = pending.pop()
        if made.of[ours] == file.of[theirs] or (ours, theirs) in seen:
            continue
        seen.add((ours, theirs))
        if ours not in made.makers or theirs not in file.makers:
            yield reader, f"reads {file.describe(theirs)}, and in the conversion {made.describe(ours)}"
            continue
        (node, index), (other, place) = made.makers[ours], file.makers[theirs]
        where = f"node {node.name!r}"
        if (node.domain, node.op_type, node.overload, index) != (other.domain, other.op_type, other.overload, place):
            tag = node_tag(node)
            yield where, f"of layer {tag.layer!r}, path {tag.role or '-'}: {reader} reads {file.describe(theirs)} in its place"
        elif kind(node) != kind(other):
            yield where, f"{node.op_type} has {_attribute(node, other)}"
        elif len(node.input) != len(other.input):
            yield where, f"{node.op_type} has {len(other.input)} operands, and {len(node.input)} in the conversion"
        else:
            pending += [(a, b, where) for a, b in zip(node.input, other.input, strict=True)]


def _attribute(node: onnx.NodeProto, other: onnx.NodeProto) -> str:
    """What differs between the attributes of two nodes."""
    wanted, found = ({a.name: _plain(a) for a in n.attribute} for n in (node, other))
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            return f"{name} {found.get(name, 'absent')}, and {wanted.get(name, 'absent')} in the conversion"
    return "other attributes or outputs than in the conversion"


def _plain(attribute: onnx.AttributeProto) -> str:
    return " ".join(str(onnx.helper.printable_attribute(attribute)).split("=", 1)[-1].split())[:80]

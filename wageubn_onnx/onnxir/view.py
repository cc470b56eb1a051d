"""What an ONNX graph holds, by the names of its tensors: who makes and reads them, what is constant, and their types."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
BRANCHING = ("If", "Loop", "Scan")
V = TypeVar("V")


class View:
    """A graph as it is when each part of it is first asked for: the view follows no later change.

    around: the graph that a branch of an If belongs to. A name is looked up in the branch first, then around it.
    """

    def __init__(self, graph: onnx.GraphProto, around: View | None = None) -> None:
        self.graph, self.around = graph, around
        self._shapes: dict[str, list[int]] = {}

    @cached_property
    def makers(self) -> MutableMapping[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return self._scoped("makers", {name: node for node in self.graph.node for name in node.output})

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes of this graph that read each tensor, once an operand; of those in branches see `captured`."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def constants(self) -> MutableMapping[str, onnx.TensorProto]:
        """The initializers."""
        return self._scoped("constants", {t.name: t for t in self.graph.initializer})

    @cached_property
    def types(self) -> MutableMapping[str, onnx.TypeProto.Tensor]:
        """What the graph says of inputs, outputs and what nodes make."""
        stated = (*self.graph.input, *self.graph.output, *self.graph.value_info)
        return self._scoped("types", {v.name: v.type.tensor_type for v in stated})

    def _scoped(self, part: str, own: dict[str, V]) -> MutableMapping[str, V]:
        return own if self.around is None else ChainMap(own, getattr(self.around, part))

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that makes tensor ``name``, if it is of one of ``kinds``, or of any where none is given."""
        node = self.makers.get(name)
        return node if node is not None and (not kinds or node.op_type in kinds) else None

    def constant(self, name: str) -> Array | None:
        """The value of an initializer."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def scalar(self, name: str) -> int | None:
        """The value of an initializer with one element."""
        value = self.constant(name)
        return int(value.item()) if value is not None and value.size == 1 else None

    def is_typed(self, name: str) -> bool:
        """Whether the shape is known, and so the dtype."""
        return name in self.constants or name in self.types and self.types[name].HasField("shape")

    def dtype(self, name: str) -> int:
        """The onnx.TensorProto.DataType, UNDEFINED where it is not known."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self.types[name].elem_type) if name in self.types else onnx.TensorProto.UNDEFINED

    def shape(self, name: str) -> list[int]:
        """0 for a size without a number; [] where nothing is known."""
        if name not in self._shapes:
            known = self.constants.get(name)
            if known is None and name not in self.types:
                return []
            self._shapes[name] = [d.dim_value for d in self.types[name].shape.dim] if known is None else list(known.dims)
        return list(self._shapes[name])

    def sizes(self, name: str) -> list[int | str]:
        """The same, with the name of a size in the place of its number."""
        named = [d.dim_param for d in self.types[name].shape.dim] if name in self.types else []
        return [name or size for name, size in zip(named, self.shape(name), strict=True)] if named else list(self.shape(name))


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in ``node``."""
    return [a.g for a in node.attribute if a.HasField("g")] if node.op_type in BRANCHING else []


def captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """What subgraphs read of the graph around them: these tensors keep their names."""
    graphs = [graph for node in nodes for graph in branches(node)]
    inner = [node for graph in graphs for node in graph.node]
    made = {name for node in inner for name in node.output} | {t.name for graph in graphs for t in graph.initializer}
    return {name for node in inner for name in node.input if name not in made} | (captured(inner) if inner else set())


def constant_value(attribute: onnx.AttributeProto) -> Array:
    """What a Constant node holds: ``value``, or one of its short forms for integers."""
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    return np.asarray(onnx.helper.get_attribute_value(attribute), np.int64)

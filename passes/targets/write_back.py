"""Trained parameters into the source model's own file: each into the operand that the conversion took it from.

An operand is found by the provenance in `forward` (the source's nodes) and by its value: it must hold what `forward` started
from, as it is, reshaped or transposed. A bias that the conversion moved into the running mean of a BN is added again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.graph import node_tag
from wageubn_onnx.onnxir.nodes import copied
from wageubn_onnx.onnxir.view import Array, View

MEAN = 3  # the position of BatchNormalization's running mean


class Unplaced(Exception):
    """A parameter of which the source has no operand to write to; the message says which, for a note."""


@dataclass(frozen=True)
class Place:
    """An operand of a node of the source, and how to write there what `forward` holds."""

    node: onnx.NodeProto
    position: int
    spelled: Callable[[Array], Array]


def write_back(
    source: onnx.ModelProto, forward: onnx.ModelProto, trained: Mapping[str, Array], keys: Collection[str]
) -> onnx.ModelProto:
    """A copy of ``source`` with the parameters ``keys`` of ``trained``. Raises Unplaced where one has no place in it."""
    written, started = copied(source), View(forward.graph)
    index = _Index(written)
    found: list[tuple[str, Place]] = []
    for node in forward.graph.node:
        origins = [index.nodes[name] for name in node_tag(node).source.split(",") if name in index.nodes]
        for position, key in enumerate(node.input):
            if key in keys:
                found.append((key, index.place(key, position, numpy_helper.to_array(started.constants[key]), origins)))
    for key, place in found:
        index.write(place, key, place.spelled(trained[key]).astype(np.float32))
    return written


class _Index(View):
    """A model's nodes, also by name or first output, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model.graph)
        self.lists_initializers = model.ir_version < 4  # then every initializer is an input, too
        self.nodes = {node.name or node.output[0]: node for node in model.graph.node}

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or a Constant node, also behind an Identity."""
        node = self.maker(name, "Identity", "Constant")
        if node is None:
            return super().constant(name)
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        return numpy_helper.to_array(node.attribute[0].t) if node.attribute[0].name == "value" else None

    def place(self, key: str, position: int, started: Array, origins: list[onnx.NodeProto]) -> Place:
        """Where ``key``, operand ``position`` of the node that does the work of ``origins``, came from."""
        for node, at in _candidates(origins, position):
            value = self.constant(node.input[at])
            if value is None or value.dtype != np.float32:
                continue
            spelled = _spelling(value, started)
            if spelled is None and node.op_type == "BatchNormalization" and at == MEAN:
                spelled = self._with_bias(node, value, started)
            if spelled is not None:
                return Place(node, at, spelled)
        raise Unplaced(f"{key!r} is spelled otherwise in the source")

    def _with_bias(self, node: onnx.NodeProto, value: Array, started: Array) -> Callable[[Array], Array] | None:
        product = self.maker(node.input[0])
        bias = self.constant(product.input[2]) if product is not None and len(product.input) > 2 else None
        if bias is None or bias.shape != value.shape or not np.array_equal(value - bias, started):
            return None
        return lambda mean: mean + bias

    def write(self, place: Place, key: str, value: Array) -> None:
        """In the operand's initializer, if nothing else reads that; else in a new one."""
        name = place.node.input[place.position]
        if name in self.constants and len(self.readers[name]) == 1:
            self.constants[name].CopyFrom(numpy_helper.from_array(value, name))
            return
        fresh = key
        while fresh in self.constants or fresh in self.makers:
            fresh += ".trained"
        self.constants[fresh] = self.graph.initializer.add()
        self.constants[fresh].CopyFrom(numpy_helper.from_array(value, fresh))
        if self.lists_initializers:
            self.graph.input.append(onnx.helper.make_tensor_value_info(fresh, onnx.TensorProto.FLOAT, value.shape))
        place.node.input[place.position] = fresh


def _candidates(origins: list[onnx.NodeProto], position: int) -> Iterator[tuple[onnx.NodeProto, int]]:
    """The same operand of the first node; then any of the nodes that it was merged with, such as the Add of a bias."""
    if origins and len(origins[0].input) > position:
        yield origins[0], position
    for node in origins[1:]:
        yield from ((node, at) for at in range(len(node.input)))


def _spelling(value: Array, started: Array) -> Callable[[Array], Array] | None:
    """How the source spells ``started``, which it holds as ``value``; None where that is something else."""
    if value.size != started.size:
        return None
    if np.array_equal(value.reshape(started.shape), started):
        return lambda trained: trained.reshape(value.shape)
    if value.ndim == 2 and value.shape == started.shape[::-1] and np.array_equal(value.T, started):
        return lambda trained: trained.T
    return None

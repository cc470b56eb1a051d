"""Read the user's file and bring it to the project's opset: what is not a sound ONNX network is refused here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, version_converter

from wageubn_onnx.errors import UnsupportedOperator, WageubnError
from wageubn_onnx.graph import OPSET, load_model
from wageubn_onnx.passes.importing import training_graph
from wageubn_onnx.passes.importing.constants import NARROW, SMALL, dense

OLDEST = 7  # before it, operators broadcast along named axes
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Source:
    """A network at opset 18 whose large weights are inputs of the graph, and those weights by name.

    Protobuf serialises 2 GB at most: so onnx's converter, checker and shape inference take a network of any size. found: what a
    training artifact holds beside the network, [] for others. ``files``: the paths read; ``frozen``: parameters not to train;
    ``notes``: lines for the user.
    """

    model: onnx.ModelProto
    weights: dict[str, np.ndarray[Any, Any]]
    found: dict[str, list[str]]


def read_source(path: str | os.PathLike[str]) -> Source:
    """Load, check and convert ``path`` to opset 18: an ONNX file, or a folder of onnxruntime-training's artifacts, or its model.

    Functions are inlined, BatchNormalization and Dropout as in inference. Raises WageubnError, naming the file, where it is
    missing, is not ONNX, is truncated, is invalid, holds weights that are not finite, or has an opset that onnx's version
    converter cannot bring over; UnsupportedOperator for an operator of another domain.
    """
    file = Path(path)
    if file.is_dir():
        file = training_graph.model_file(file)
    model = load_model(file)
    found: dict[str, list[str]] = {}
    if training_graph.is_training_graph(model):
        model, found = training_graph.recover(model, file)
    _make_dense(model.graph)
    weights = _detach(model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    foreign = next((n for n in model.graph.node if n.domain not in STANDARD), None)
    if foreign is not None:
        raise UnsupportedOperator(
            f"{file}: node {foreign.name or foreign.output[0]!r}: operator {foreign.domain}.{foreign.op_type} is not standard "
            "ONNX; export the float network, without a runtime's own optimizations"
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise WageubnError(f"{file}: not a valid ONNX model ({_line(error)})") from None
    _name_nodes(model.graph)
    _drop_empty_lists(model.graph)
    values = {tensor.name: _numbers(tensor, file) for tensor in weights}
    for tensor in model.graph.initializer:
        _numbers(tensor, file)
    _as_in_inference(model.graph)
    return Source(_to_opset(model, file), values, found)


def _make_dense(graph: onnx.GraphProto) -> None:
    """Sparse initializers and Constants become ordinary ones."""
    graph.initializer.extend(dense(sparse) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                attribute.CopyFrom(helper.make_attribute("value", dense(attribute.sparse_tensor)))


def _drop_empty_lists(graph: onnx.GraphProto) -> None:
    """An attribute without any number, which runtimes take for one that is not given."""
    for node in graph.node:
        given = [a for a in node.attribute if a.type not in (a.INTS, a.FLOATS, a.STRINGS) or a.ints or a.floats or a.strings]
        if len(given) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(given)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """A node without a name, or with another's, is called after what it makes."""
    taken = set[str]()
    for node in graph.node:
        if not node.name or node.name in taken:
            node.name = next((name for name in node.output if name), node.op_type)
        taken.add(node.name)


def _detach(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Take the large initializers and the values of large Constant nodes out of ``model``; graph inputs stay in their place."""
    graph = model.graph
    held = {node.output[0]: a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"}
    held = {name: tensor for name, tensor in held.items() if _size(tensor) > SMALL}
    for name, tensor in held.items():
        tensor.name = name
    weights = [t for t in graph.initializer if _size(t) > SMALL] + list(held.values())
    small = [t for t in graph.initializer if _size(t) <= SMALL]
    nodes = [node for node in graph.node if node.output[:1] != [] and node.output[0] not in held]
    del graph.initializer[:]
    graph.initializer.extend(small)
    if held:
        del graph.node[:]
        graph.node.extend(nodes)
    listed = {i.name for i in graph.input}
    graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights if t.name not in listed)
    return weights


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _numbers(tensor: onnx.TensorProto, file: Path) -> np.ndarray[Any, Any]:
    array = numpy_helper.to_array(tensor)
    is_float = array.dtype.kind == "f" or array.dtype.name in NARROW
    if is_float and (np.isnan(array).any() or (array.size > 1 and not np.isfinite(array).all())):  # one number may be a bound
        raise WageubnError(f"{file}: weights {tensor.name!r} hold NaN or infinity; export a healthy checkpoint")
    return array


def _as_in_inference(graph: onnx.GraphProto) -> None:
    """BatchNormalization and Dropout give one output; what else training asks of them is dropped where nothing reads it.

    `forward` says what the trained network computes: BN takes its running statistics, Dropout passes its input.
    """
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type not in ("BatchNormalization", "Dropout"):
            continue
        extra = next((name for name in node.output[1:] if name in read), None)
        if extra is not None:
            raise UnsupportedOperator(f"node {node.name!r}: {node.op_type}'s second output {extra!r} is read; it has no rule")
        del node.output[1:]
        if node.op_type == "Dropout":
            del node.input[1:]
        if _pop(node, "spatial", 1) != 1:
            raise UnsupportedOperator(f"node {node.name!r}: BatchNormalization with spatial=0 (statistics a pixel) has no rule")
        _pop(node, "training_mode", 0)


def _pop(node: onnx.NodeProto, name: str, default: int) -> int:
    """Remove an integer attribute and return it."""
    found = [a for a in node.attribute if a.name == name]
    for attribute in found:
        node.attribute.remove(attribute)
    return int(found[0].i) if found else default


def _to_opset(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    version = next((o.version for o in model.opset_import if o.domain in STANDARD), 0)
    if version == OPSET:
        return model
    if version < OLDEST:
        raise WageubnError(f"{file}: opset {version}; the oldest that is read is {OLDEST}: export it with opset {OPSET}")
    if OPSET < version <= onnx.defs.onnx_opset_version() and _is_valid(model, OPSET):
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, version_converter.ConvertError, onnx.shape_inference.InferenceError) as error:
        raise WageubnError(
            f"{file}: opset {version} cannot be brought to {OPSET} ({_line(error)}); export it with opset {OPSET}"
        ) from None


def _is_valid(model: onnx.ModelProto, version: int) -> bool:
    """Whether the nodes are legal at an older opset, which the model then says: most operators only gained types since.

    The converter has no way down for some that did.
    """
    (standard,) = (o for o in model.opset_import if o.domain in STANDARD)
    newer, standard.version = standard.version, version
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        standard.version = newer
        return False
    return True


def _line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())[:200]

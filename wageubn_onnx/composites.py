"""Composites: operations of a training step that have no standard operator, as functions of domain ``wageubn``.

A composite keeps its name from the gradient rules to the target: ``ConvWeightGradient_5b1c09e2`` is a call, whose attributes say
its window, and whose body is the plain nodes that compute it. A body is made once for all calls with operands of the same dtypes,
shapes and bounds; the digits are a digest of it, so that one name has one body in every file. A target puts bodies of its own in
the place of those that it has a better way for (passes/targets), and takes the others as they are (`expanded`).
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, OPSET, Model, Tensor, sort
from wageubn_onnx.onnxir.infer import TensorType
from wageubn_onnx.onnxir.inline import inline

DIGITS = 8

Body = Callable[[Model, list[Tensor]], list[Tensor]]
"""Emits a composite's nodes into an empty model, for these operands, and returns its results."""


def kind_of(op_type: str) -> str:
    """``ConvWeightGradient`` of ``ConvWeightGradient_5b1c09e2``; empty for the name of what is no composite."""
    kind, _, digits = op_type.rpartition("_")
    return kind if len(digits) == DIGITS and set(digits) <= set(string.hexdigits) else ""


@dataclass(frozen=True)
class Composite:
    """function: as the file has it; types: of its results; body: its nodes, for the operands ``formal``; results: of the body."""

    function: onnx.FunctionProto
    types: list[TensorType]
    body: Model
    formal: list[Tensor]
    results: list[Tensor]


def emit(
    g: Model,
    kind: str,
    operands: Sequence[Tensor],
    body: Body,
    key: Hashable = None,
    name: str = "",
    role: str = "",
    **attrs: Any,
) -> list[Tensor]:
    """Append a call of the composite ``kind``; return its results.

    key: what the body depends on beside the operands' types and ``attrs``, which the call has and the body need not read.
    """
    types = tuple((str(operand.dtype), tuple(operand.shape)) for operand in operands)
    geometry = (kind, types, tuple(sorted((name, str(value)) for name, value in attrs.items())), key)
    if geometry not in g.composites:
        g.composites[geometry] = made(kind, operands, body, attrs)
    found = g.composites[geometry]
    results = g.call(found.function, operands, found.types, name or kind, role, attrs)
    results[0].inputs[0].composite = found
    return results


def of(node: gs.Node) -> Composite | None:
    """What ``node`` calls; None of a node that calls no composite."""
    found: Composite | None = getattr(node, "composite", None)
    return found


def made(kind: str, operands: Sequence[Tensor], body: Body, attrs: Collection[str] = ()) -> Composite:
    """The composite ``kind`` for operands of these types, whose calls have the attributes ``attrs``."""
    inner = Model.empty("body", kind)
    formal = [gs.Variable(inner.unique(f"x{i}"), o.dtype, list(o.shape)) for i, o in enumerate(operands)]
    results = body(inner, list(formal))
    sort(inner.graph, results)
    function = onnx.FunctionProto(domain=DOMAIN, input=[f.name for f in formal], output=[r.name for r in results])
    function.opset_import.add(domain="", version=OPSET)
    function.attribute.extend(sorted(attrs))
    read = {i.name: i for node in inner.graph.nodes for i in node.inputs}
    known = {o.name for node in inner.graph.nodes for o in node.outputs} | {f.name for f in formal}
    for name, tensor in read.items():
        if isinstance(tensor, gs.Constant):
            value = numpy_helper.from_array(tensor.values, name)
            function.node.append(onnx.helper.make_node("Constant", [], [name], value=value))
        elif name not in known:
            raise WageubnError(f"composite {kind} reads {name!r}, which is none of its operands; this is a fault of a pass")
    for node in inner.graph.nodes:
        copy = function.node.add(op_type=node.op, name=node.name, input=[t.name for t in node.inputs])
        copy.output.extend(t.name for t in node.outputs)
        copy.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in node.attrs.items())
        for tensor in node.outputs:
            element = onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)
            function.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, element, list(tensor.shape)))
    function.name = f"{kind}_"
    function.name = name_of(function)
    return Composite(function, [TensorType(r.dtype, list(r.shape)) for r in results], inner, formal, results)


def name_of(function: onnx.FunctionProto) -> str:
    """The name that a composite with this body must have; of its own name only the kind counts."""
    kind, _, _ = function.name.rpartition("_")
    body = onnx.FunctionProto()
    body.CopyFrom(function)
    body.name = kind
    return f"{kind}_{hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()[:DIGITS]}"


def expanded(model: onnx.ModelProto, but: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of ``model`` in which composites are their bodies' nodes, typed, and their constants initializers, equal ones once.

    Quantizers and all other functions stay, and so do composites of the kinds ``but``.
    """
    flat = inline(model, lambda function: bool(kind_of(function.name)) and kind_of(function.name) not in but)
    nodes, stored, renamed = list[onnx.NodeProto](), dict[bytes, str](), dict[str, str]()
    outside = {name for node in model.graph.node for name in node.output}
    for node in flat.graph.node:
        if node.op_type == "Constant" and node.output[0] not in outside:
            tensor = node.attribute[0].t
            tensor.name = ""
            content, name = tensor.SerializeToString(deterministic=True), node.output[0]
            renamed[name] = stored.setdefault(content, name)
            if renamed[name] == name:
                tensor.name = name
                flat.graph.initializer.append(tensor)
        else:
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            kept.input[:] = [renamed.get(name, name) for name in node.input]
            nodes.append(kept)
    del flat.graph.node[:]
    flat.graph.node.extend(nodes)
    return flat

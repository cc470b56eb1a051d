"""The audit: on a file alone, that nothing float is left or overflows, that layers have their quantizers and kernels are exact.

Functions are inlined first, so that nothing hides in a body, and onnx's strict shape inference must then find every tensor's
dtype.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx.inliner

from wageubn_onnx.graph import DOMAIN, PREFIX, load_model, node_tag
from wageubn_onnx.proofs.ranges import Proof, prove
from wageubn_onnx.proofs.targets import FORBIDDEN, PAIRED_LIMIT
from wageubn_onnx.stages import INTEGERS

T = onnx.TensorProto

FLOAT_OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
}  # float by their scales
# Operators through which a product's operand may come from its quantizer: they only move elements, or flip the sign bit
MOVES = {"Reshape", "Transpose", "Slice", "Concat", "Pad", "Unsqueeze", "Flatten", "Identity", "Cast", "BitwiseXor", "MaxPool"}
PRODUCTS = {"ConvInteger", "MatMulInteger"}


@dataclass(frozen=True)
class Finding:
    """kind: float, dtype, kernel, gap, operand or range; where: the node, tensor or layer; message: what is wrong."""

    kind: str
    where: str
    message: str


@dataclass
class Report:
    """The audit's answer: ok where nothing was found. coverage counts what was looked at; proof: of integer models only."""

    findings: list[Finding] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def ok(self) -> bool:
        return not self.findings


def audit(path: str | os.PathLike[str]) -> Report:
    """Audit the ONNX file ``path``. Raises WageubnError where it cannot be read as ONNX."""
    return audit_model(load_model(path))


def audit_model(model: onnx.ModelProto) -> Report:
    """Audit a model in memory."""
    report = Report()
    _check_written_floats(model, report)
    _check_inlined(model, report)
    _check_coverage(model, report)
    _check_operands(model, report)
    if not any(f.kind in ("float", "dtype") for f in report.findings):
        _check_ranges(model, report)
    return report


def _check_written_floats(model: onnx.ModelProto, report: Report) -> None:
    """Whatever the file itself declares: inputs, outputs, initializers, constants, casts, also inside function bodies."""
    graph = model.graph
    for kind, values in (("input", graph.input), ("output", graph.output), ("tensor", graph.value_info)):
        for value in values:
            _note_dtype(report, value.type.tensor_type.elem_type, f"{kind} {value.name!r}", kind in ("input", "output"))
    for sparse in graph.sparse_initializer:
        report.findings.append(
            Finding("dtype", f"sparse initializer {sparse.values.name!r}", "is not looked into; write it dense")
        )
    for initializer in graph.initializer:
        _note_dtype(report, initializer.data_type, f"initializer {initializer.name!r}", False)
    for where, node in _all_nodes(model):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name.startswith("value_float"):
                report.findings.append(Finding("float", where, "a float Constant"))
            if attribute.HasField("t"):
                _note_dtype(report, attribute.t.data_type, where, False)
            if node.op_type == "Cast" and attribute.name == "to" and not attribute.ref_attr_name:
                _note_dtype(report, attribute.i, f"{where} (Cast)", False)
        if node.op_type in FLOAT_OPS:
            report.findings.append(Finding("float", where, f"{node.op_type} computes through float scales"))


def _all_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Every node with a name for it, function bodies and subgraphs included."""

    def walk(nodes: Any, prefix: str) -> Iterator[tuple[str, onnx.NodeProto]]:
        for index, node in enumerate(nodes):
            where = f"{prefix}node {node.name or f'{index} ({node.op_type} -> {node.output[0]})'!s}"
            yield where, node
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from walk(graph.node, f"{where}, subgraph ")

    yield from walk(model.graph.node, "")
    for function in model.functions:
        yield from walk(function.node, f"function {function.name}, ")


def _note_dtype(report: Report, dtype: int, where: str, is_interface: bool) -> None:
    if dtype in INTEGERS or (dtype == T.BOOL and not is_interface):
        return
    name = T.DataType.Name(dtype) if dtype else "of unknown type"
    report.findings.append(Finding("float" if dtype in FLOATS else "dtype", where, f"is {name}; only integers may be here"))


FLOATS = {T.FLOAT, T.DOUBLE, T.FLOAT16, T.BFLOAT16}


def _check_inlined(model: onnx.ModelProto, report: Report) -> None:
    """After inlining: a dtype for every tensor, all integer, and no operator where its kernel is wrong."""
    flat = onnx.inliner.inline_local_functions(model)
    try:
        flat = onnx.shape_inference.infer_shapes(flat, check_type=True, strict_mode=True, data_prop=False)
    except onnx.shape_inference.InferenceError as error:
        report.findings.append(Finding("dtype", "the inlined graph", f"types do not fit: {' '.join(str(error).split())[:200]}"))
        return
    graph = flat.graph
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    dtypes |= {t.name: t.data_type for t in graph.initializer}
    seen = {f.where for f in report.findings}
    for node in graph.node:
        for name in node.output:
            dtype = dtypes.get(name, 0)
            if name and dtype not in INTEGERS and dtype != T.BOOL and f"tensor {name!r}" not in seen:
                _note_dtype(report, dtype, f"tensor {name!r}", False)
        operand = dtypes.get(node.input[0], 0) if node.input else 0
        reason = FORBIDDEN.get((node.op_type, operand))
        if reason:
            report.findings.append(Finding("kernel", f"node {node.name or node.output[0]!r}", f"{node.op_type}: {reason}"))
    report.coverage["tensors"] = sum(len(n.output) for n in graph.node)
    report.coverage["nodes"] = len(graph.node)


def _check_coverage(model: onnx.ModelProto, report: Report) -> None:
    """Every layer has the quantizers that its float form asked for."""
    expected = expected_quantizers(model)
    if expected is None:
        report.findings.append(
            Finding("gap", "the model", "does not say which quantizers it should have; only converted models do")
        )
        return
    present = present_quantizers(model)
    for layer, roles in expected.items():
        for role in roles:
            if (layer, role) not in present:
                report.findings.append(Finding("gap", f"layer {layer!r}", f"has no quantizer of role {role}"))
    report.coverage["layers"] = len(expected)
    report.coverage["quantizers"] = sum(map(len, expected.values()))


def expected_quantizers(model: onnx.ModelProto) -> dict[str, list[str]] | None:
    """Layer -> roles of the quantizers that it must have, as the file declares them; None where it does not."""
    declared = next((p.value for p in model.metadata_props if p.key == PREFIX + "expected"), None)
    return None if declared is None else json.loads(declared)


def present_quantizers(model: onnx.ModelProto) -> dict[tuple[str, str], list[onnx.NodeProto]]:
    """(layer, role) -> the quantize nodes there that an output needs: an exponent alone does not count.

    Those of frozen parameters have been computed by the conversion; the constant that came of them counts, and has no node.
    """
    present: dict[tuple[str, str], list[onnx.NodeProto]] = {}
    needed = _needed(model)
    for node in model.graph.node:  # its first output is the mantissa
        if _is_quantizer(node) and node.output[0] in needed:
            tag = node_tag(node)
            present.setdefault((tag.layer, tag.role), []).append(node)
    for name, quantizers in _constants(model).items():
        for layer, role in quantizers if name in needed else ():
            present.setdefault((layer, role), [])
    return present


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and any(a.name == "role" for a in node.attribute)


def _constants(model: onnx.ModelProto) -> dict[str, list[tuple[str, str]]]:
    """The integer constants that the conversion quantized: name -> (layer, role) of each quantizer, as the file declares it."""
    declared = next((p.value for p in model.metadata_props if p.key == PREFIX + "constants"), "{}")
    stored = {t.name for t in model.graph.initializer if t.data_type in INTEGERS}
    return {name: quantizers for name, quantizers in json.loads(declared).items() if name in stored}


def _needed(model: onnx.ModelProto) -> set[str]:
    """The tensors that an output needs: a quantizer whose result nobody reads, but to count it, guards nothing."""
    counters = {name for node in model.graph.node if node_tag(node).made_by == "health" for name in node.output}
    needed = {o.name for o in model.graph.output} - counters
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return needed


def _check_operands(model: onnx.ModelProto, report: Report) -> None:
    """Both operands of every integer product come from quantize nodes through operators that only move elements, or are constants
    that the conversion quantized.

    Where the second operand is int8, the first must end at 129: x86 without VNNI adds pairs of uint8 by int8 products in int16.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    dtypes = {t.name: t.data_type for t in model.graph.initializer}
    constants = _constants(model)
    count = 0
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        count += 1
        where = f"node {node.name!r}"
        sources = [_sources(operand, makers) for operand in node.input[:2]]
        for _, loose in sources:
            if loose and loose not in constants:
                report.findings.append(Finding("operand", where, f"{loose!r} reaches it without a quantizer"))
        if len(node.input) > 3 and dtypes.get(node.input[3]) == T.INT8:
            greatest = max((a.f for n in sources[0][0] for a in n.attribute if a.name == "hi"), default=math.inf)
            if greatest > PAIRED_LIMIT:
                report.findings.append(Finding("kernel", where, f"uint8 up to {greatest:.0f} by int8 is inexact without VNNI"))
    report.coverage["products"] = count


def _check_ranges(model: onnx.ModelProto, report: Report) -> None:
    """Nothing overflows, for any input and in any step (ranges.py)."""
    report.proof = prove(model)
    report.findings += [Finding("range", doubt.where, doubt.message) for doubt in report.proof.doubts]
    report.coverage["states"] = report.proof.states


def _sources(name: str, makers: dict[str, onnx.NodeProto]) -> tuple[list[onnx.NodeProto], str]:
    """The quantize nodes that an operand comes from, and the first tensor on the way back that none makes (empty: none)."""
    pending, seen, quantizers = [name], set(), []
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        node = makers.get(current)
        if node is not None and _is_quantizer(node):
            quantizers.append(node)
        elif node is None or node.op_type not in MOVES:
            return quantizers, current
        else:
            pending += node.input if node.op_type == "Concat" else node.input[:1]
    return quantizers, ""

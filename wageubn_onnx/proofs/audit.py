"""The audit: that nothing float is left or overflows, that layers have their quantizers and kernels are exact.

Nothing that a file says of itself is taken for granted. Its form comes first (form.py), its functions must be the package's own,
and shapes and dtypes are inferred from the inputs on, without those that it declares. Then two proofs stand side by side: that
every tensor is computed as the conversion computes it (derivation.py), and that no tensor can overflow (ranges.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.numpy_helper

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.composites import expanded
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, load_model, node_tag
from wageubn_onnx.proofs.derivation import EVALUATION, TRAINING, Made, differences, remade
from wageubn_onnx.proofs.form import composite_faults, dtype_name, faults, invalid, metadata
from wageubn_onnx.proofs.origin import Origin
from wageubn_onnx.proofs.ranges import Proof, prove
from wageubn_onnx.proofs.targets import FORBIDDEN, MICROSOFT, PAIRED_LIMIT, SCALES
from wageubn_onnx.recipe import Recipe
from wageubn_onnx.stages import INTEGERS
from wageubn_onnx.version import __version__

T = onnx.TensorProto

FLOAT_OPS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", *SCALES}  # by their scales
# Operators through which a product's operand may come from its quantizer: they move elements, bound them or flip the sign bit
MOVES = {
    "Clip",
    "Gather",
    "Reshape",
    "Transpose",
    "Slice",
    "Concat",
    "Pad",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Cast",
    "BitwiseXor",
    "MaxPool",
}
PRODUCTS = {"ConvInteger": (0, 1), "MatMulInteger": (0, 1), "QLinearConv": (0, 3), "QGemm": (0, 3)}  # their two operands


@dataclass(frozen=True)
class Finding:
    """kind: form, float, dtype, shape, derivation, kernel, gap, operand, range, manifest or session; where: the node, tensor or
    layer; message: what is wrong.
    """

    kind: str
    where: str
    message: str


@dataclass
class Report:
    """The audit's answer: ok where nothing was found. coverage counts what was looked at; proof: of integer models only.

    float_parameters: the declared scales of QLinear operators, powers of two all of them: their arithmetic is a shift.
    uncompared: what there was nothing to compare with, a sentence each. made: what the conversion makes of the file's recipe.
    """

    findings: list[Finding] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    float_parameters: list[str] = field(default_factory=list)
    proof: Proof | None = None
    uncompared: list[str] = field(default_factory=list)
    made: Made | None = None

    @property
    def ok(self) -> bool:
        return not self.findings


def audit(path: str | os.PathLike[str]) -> Report:
    """Audit the ONNX file ``path``. Raises WageubnError where it cannot be read as ONNX."""
    return audit_model(load_model(path))


def audit_model(model: onnx.ModelProto, origin: Origin | None = None) -> Report:
    """Audit a model in memory. ``origin``: what it must have been converted from; None: what its recipe says."""
    report = Report()
    report.findings += [Finding("form", where, message) for where, message in composite_faults(model)]
    if not report.ok:
        return report
    called, model = model, expanded(model)
    report.findings += [Finding("form", where, message) for where, message in faults(model)]
    if report.ok:
        _check_float_parameters(model, report)
    _check_written_floats(model, report)
    if any(f.kind == "form" for f in report.findings):
        return report  # nothing else could be relied on
    _check_derivation(called, origin, report)
    report.findings += [Finding("form", where, message) for where, message in invalid(model)]
    if any(f.kind == "form" for f in report.findings):
        return report
    _check_inlined(model, report)
    _check_coverage(model, report)
    _check_operands(model, report)
    if not any(f.kind in ("float", "dtype", "shape") for f in report.findings):
        _check_ranges(model, report)
    return report


def audit_folder(folder: ArtifactFolder, with_session: bool = True) -> list[tuple[Path, Report]]:
    """Audit the integer models that the manifest of ``folder`` names, against what the folder says that they were made of.

    with_session: also open what a training session would run. Raises WageubnError where a file cannot be read.
    """
    sections = ("step", "eval") if folder.manifest.get("step") else ("eval",)  # an export may be of inference alone
    origin = Origin.of(folder.path, folder.manifest) if (folder.path / "forward.onnx").is_file() else None
    reports = [(path, audit_model(load_model(path), origin)) for path in map(folder.model, sections)]
    if with_session and origin is not None and len(sections) == 2:
        _check_session(folder, reports[0][1])
    return reports


def _check_session(folder: ArtifactFolder, report: Report) -> None:
    """What a session makes of the step for this machine can be made, and opens."""
    from wageubn_onnx.runtime.session import TrainingSession  # which loads onnxruntime

    try:
        TrainingSession(folder.path)
    except WageubnError as error:
        report.findings.append(Finding("session", str(folder.path), str(error)))


def _check_derivation(model: onnx.ModelProto, origin: Origin | None, report: Report) -> None:
    """The model is what the conversion makes of its recipe, and the recipe that of ``origin``.

    The recipe of what only takes images, an export for inference, is not known: it has no states, and its weights are constants.
    """
    declared = metadata(model, "recipe")
    inputs = {value.name for value in model.graph.input}
    if declared is None:
        if len(inputs) == 1:
            report.uncompared.append("has no recipe: its quantizers are held to the list that the file itself declares")
        else:
            report.findings.append(Finding("gap", "the model", "does not say what it was made of (metadata wageubn.recipe)"))
        return
    try:
        recipe = Recipe.from_json(declared)
        parameters = None if origin is None else origin.parameters
        report.made = made = remade(recipe, TRAINING if "labels" in inputs else EVALUATION, parameters)
        if origin is not None:
            report.findings += [Finding("manifest", *found) for found in origin.differences(recipe, made)]
    except WageubnError as error:
        report.findings.append(Finding("derivation", "metadata wageubn.recipe", str(error)))
        return
    free = made.frozen if origin is None else ()
    report.findings += [Finding("derivation", *found) for found in differences(model, made.proto, free)]
    if model.producer_version != __version__:
        report.uncompared.append(f"was made by wageubn-onnx {model.producer_version}, and compared with what {__version__} makes")
    if origin is None:
        report.uncompared.append("network and formats are those of the file's own recipe; audit its folder to compare them, too")


def _check_float_parameters(model: onnx.ModelProto, report: Report) -> None:
    """What metadata ``wageubn.float_parameters`` names: float initializers, powers of two, read as scales and as nothing else."""
    declared = metadata(model, "float_parameters") or []
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == T.FLOAT}
    elsewhere = {
        name
        for node in model.graph.node
        for position, name in enumerate(node.input)
        if position not in SCALES.get(node.op_type, ())
    }
    for name in declared:
        where = f"float parameter {name!r}"
        if name not in values or name in elsewhere:
            report.findings.append(Finding("float", where, "is not a scale of QLinear operators alone"))
        elif not (values[name] > 0).all() or (np.frexp(values[name])[0] != 0.5).any():
            report.findings.append(Finding("float", where, "is not a power of two"))
        else:
            report.float_parameters.append(name)
    if declared:
        report.coverage["float parameters"] = len(report.float_parameters)


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
        if initializer.name not in report.float_parameters:
            _note_dtype(report, initializer.data_type, f"initializer {initializer.name!r}", False)
    for where, node in _all_nodes(model):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name.startswith("value_float"):
                report.findings.append(Finding("float", where, "a float Constant"))
            if attribute.HasField("t"):
                _note_dtype(report, attribute.t.data_type, where, False)
            if node.op_type == "Cast" and attribute.name == "to" and not attribute.ref_attr_name:
                _note_dtype(report, attribute.i, f"{where} (Cast)", False)
        scales = [node.input[i] for i in SCALES.get(node.op_type, ()) if i < len(node.input)]
        if node.op_type in FLOAT_OPS and (not scales or not set(scales) <= set(report.float_parameters)):
            report.findings.append(Finding("float", where, f"{node.op_type} computes through float scales"))


def _all_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Every node with a name for it, function bodies and subgraphs included."""

    def walk(nodes: Any, prefix: str) -> Iterator[tuple[str, onnx.NodeProto]]:
        for index, node in enumerate(nodes):
            where = f"{prefix}node {node.name or f'{index} ({node.op_type} -> {node.output[:1]})'}"
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
    name = dtype_name(dtype) if dtype else "of unknown type"
    report.findings.append(Finding("float" if dtype in FLOATS else "dtype", where, f"is {name}; only integers may be here"))


FLOATS = {T.FLOAT, T.DOUBLE, T.FLOAT16, T.BFLOAT16}


def _check_inlined(model: onnx.ModelProto, report: Report) -> None:
    """After inlining: a dtype for every tensor, all integer, a size, and no operator where its kernel is wrong."""
    try:
        graph = inferred(onnx.inliner.inline_local_functions(model)).graph
    except onnx.shape_inference.InferenceError as error:
        report.findings.append(Finding("dtype", "the inlined graph", f"types do not fit: {' '.join(str(error).split())[:200]}"))
        return
    types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.output, *graph.value_info)}
    dtypes = {name: t.elem_type for name, t in types.items()} | {t.name: t.data_type for t in graph.initializer}
    any_batch = any(d.dim_param for value in graph.input for d in value.type.tensor_type.shape.dim)
    seen = {f.where for f in report.findings}
    for node in graph.node:
        for name in filter(None, node.output):
            dtype, where = dtypes.get(name, 0), f"tensor {name!r}"
            if dtype not in INTEGERS and dtype != T.BOOL and where not in seen:
                _note_dtype(report, dtype, where, False)
            elif not _is_sized(types[name], any_batch):
                report.findings.append(Finding("shape", where, "has a size that does not follow from the inputs'"))
        operand = dtypes.get(node.input[0], 0) if node.input else 0
        reason = FORBIDDEN.get((node.op_type, operand))
        if reason:
            report.findings.append(Finding("kernel", f"node {node.name or node.output[0]!r}", f"{node.op_type}: {reason}"))
    report.coverage["tensors"] = sum(len(n.output) for n in graph.node)
    report.coverage["nodes"] = len(graph.node)


def _check_declared(model: onnx.ModelProto, fresh: onnx.ModelProto, report: Report) -> None:
    """What the file says of its tensors, which other programs may believe, is what was inferred."""
    found = {v.name: v.type.tensor_type for v in (*fresh.graph.value_info, *fresh.graph.output)}
    for value in (*model.graph.value_info, *model.graph.output):
        said, true = value.type.tensor_type, found.get(value.name)
        if true is None:
            report.findings.append(Finding("shape", f"tensor {value.name!r}", "is described, and no node makes it"))
        elif said.elem_type != true.elem_type or (said.HasField("shape") and not _agree(said, true)):
            report.findings.append(Finding("shape", f"tensor {value.name!r}", "is not of the dtype and shape that the file says"))


def _agree(a: onnx.TypeProto.Tensor, b: onnx.TypeProto.Tensor) -> bool:
    sizes = [[d.dim_value if d.HasField("dim_value") else None for d in t.shape.dim] for t in (a, b)]
    return len(sizes[0]) == len(sizes[1]) and all(None in pair or pair[0] == pair[1] for pair in zip(*sizes, strict=True))


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose dtypes and shapes are inferred from its inputs and constants, and from nothing else that the file declares.

    Results of onnxruntime's own operators, of which onnx infers nothing, stay what the file says; they are in exports for
    inference alone. Raises onnx.shape_inference.InferenceError where they do not fit.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    unknown = {name for node in model.graph.node if node.domain == MICROSOFT for name in node.output}
    del bare.graph.value_info[:]
    bare.graph.value_info.extend(value for value in model.graph.value_info if value.name in unknown)
    for output in bare.graph.output:
        if output.name not in unknown:
            output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)


def _is_sized(tensor: onnx.TypeProto.Tensor, any_batch: bool) -> bool:
    """Whether every dimension is a number, but for those that follow from any batch."""
    return tensor.HasField("shape") and all(d.HasField("dim_value") or (any_batch and d.dim_param) for d in tensor.shape.dim)


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
    """Layer -> roles of the quantizers that it must have, as the file declares them; None where it does not.

    Raises WageubnError where that cannot be read.
    """
    found: dict[str, list[str]] | None = metadata(model, "expected")
    return found


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
    return node.op_type in SCALES or node.domain == DOMAIN and any(a.name == "role" for a in node.attribute)


def _constants(model: onnx.ModelProto) -> dict[str, list[tuple[str, str]]]:
    """The integer constants that the conversion quantized: name -> (layer, role) of each quantizer, as the file declares it."""
    stored = {t.name for t in model.graph.initializer if t.data_type in INTEGERS}
    declared = metadata(model, "constants") or {}
    return {name: [(layer, role) for layer, role in quantizers] for name, quantizers in declared.items() if name in stored}


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
        sources = [_sources(node.input[i], makers) for i in PRODUCTS[node.op_type]]
        for _, loose in sources:
            if loose and loose not in constants:
                report.findings.append(Finding("operand", where, f"{loose!r} reaches it without a quantizer"))
        by_ranges = all(n.op_type in SCALES for n in sources[0][0])  # which say what a Clip does
        if len(node.input) > 3 and dtypes.get(node.input[3]) == T.INT8 and not by_ranges:
            greatest = max((a.f for n in sources[0][0] for a in n.attribute if a.name == "hi"), default=math.inf)
            if greatest > PAIRED_LIMIT:
                report.findings.append(Finding("kernel", where, f"uint8 up to {greatest:.0f} by int8 is inexact without VNNI"))
    report.coverage["products"] = count


def _check_ranges(model: onnx.ModelProto, report: Report) -> None:
    """Nothing overflows, for any input and in any step (ranges.py)."""
    fresh = inferred(model)
    _check_declared(model, fresh, report)
    report.proof = prove(fresh)
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

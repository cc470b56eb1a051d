"""The form of a file, looked at before anything else is: whatever the other checks rely on, so that they may.

After it, functions are the package's own, every call and operator is known and has its operands, every tensor is made once and
before it is read, and the metadata can be read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import numpy_helper

from wageubn_onnx.composites import kind_of, name_of
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, PREFIX
from wageubn_onnx.proofs.contracts import CONTRACTS
from wageubn_onnx.proofs.targets import MICROSOFT, SCALES

Fault = tuple[str, str]  # where, what
FUNCTIONS = {(f.domain, f.name, f.overload): f for f in (contract.function for contract in CONTRACTS.values())}


T = onnx.TensorProto


def dtype_name(dtype: int) -> str:
    """Of an onnx.TensorProto.DataType; of what is none, a number."""
    return str(T.DataType.Name(dtype)) if dtype in T.DataType.values() else f"dtype {dtype}"


def _is_pair(value: Any, kind: type) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is kind for v in value)


# Metadata in JSON: key -> its type, and what its entries must be
METADATA = {
    "expected": (dict, lambda v: isinstance(v, list) and all(isinstance(role, str) for role in v)),
    "constants": (dict, lambda v: isinstance(v, list) and all(_is_pair(quantizer, str) for quantizer in v)),
    "ranges": (dict, lambda v: _is_pair(v, int)),
    "float_parameters": (list, lambda v: isinstance(v, str)),
    "recipe": (dict, lambda v: True),
}


def metadata(model: onnx.ModelProto, key: str) -> Any:
    """What the file declares under ``wageubn.KEY``, of `METADATA`; None where it does not.

    Raises WageubnError where that is no JSON, of another type, or declared twice.
    """
    texts = [p.value for p in model.metadata_props if p.key == PREFIX + key]
    if not texts:
        return None
    if len(texts) > 1:
        raise WageubnError(f"metadata {PREFIX}{key} is declared {len(texts)} times")
    kind, fits = METADATA[key]
    try:
        value = json.loads(texts[0])
    except (ValueError, RecursionError):
        raise WageubnError(f"metadata {PREFIX}{key} is no JSON") from None
    if not isinstance(value, kind) or not all(map(fits, value.values() if isinstance(value, dict) else value)):
        raise WageubnError(f"metadata {PREFIX}{key} is not of the type that docs/artifacts.md says")
    return value


def composite_faults(model: onnx.ModelProto) -> Iterator[Fault]:
    """Whatever keeps composites from being taken for their bodies' nodes.

    A body must be what its name is a digest of, and consist of standard operators alone.
    """
    imports = sorted((o.domain, o.version) for o in model.opset_import)
    for function in model.functions:
        if not kind_of(function.name):
            continue
        where = f"function {function.name!r}"
        wanted = [(o.domain, o.version) for o in function.opset_import]
        if not set(wanted) <= set(imports):
            yield "the model", f"imports the operator sets {imports}, and its function {function.name!r} is written for {wanted}"
        if name_of(function) != function.name:
            yield where, "is not the body that its name is a digest of"
        elif function.domain != DOMAIN or function.overload or any(node.domain for node in function.node):
            yield where, "calls functions, and a composite consists of standard operators"
        elif any(a.HasField("g") or a.graphs or a.ref_attr_name for node in function.node for a in node.attribute):
            yield where, "has graphs or attributes of its call within, and a composite consists of plain nodes"


def faults(model: onnx.ModelProto) -> Iterator[Fault]:
    """Whatever keeps the file, whose composites are expanded, from being looked into; nothing of it is run or inlined."""
    for key in METADATA:
        try:
            metadata(model, key)
        except WageubnError as error:
            yield "the model", str(error)
    imports = Counter(o.domain for o in model.opset_import)
    for domain, count in imports.items():
        if count > 1 or domain not in ("", DOMAIN, MICROSOFT):
            yield "the model", f"imports the operator set {domain!r}" + (" twice" if count > 1 else ", of which nothing is known")
    if model.training_info:
        yield "the model", "has training graphs of its own (training_info)"
    yield from _functions(model)
    yield from _tensors(model)
    yield from _nodes(model)


def _functions(model: onnx.ModelProto) -> Iterator[Fault]:
    """Every function must be the package's own: the same name, body, attributes and operator sets."""
    count = Counter((f.domain, f.name, f.overload) for f in model.functions)
    for function in model.functions:
        key = function.domain, function.name, function.overload
        where = f"function {function.name!r}" + (f", overload {function.overload!r}" if function.overload else "")
        if function.domain != DOMAIN:
            yield where, f"of domain {function.domain!r} is foreign; only functions of {DOMAIN!r} may be here"
        elif key not in FUNCTIONS:
            yield where, "is none of this package's functions"
        elif function != FUNCTIONS[key]:
            yield where, "is not this package's function of that name: its body, attributes or operator sets differ"
        elif count[key] > 1:
            yield where, "is defined twice"


def _tensors(model: onnx.ModelProto) -> Iterator[Fault]:
    graph = model.graph
    stored = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    for tensor in stored:
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, NotImplementedError):
            yield f"tensor {tensor.name!r}", "does not hold the elements that it claims"
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.WhichOneof("value") != "tensor_type" or value.type.tensor_type.elem_type not in T.DataType.values():
            yield f"tensor {value.name!r}", "is no tensor of a known dtype"


def _nodes(model: onnx.ModelProto) -> Iterator[Fault]:
    """Every node: known, with its operands, which are made before it; every tensor made once."""
    graph = model.graph
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    inputs, made = {value.name for value in graph.input}, {""}
    for kind, names in (("input", graph.input), ("initializer", graph.initializer)):
        for name in (named.name for named in names):
            if name in made:
                is_default = kind == "initializer" and name in inputs
                yield f"{kind} {name!r}", "is an input that a caller may override" if is_default else "has no name of its own"
            made.add(name)
    for index, node in enumerate(graph.node):
        where = f"node {node.name or index!r}"
        if not node.output or not node.output[0]:
            yield where, f"{node.op_type} has no output"
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            yield where, f"{node.op_type} has a graph within, which is not looked into"
        if len({a.name for a in node.attribute}) < len(node.attribute):
            yield where, f"{node.op_type} has an attribute twice"
        yield from ((where, fault) for fault in _call(node, functions))
        for name in node.input:
            if name not in made:
                yield where, f"reads {name!r}, which nothing makes before it"
        for name in filter(None, node.output):
            if name in made:
                yield where, f"makes {name!r}, which is there already"
            made.add(name)
    outputs = [output.name for output in graph.output]
    for name in outputs:
        if name not in made or not name:
            yield f"output {name!r}", "is made by nothing"
    for name, count in Counter(outputs).items():
        if count > 1:
            yield f"output {name!r}", "is listed twice"


def _call(node: onnx.NodeProto, functions: dict[tuple[str, str, str], onnx.FunctionProto]) -> Iterator[str]:
    """What is wrong with the operator that a node names."""
    if node.domain == DOMAIN:
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            overload = f", overload {node.overload!r}" if node.overload else ""
            yield f"calls {node.op_type}{overload}, which is not in the file"
        elif len(node.input) != len(function.input) or len(node.output) > len(function.output):
            yield f"calls {node.op_type} with {len(node.input)} operands, which takes {len(function.input)}"
        elif missing := set(function.attribute) - {a.name for a in node.attribute}:
            yield f"calls {node.op_type} without its attribute {sorted(missing)[0]!r}"
    elif node.overload:
        yield f"{node.op_type} has the overload {node.overload!r}, and is no function"
    elif node.domain == MICROSOFT:
        if node.op_type not in SCALES:
            yield f"{node.op_type} of domain {MICROSOFT} is not known"
        elif len(node.input) <= max(SCALES[node.op_type]):
            yield f"{node.op_type} has {len(node.input)} operands, which are too few"
    elif node.domain:
        yield f"{node.op_type} is of domain {node.domain!r}, of which nothing is known"


def invalid(model: onnx.ModelProto) -> Iterator[Fault]:
    """What onnx's checker says of the operators, operands and attributes of a file without `faults`."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        yield "the model", f"is not valid ONNX ({' '.join(str(error).split())[:200]})"

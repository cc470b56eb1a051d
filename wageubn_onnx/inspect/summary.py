"""The summary of a file, and of the stages of an artifact folder."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import uses_external_data

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.composites import expanded
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, PREFIX, load_model, node_tag
from wageubn_onnx.inspect.memory import Memory, memory
from wageubn_onnx.inspect.quantizers import QuantizerMap, quantizer_map
from wageubn_onnx.inspect.tensors import Tensor, Tensors
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.passes.importing.forward import layer_of
from wageubn_onnx.stages import CONTRACTS

PARAMETERS = ("W", "bias", "gamma", "beta", "BN.running_mean", "BN.running_var")  # data paths of inputs that are parameters


@dataclass(frozen=True)
class Value:
    """An input or output."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass
class Layer:
    """What one layer consists of: nodes, elements and bytes of its parameters, FLOPs, bytes of the results that it makes."""

    layer: str
    nodes: int = 0
    parameters: int = 0
    parameter_bytes: int = 0
    flops: int = 0
    result_bytes: int = 0


@dataclass(frozen=True)
class Summary:
    """Of one file. Counts of elements, FLOPs and bytes take 1 for each dimension in ``open``; unknown: results without a shape.

    stage: of a file of this project, else empty. dtypes: dtype -> number and bytes of its tensors. parameters: initializers but
    scalars, axes and shapes; of our stages also the parameters that are inputs, running statistics included.
    """

    file: str
    bytes: int
    stage: str
    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: list[Value]
    outputs: list[Value]
    nodes: int
    operators: dict[str, int]
    dtypes: dict[str, dict[str, int]]
    parameters: int
    parameter_bytes: int
    flops: int
    open: list[str]
    unknown: int
    layers: list[Layer]
    memory: Memory
    quantizers: QuantizerMap | None

    def to_json(self, layers: bool = True) -> dict[str, Any]:
        """As JSON-able values; of the layers on request."""
        found = asdict(self) | {"quantizers": self.quantizers and self.quantizers.to_json()}
        return found if layers else {key: value for key, value in found.items() if key != "layers"}


def inspect_file(path: str | os.PathLike[str]) -> Summary:
    """Summarize the ONNX file ``path``. Raises WageubnError, naming it, where it cannot be read."""
    file = Path(path)
    model = load_model(file)
    named = onnx.load(file, load_external_data=False)
    beside = {e.value for t in named.graph.initializer if uses_external_data(t) for e in t.external_data if e.key == "location"}
    size = sum((file.parent / name).stat().st_size for name in {file.name, *beside})
    try:
        return inspect_model(model, str(file), size)
    except WageubnError as error:
        raise WageubnError(f"{file}: {error}") from None


def inspect_folder(path: str | os.PathLike[str]) -> list[Summary]:
    """Summarize every stage in the artifact folder ``path``, in their order; raises WageubnError where there is none."""
    artifacts = ArtifactFolder(path)
    names = [f"{stage}.onnx" for stage in CONTRACTS]
    found = [inspect_file(artifacts.path / name) for name in names if name in artifacts.files]
    if not found:
        raise WageubnError(f"{path}: has none of the stages; give an ONNX file, or a folder written by `wageubn-onnx convert`")
    return found


def inspect_model(model: onnx.ModelProto, file: str = "", size: int = 0) -> Summary:
    """Summarize a model in memory. Products within functions count where they are called."""
    written = model
    # quantizers hold no products, and their calls have types
    model = inline(model) if any(f.domain != DOMAIN for f in model.functions) else expanded(model)
    tensors = Tensors(model)
    graph = model.graph
    carried = {i.name: tensors[i.name] for i in graph.input if node_tag(i).role in PARAMETERS}
    parameters = tensors.parameters() | carried
    defaults = {t.name for t in graph.initializer}
    made = [tensors[name] for node in graph.node for name in node.output if name]
    dtypes: dict[str, dict[str, int]] = {}
    for tensor in [*(tensors[n] for n in {*(i.name for i in graph.input), *defaults}), *made]:
        if tensor.dtype:
            entry = dtypes.setdefault(tensor.dtype, {"tensors": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["bytes"] += tensor.bytes
    operators = Counter(f"{n.domain}:{n.op_type}" if n.domain else n.op_type for n in written.graph.node)
    return Summary(
        file=file,
        bytes=size or model.ByteSize(),
        stage=next((p.value for p in model.metadata_props if p.key == PREFIX + "stage"), ""),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        ir_version=model.ir_version,
        opsets={o.domain or "ai.onnx": o.version for o in written.opset_import},
        inputs=[_value(i, tensors) for i in graph.input if i.name not in defaults],
        outputs=[_value(o, tensors) for o in graph.output],
        nodes=len(written.graph.node),
        operators=dict(sorted(operators.items(), key=lambda entry: (-entry[1], entry[0]))),
        dtypes=dict(sorted(dtypes.items())),
        parameters=sum(t.elements for t in parameters.values()),
        parameter_bytes=sum(t.bytes for t in parameters.values()),
        flops=sum(map(tensors.flops, graph.node)),
        open=tensors.symbols,
        unknown=tensors.unknown,
        layers=_layers(graph, tensors, parameters),
        memory=memory(model, tensors),
        quantizers=quantizer_map(model),
    )


def _value(value: onnx.ValueInfoProto, tensors: Tensors) -> Value:
    tensor = tensors[value.name]
    return Value(value.name, tensor.dtype, list(tensor.shape) if tensor.dtype else [])


def _layers(graph: onnx.GraphProto, tensors: Tensors, parameters: dict[str, Tensor]) -> list[Layer]:
    """In the order of the graph; a parameter belongs to the first node that reads it."""
    layers: dict[str, Layer] = {}
    left = dict(parameters)
    for node in graph.node:
        name = node_tag(node).layer or layer_of(node.op_type, node.input, node.name, next(filter(None, node.output), ""))
        layer = layers.setdefault(name, Layer(name))
        layer.nodes += 1
        layer.flops += tensors.flops(node)
        layer.result_bytes += sum(tensors[output].bytes for output in node.output if output and output not in tensors.stored)
        for read in node.input:
            if read in left:
                parameter = left.pop(read)
                layer.parameters += parameter.elements
                layer.parameter_bytes += parameter.bytes
    return list(layers.values())

"""Opening .onnx files: onnxruntime sessions with the options of this package, and what a graph says of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from wageubn_onnx.dryrun import ORT_ERRORS, SILENT
from wageubn_onnx.errors import WageubnError

SPIN = "1000"  # microseconds in which idle threads wait for more work; else tens of milliseconds, on cores that others want


def open_model(
    model: Path, threads: int | None = None, optimize: bool = True, content: bytes | None = None
) -> ort.InferenceSession:
    """Open ``model`` on the CPU, quietly.

    threads: within an operator (None: onnxruntime's own choice). optimize: let onnxruntime rewrite the graph. content: another
    form of it, in the file's place. Raises WageubnError where onnxruntime refuses the file.
    """
    return _open(model, str(model) if content is None else content, session_options(threads, optimize))


def probe(model: Path, names: Sequence[str], threads: int | None = None) -> ort.InferenceSession:
    """Open ``model`` as `open_model` does, with its tensors ``names`` as outputs too."""
    proto = onnx.load(model)
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return _open(model, proto.SerializeToString(), session_options(threads))


def open_lowered(model: Path, content: bytes, threads: int | None = None, optimize: bool = False) -> ort.InferenceSession:
    """Open the step that `for_cpu` made of ``model``."""
    return _open(model, content, lowered_options(threads, optimize))


def session_options(threads: int | None = None, optimize: bool = True) -> ort.SessionOptions:
    """What a session asks of onnxruntime: to be quiet, and not to keep cores that it has no work for."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def lowered_options(threads: int | None = None, optimize: bool = False) -> ort.SessionOptions:
    """The same for what `for_cpu` made: without a plan of memory, whose making takes longer than all else for graphs as deep as
    a training step, and which holds more memory than tensors that come and go."""
    options = session_options(threads, optimize)
    options.enable_mem_pattern = options.enable_mem_reuse = False
    return options


def _open(model: Path, content: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise WageubnError(f"{model}: onnxruntime cannot load it ({reason}); convert the model again") from error


def last_size(model: Path, output: str) -> int:
    """Return the last size of ``output``, without a session; raises WageubnError where the file does not state it."""
    try:
        graph = onnx.load(model, load_external_data=False).graph
    except DecodeError as error:
        raise WageubnError(f"{model}: not an ONNX model; convert the model again") from error
    shapes = [value.type.tensor_type.shape.dim for value in graph.output if value.name == output]
    if not shapes or not shapes[0] or shapes[0][-1].dim_value < 1:
        raise WageubnError(f"{model}: the output {output} does not state its last size; convert the model again")
    return int(shapes[0][-1].dim_value)

"""Running a model that is still being made, to measure it or to know its constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from wageubn_onnx.graph import Model, Tensor, to_proto

Array = np.ndarray[Any, Any]
SILENT = 4  # onnxruntime's severity of what ends the process; errors below it are raised, too
ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def plain_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session of ``proto`` as it stands (fusions lose outputs), on one thread, that prints nothing: what fails is raised."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = SILENT, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def evaluator(model: Model, outputs: dict[str, Tensor]) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A function from feeds by name to ``outputs`` by theirs; states that are not fed have their initial values.

    On one thread: the same sums on any number of cores. As `to_proto` does, it removes from ``model`` what no output needs.
    """
    proto = to_proto(model, outputs, parameters=False)  # which are fed: a file would hold 2 GB of them at most
    session = plain_session(proto)
    known = {i.name for i in session.get_inputs()}
    states = {state.key: state.value for state in model.states.values()}

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        fed = {name: value for name, value in (states | feeds).items() if name in known}
        return dict(zip(outputs, session.run(list(outputs), fed), strict=True))

    return run

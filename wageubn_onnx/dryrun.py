"""Running a model that is still being made, to measure it or to know its constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from wageubn_onnx.graph import Model, Tensor, to_proto

Array = np.ndarray[Any, Any]


def evaluator(model: Model, outputs: dict[str, Tensor]) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A function from feeds by name to ``outputs`` by theirs; states that are not fed have their initial values.

    On one thread: the same sums on any number of cores. As `to_proto` does, it removes from ``model`` what no output needs.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fusions lose outputs
    proto = to_proto(model, outputs, parameters=False)  # which are fed: a file would hold 2 GB of them at most
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    states = {state.key: state.value for state in model.states.values()}

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        fed = {name: value for name, value in (states | feeds).items() if name in known}
        return dict(zip(outputs, session.run(list(outputs), fed), strict=True))

    return run

"""One ONNX function of the project, made runnable: on onnxruntime with and without optimizations, and in onnx's evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import settings
from hypothesis import strategies as st
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.graph import DOMAIN, IR_VERSION, OPSET
from wageubn_onnx.quantizers import tables

Array = np.ndarray[Any, Any]
EXACT = settings(derandomize=True, deadline=None, database=None, max_examples=60)
FEW = settings(EXACT, max_examples=15)  # for the evaluator, which is slow


def call_model(
    function: onnx.FunctionProto, dtypes: Sequence[Any], library: Sequence[onnx.FunctionProto] = (), **attrs: Any
) -> onnx.ModelProto:
    """A model of one call; inputs have the ``dtypes`` and any shape, outputs are the function's."""
    node = h.make_node(function.name, list(function.input), list(function.output), "call", domain=DOMAIN, **attrs)
    inputs = [
        h.make_tensor_value_info(name, h.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
        for name, dtype in zip(function.input, dtypes, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in function.output]
    graph = h.make_graph([node], function.name, inputs, outputs)
    opsets = [h.make_opsetid("", OPSET), h.make_opsetid(DOMAIN, 1)]
    return h.make_model(graph, functions=[*library, function], opset_imports=opsets, ir_version=IR_VERSION)


class Kernel:
    """``kernel(*arrays)`` runs the model on onnxruntime, demands equal bits of both optimization levels, and returns them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.dtypes = {v.name: h.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
        self.outputs = [v.name for v in model.graph.output]
        self._sessions = [self._session(level) for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL")]
        self._evaluator: ReferenceEvaluator | None = None

    def _session(self, level: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return ort.InferenceSession(self.model.SerializeToString(), options, ["CPUExecutionProvider"])

    def _feeds(self, arrays: Sequence[Any]) -> dict[str, Array]:
        return {name: np.asarray(a).astype(dtype) for (name, dtype), a in zip(self.dtypes.items(), arrays, strict=True)}

    def __call__(self, *arrays: Any) -> list[Array]:
        feeds = self._feeds(arrays)
        optimized, plain = (session.run(None, feeds) for session in self._sessions)
        for name, a, b in zip(self.outputs, optimized, plain, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, f"{name}: optimized and plain differ")
        return [np.asarray(a) for a in optimized]

    def evaluated(self, *arrays: Any) -> list[Array]:
        """The same in onnx's reference evaluator."""
        self._evaluator = self._evaluator or ReferenceEvaluator(self.model)
        return [np.asarray(a) for a in self._evaluator.run(None, self._feeds(arrays))]


# -- what is fed ----------------------------------------------------------------------------------------------------------


def integers(limit: int, positive: bool = False) -> st.SearchStrategy[int]:
    """Integers of -limit..limit (1..limit where positive) that gather where rounding decides.

    Around powers of two, at the thresholds of round(log2 m), at ties of every shift, small, at the limit, or anywhere.
    """
    top = limit.bit_length()
    powers = st.builds(lambda k, d: 2**k + d, st.integers(0, top), st.integers(-1, 1))
    thresholds = st.builds(lambda t, d: t - d, st.sampled_from(tables.WIDE_THRESHOLDS), st.integers(0, 1))
    ties = st.builds(lambda odd, k, d: (2 * odd + 1) * 2**k + d, st.integers(0, 300), st.integers(0, top), st.integers(-1, 1))
    ends = st.builds(lambda d: limit - d, st.integers(0, 2))
    sizes = st.one_of(st.integers(0, 300), powers, thresholds, ties, ends, st.integers(0, limit))
    if positive:
        return sizes.map(lambda size: min(max(size, 1), limit))
    return st.builds(lambda size, negative: min(size, limit) * (-1) ** negative, sizes, st.booleans())


def arrays(elements: st.SearchStrategy[int], most: int = 24) -> st.SearchStrategy[Array]:
    """int64 [1..most] of those integers, or one of them throughout."""
    mixed = st.lists(elements, min_size=1, max_size=most)
    equal = st.builds(lambda v, n: [v] * n, elements, st.integers(1, most))
    return st.one_of(mixed, mixed, equal).map(lambda values: np.array(values, np.int64))


def tensors(limit: int) -> st.SearchStrategy[Array]:
    """Mantissas whose greatest magnitude lies anywhere below ``limit``, with zeros only among them."""
    scaled = st.integers(1, limit.bit_length()).flatmap(lambda bits: arrays(integers(min(2**bits - 1, limit))))
    return st.one_of(scaled, scaled, scaled, st.integers(1, 5).map(lambda n: np.zeros(n, np.int64)))


def same(actual: Array, expected: Any, message: str = "") -> None:
    """Equal values and shapes; the dtype is the function's own."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, f"{message}: shape {actual.shape}, not {expected.shape}"
    np.testing.assert_array_equal(actual.astype(np.int64), expected.astype(np.int64), message)

"""Gradients of a product by themselves: composites, as a step has them, of maps and errors with given bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from wageubn_onnx.autodiff.rules import RULES
from wageubn_onnx.composites import expanded
from wageubn_onnx.config import Config
from wageubn_onnx.fixedpoint import Exponent, Fixed
from wageubn_onnx.graph import Model, to_proto
from wageubn_onnx.onnxir.infer import dtype_for
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.passes.lower import integers
from wageubn_onnx.passes.lower.lowering import Lowering
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

Array = np.ndarray[Any, Any]
Bounds = tuple[int, int]


def gradients(maps: list[int], weight: list[int], x: Bounds, dy: Bounds, of: str, **attrs: Any) -> onnx.ModelProto:
    """``dw`` or ``dx``: of ``x``, mantissas of ``maps`` in these bounds, and the errors ``dy`` of its product with ``weight``."""
    source = Model.empty("quant_training", "gradient")
    operands = [source.input(name, np.float32, shape) for name, shape in (("x", maps), ("w", weight))]
    with source.context(layer="layer"):
        quantized = floating.direct(
            source, operands[0], "A", Format(8 + (x[0] == 0)), 0, lo=x[0], hi=x[1]
        )  # which says its bounds
    y, pullback = RULES["Conv" if len(maps) == 4 else "Gemm"](source, attrs, [quantized, operands[1]])
    errors = source.input("dy", np.float32, y.shape)
    found = pullback(errors)[("dx", "dw").index(of)]
    lower = Lowering(source, Model.empty("int_training", "gradient"), Config(), integers.RULES)
    for tensor, (lo, hi) in ((operands[0], x), (operands[1], (-127, 127)), (errors, dy)):
        made = lower.g.input(tensor.name, dtype_for(lo, hi), tensor.shape)
        lower.values[tensor.name] = Fixed(made, Exponent(), lo, hi)
    lower.walk()
    assert found is not None
    return to_proto(lower.g, {of: lower.fixed(lower.value(found), found.inputs[0]).tensor})


def drawn(model: onnx.ModelProto, bounds: dict[str, Bounds], ends: bool) -> dict[str, Array]:
    """Operands anywhere within their bounds, or at their ends alone."""
    random = np.random.default_rng(0)
    found = {}
    for value in model.graph.input:
        if value.name in bounds:
            shape, (lo, hi) = [d.dim_value for d in value.type.tensor_type.shape.dim], bounds[value.name]
            numbers = random.choice([lo, hi], shape) if ends else random.integers(lo, hi, shape, endpoint=True)
            found[value.name] = numbers.astype(dtype_for(lo, hi))
    return found


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    flat = inline(expanded(model))
    unread = [value for value in flat.graph.input if value.name not in feeds]
    feeds = feeds | {v.name: np.zeros([d.dim_value for d in v.type.tensor_type.shape.dim], np.int8) for v in unread}
    session = onnxruntime.InferenceSession(flat.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def by_numpy(x: Array, dy: Array, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int]) -> Array:
    """dw [O, I, KH, KW] in int64: x at each tap of each window, times the window's error."""
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    oh, ow = dy.shape[2:]
    result = np.zeros((dy.shape[1], x.shape[1], *kernel), np.int64)
    for i, j in np.ndindex(*kernel):
        rows = slice(i * dilations[0], i * dilations[0] + (oh - 1) * strides[0] + 1, strides[0])
        columns = slice(j * dilations[1], j * dilations[1] + (ow - 1) * strides[1] + 1, strides[1])
        result[:, :, i, j] = np.einsum("nihw,nohw->oi", padded[:, :, rows, columns], dy.astype(np.int64))
    return result

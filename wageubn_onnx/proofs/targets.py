"""What the target's kernels compute exactly, found by measurement (docs/runtimes.md): onnxruntime on the CPU."""

from __future__ import annotations

import onnx

from wageubn_onnx.stages import INTEGERS

T = onnx.TensorProto

# (operator, dtype of its first operand) -> why it must not occur
FORBIDDEN: dict[tuple[str, int], str] = {
    **{
        (op, T.INT64): "wrong for int64 beyond 2^31 in onnxruntime 1.31; use Greater and Where"
        for op in ("Min", "Max", "Clip", "Sign", "ReduceMax", "ReduceMin")
    },
    **{(op, t): "inexact for large sums in onnxruntime 1.31" for op in ("Einsum", "ReduceSumSquare") for t in (T.INT32, T.INT64)},
    ("Pad", T.INT16): "not implemented in onnxruntime 1.31; pad as int32",
    **{("BitShift", t): "a shift by the width or more differs between releases" for t in INTEGERS},
}
MICROSOFT = "com.microsoft"  # onnxruntime's own operators
# operator -> which operands are its float scales; its result saturates in the dtype of its last zero point
SCALES: dict[str, tuple[int, ...]] = {
    "QLinearConv": (1, 4, 6),
    "QGemm": (1, 4, 7),
    "QLinearAdd": (1, 4, 6),
    **dict.fromkeys(["QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu"], (1, 3)),
}
EXACT_SUMS: dict[int, int] = {T.INT32: 2**31 - 1, T.INT64: 2**53 - 1}  # of a ReduceSum, by dtype: it accumulates like double
ACCUMULATOR = 2**31 - 1  # of ConvInteger and MatMulInteger: int32
PAIRED_LIMIT = 129  # greatest uint8 operand beside an int8 one: without VNNI, pairs of products are added in int16

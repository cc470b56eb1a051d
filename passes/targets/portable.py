"""What onnxruntime 1.17 has integer kernels for, on any x86: a check, since the integer stages keep to it by themselves."""

from __future__ import annotations

import onnx

from wageubn_onnx.errors import WageubnError

T = onnx.TensorProto
NARROW = (T.INT8, T.INT16, T.UINT16)
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
ARITHMETIC = ("Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", *COMPARISONS)
# (operator, dtype of its first operand that is no condition): not implemented in 1.17
MISSING = frozenset(
    [
        *((op, t) for op in ARITHMETIC for t in (*NARROW, T.UINT32)),
        *((op, T.UINT8) for op in ("Add", "Mul", "Sub", *COMPARISONS)),
        *(("Where", t) for t in NARROW),
        *(("ReduceSum", t) for t in (*NARROW, T.UINT8)),
        ("ConvInteger", T.INT8),
        ("MatMulInteger", T.INT8),
        ("Pad", T.INT16),
    ]
)


def require_portable(model: onnx.ModelProto, name: str) -> None:
    """Raise WageubnError, naming the first node of the inlined ``model`` that 1.17 cannot run."""
    graph = model.graph
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    dtypes |= {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        operands = [dtypes.get(i, 0) for i in node.input if i and dtypes.get(i) != T.BOOL]
        first = operands[0] if operands else 0
        narrow_weights = node.op_type == "ConvInteger" and T.INT8 in operands
        if (node.op_type, first) in MISSING or narrow_weights:
            raise WageubnError(
                f"{name}: node {node.name!r}: onnxruntime 1.17 has no {node.op_type} for {T.DataType.Name(first)}; "
                "leave out --portable"
            )

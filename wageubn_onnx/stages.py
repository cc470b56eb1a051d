"""What each stage may contain; `check_stage` is called on every file before it is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.inliner

from wageubn_onnx.composites import kind_of
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.operators import OPERATORS

T = onnx.TensorProto
INTEGERS = frozenset({T.INT8, T.UINT8, T.INT16, T.INT32, T.INT64, T.UINT16, T.UINT32, T.UINT64})

COMMON_OPS = frozenset(
    [
        "Add",
        "And",
        "ArgMax",
        "Cast",
        "Concat",
        "Div",
        "Equal",
        "Expand",
        "Flatten",
        "Greater",
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Not",
        "Or",
        "Pad",
        "ReduceMax",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)  # elementwise, moving and reducing: the same on floats and on mantissas
TRAINING_OPS = COMMON_OPS | {"AveragePool", "Conv", "ConvTranspose", "Exp", "GlobalAveragePool", "Log", "MatMul", "Relu", "Sqrt"}
INTEGER_OPS = COMMON_OPS | {"BitwiseXor", "ConvInteger", "Gather", "GreaterOrEqual", "MatMulInteger"}


@dataclass(frozen=True)
class Contract:
    """Legal standard operators outside functions, legal dtypes of every tensor, and which functions may be called."""

    ops: frozenset[str]
    dtypes: frozenset[int]
    composites: bool
    quantizers: bool


FLOAT_TYPES = frozenset({T.FLOAT, T.INT64, T.INT32, T.BOOL})

CONTRACTS: dict[str, Contract] = {
    "forward": Contract(frozenset(OPERATORS), frozenset({T.FLOAT, T.INT64}), composites=False, quantizers=False),
    "fp_training": Contract(TRAINING_OPS, FLOAT_TYPES, composites=True, quantizers=False),
    "quant_training": Contract(TRAINING_OPS, FLOAT_TYPES, composites=True, quantizers=True),
    "int_training": Contract(INTEGER_OPS, INTEGERS | {T.BOOL}, composites=True, quantizers=True),
    "quant_eval": Contract(TRAINING_OPS, FLOAT_TYPES, composites=True, quantizers=True),
    "int_eval": Contract(INTEGER_OPS, INTEGERS | {T.BOOL}, composites=True, quantizers=True),
}


def check_stage(model: onnx.ModelProto, stage: str) -> None:
    """Raise WageubnError, naming node or tensor, where ``model`` is not a legal ``stage`` or not valid ONNX."""
    contract = CONTRACTS[stage]
    for node in model.graph.node:
        is_composite = bool(kind_of(node.op_type))
        if node.domain == DOMAIN and not (contract.composites if is_composite else contract.quantizers):
            what = "composite" if is_composite else "quantizer"
            raise WageubnError(f"{stage}: node {node.name!r} calls {node.op_type}, and no {what} belongs in this stage")
        if node.domain != DOMAIN and node.op_type not in contract.ops:
            raise WageubnError(f"{stage}: node {node.name!r}: operator {node.op_type} is not legal in this stage")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WageubnError(f"{stage}: not valid ONNX ({' '.join(str(error).split())[:300]})") from None
    for name, dtype in tensor_dtypes(model).items():
        if dtype not in contract.dtypes:
            raise WageubnError(f"{stage}: tensor {name!r} is {T.DataType.Name(dtype)}, which this stage does not allow")


def tensor_dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor outside function bodies."""
    graph = model.graph
    dtypes = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return dtypes | {t.name: t.data_type for t in graph.initializer}

"""An ONNX file's bytes with large parameters, in parts: the bytes of `SerializeToString`, without a copy of the parameters.

Protobuf's encoding (protobuf.dev/programming-guides/encoding): a field is its tag, 8 · number + type; of type 2, a message or
bytes, its length and its content follow. Fields come by number, repeated ones in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Parts = list["bytes | memoryview"]
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # fields of ModelProto, GraphProto, TensorProto; no tensor here has a later one


def encode(model: onnx.ModelProto, parameters: Mapping[str, NDArray[Any]]) -> Parts:
    """``model`` with ``parameters`` as further initializers of its graph."""
    if not parameters:
        return [model.SerializeToString(deterministic=True)]
    tensors: Parts = []
    for name, value in parameters.items():
        dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        head = onnx.TensorProto(dims=value.shape, data_type=dtype, name=name).SerializeToString()
        raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
        tensors += _field(INITIALIZER, [head, *_field(RAW_DATA, [raw])])
    before, after = _split(model.graph, INITIALIZER)
    start, end = _split(model, GRAPH - 1)[0], _split(model, GRAPH)[1]
    return [start, *_field(GRAPH, [before, *tensors, after]), end]


def _split(message: Any, number: int) -> tuple[bytes, bytes]:
    """The fields of ``message`` up to ``number``, and those behind it."""
    first, rest = type(message)(), type(message)()
    for part in (first, rest):
        part.CopyFrom(message)
    for field, _ in message.ListFields():
        (rest if field.number <= number else first).ClearField(field.name)
    return first.SerializeToString(), rest.SerializeToString()


def _field(number: int, content: Sequence[bytes | memoryview]) -> Parts:
    return [_varint(8 * number + 2) + _varint(sum(map(len, content))), *content]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])

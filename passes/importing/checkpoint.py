"""The checkpoint of onnxruntime-training (on-device training): parameters and optimizer state in one flatbuffer.

Source: onnxruntime 1.19, onnxruntime/core/flatbuffers/schema/ort_training_checkpoint.fbs and ort.fbs; file identifier ``ODTC``.
A field is found by its number, its place in its table:

    Checkpoint      0 version:int32, 1 module_state, 2 optimizer_groups:[OptimizerGroup], 3 property_bag
    ModuleState     0 requires_grad_params:[Tensor], 1 frozen_params:[Tensor], 2 is_nominal_state:bool, 3 has_external_data:bool
    OptimizerGroup  0 group_name, 1 step:int64, 2 initial_learning_rate:float, 3 optimizer_states
    PropertyBag     0 ints:[name, int64], 1 floats:[name, float], 2 strings:[name, string]
    Tensor          0 name, 2 dims:[int64], 3 data_type:int32 (as in onnx.TensorProto), 4 raw_data:[uint8],
                    6 external_data_offset:int64 = -1, of its bytes in the file ``<checkpoint>.data``
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from flatbuffers import number_types as kind
from flatbuffers.table import Table

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.external import refuse_pointer

Array = np.ndarray[Any, Any]
IDENTIFIER = b"ODTC"  # behind the four bytes that say where the root table is
VERSIONS = (1, 2)
DATA_SUFFIX = ".data"
OLD_SUFFIX = ".pbseq"
DAMAGED = (struct.error, ValueError, TypeError, OverflowError)  # what reading at a wrong place raises


@dataclass(frozen=True)
class Group:
    """What an optimizer noted of its parameters: its name, the steps it took, its initial learning rate."""

    name: str
    step: int
    learning_rate: float


@dataclass(frozen=True)
class Checkpoint:
    """trained: parameters that require a gradient, by name; frozen: the others, running statistics among them."""

    trained: dict[str, Array]
    frozen: dict[str, Array]
    groups: list[Group]
    properties: dict[str, int | float | str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the file ``path`` and, where its tensors lie there, ``path`` + ".data".

    Raises WageubnError, naming the file, where it is missing, no such checkpoint, an old one, damaged, of another
    version, or without values.
    """
    if path.is_dir() and any(path.glob(f"*{OLD_SUFFIX}")):
        raise WageubnError(
            f"{path}: a checkpoint of onnxruntime-training before 1.16, a folder of {OLD_SUFFIX} files; make the artifacts again "
            "with 1.16 or newer"
        )
    if not path.is_file():
        raise WageubnError(f"{path}: no such file; a training model needs its checkpoint beside it")
    refuse_pointer(path)
    content = path.read_bytes()
    if content[4:8] != IDENTIFIER:
        raise WageubnError(f"{path}: not a checkpoint of onnxruntime-training (no {IDENTIFIER.decode()!r} in bytes 4 to 8)")
    try:
        return _read(content, path)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:120]
        raise WageubnError(f"{path}: a damaged or truncated checkpoint ({reason}); save it again") from None


def _read(content: bytes, path: Path) -> Checkpoint:
    root = _Fields(Table(content, struct.unpack_from("<I", content)[0]))
    version = root.number(0, kind.Int32Flags)
    if version not in VERSIONS:
        raise WageubnError(f"{path}: checkpoint version {version}; versions {VERSIONS[0]} to {VERSIONS[-1]} can be read")
    module, bag = root.table(1), root.table(3)
    if module is None or module.number(2, kind.BoolFlags):
        raise WageubnError(f"{path}: a nominal checkpoint, names without values; give a full one")
    data = _external(path) if module.number(3, kind.BoolFlags) else b""
    trained, frozen = (dict(_tensor(fields, data, path) for fields in module.tables(field)) for field in (0, 1))
    groups = [
        Group(fields.text(0), int(fields.number(1, kind.Int64Flags)), float(fields.number(2, kind.Float32Flags)))
        for fields in root.tables(2)
    ]
    properties: dict[str, int | float | str] = {}
    if bag is not None:
        properties |= {fields.text(0): int(fields.number(1, kind.Int64Flags)) for fields in bag.tables(0)}
        properties |= {fields.text(0): float(fields.number(1, kind.Float32Flags)) for fields in bag.tables(1)}
        properties |= {fields.text(0): fields.text(1) for fields in bag.tables(2)}
    return Checkpoint(trained, frozen, groups, properties)


def _external(path: Path) -> bytes:
    file = path.with_name(path.name + DATA_SUFFIX)
    if not file.is_file():
        raise WageubnError(f"{file}: no such file; {path.name} keeps its tensors there")
    refuse_pointer(file)
    return file.read_bytes()


def _tensor(fields: _Fields, external: bytes, path: Path) -> tuple[str, Array]:
    """Name and value of a Tensor."""
    name, shape, code = fields.text(0), [int(d) for d in fields.vector(2, kind.Int64Flags)], fields.number(3, kind.Int32Flags)
    offset = fields.number(6, kind.Int64Flags, -1)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    except KeyError:
        raise ValueError(f"tensor {name!r} has the unknown type {code}") from None
    count = math.prod(shape)
    if min(shape, default=1) < 0 or dtype.kind not in "fiub":
        raise ValueError(f"tensor {name!r} is {dtype.name} {shape}")
    raw = fields.vector(4, kind.Uint8Flags) if offset < 0 else np.frombuffer(external, np.uint8, count * dtype.itemsize, offset)
    if raw.size != count * dtype.itemsize:
        raise ValueError(f"tensor {name!r} {shape} has {raw.size} bytes")
    return name, np.frombuffer(raw.tobytes(), dtype.newbyteorder("<")).astype(dtype).reshape(shape)


class _Fields:
    """The fields of a flatbuffer table by their numbers; what is read outside the file raises one of DAMAGED."""

    def __init__(self, table: Any) -> None:
        self.data, self.start, self._table = table.Bytes, table.Pos, table

    def _offset(self, field: int) -> int:
        """From the table's start to the field, 0 where it is absent; a vtable has two entries of two bytes before them."""
        return int(self._table.Offset(4 + 2 * field))

    def number(self, field: int, flags: Any, default: int = 0) -> Any:
        offset = self._offset(field)
        return self._table.Get(flags, self.start + offset) if offset else default

    def text(self, field: int) -> str:
        return str(self.vector(field, kind.Uint8Flags).tobytes(), "utf-8")  # a string is a vector of bytes, whose end is checked

    def vector(self, field: int, flags: Any) -> Array:
        offset = self._offset(field)
        return np.asarray(self._table.GetVectorAsNumpy(flags, offset)) if offset else np.zeros(0, np.uint8)

    def table(self, field: int) -> _Fields | None:
        offset = self._offset(field)
        return _Fields(Table(self.data, self._table.Indirect(self.start + offset))) if offset else None

    def tables(self, field: int) -> list[_Fields]:
        offset = self._offset(field)
        if not offset:
            return []
        first = self._table.Vector(offset)
        places = range(first, first + 4 * self._table.VectorLen(offset), 4)
        return [_Fields(Table(self.data, self._table.Indirect(place))) for place in places]

"""Files that are either whole or absent: atomic writes, and safetensors with one JSON metadata entry."""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from wageubn_onnx.errors import WageubnError

Array = NDArray[Any]

# In the order of their tensors in a file
DTYPES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
# safetensors keeps metadata in an unordered map; a single entry makes equal contents equal bytes.
METADATA_KEY = "wageubn"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of ``path`` when the block ends, and vanishes if the block raises.

    The temporary file lies in the same folder, so that the final ``os.replace`` never crosses file systems.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write ``content`` to ``path`` atomically, as UTF-8 with the line ends it has."""
    write_bytes(path, content.encode("utf-8"))


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``tensors`` (any shapes, scalars too) and JSON-able ``metadata`` as one safetensors file, atomically.

    Equal arguments give equal bytes.
    """
    with atomic_write(path) as file:
        write_tensors(file, tensors, metadata)


def write_tensors(file: BinaryIO, tensors: Mapping[str, Array], metadata: Mapping[str, Any] | None = None) -> None:
    """The same into an empty ``file``: the bytes of `safetensors.numpy.save`, without a copy of the tensors in memory.

    The format (github.com/huggingface/safetensors#format): the header's length as a little-endian uint64, the header in JSON,
    padded to 8 bytes, the tensors: wide dtypes first, then by name. Tensors of zeros, as momenta start, become holes in the file.
    """
    order = sorted(tensors, key=lambda key: (list(DTYPES).index(tensors[key].dtype.name), key))
    header: dict[str, Any] = {}
    if metadata is not None:
        header["__metadata__"] = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    end = 0
    for key in order:
        start, end = end, end + tensors[key].nbytes
        dtype = DTYPES[tensors[key].dtype.name]
        header[key] = {"dtype": dtype, "shape": tensors[key].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for key in order:
        value = np.ascontiguousarray(tensors[key], tensors[key].dtype.newbyteorder("<")).reshape(-1)
        raw = value.view(np.uint8)
        if raw.any():
            file.write(raw.data)
        else:
            file.seek(raw.nbytes, os.SEEK_CUR)
    file.truncate()


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a safetensors file: its tensors, and what `save_tensors` was given as metadata ({} for a foreign file).

    Raises WageubnError where the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise WageubnError(f"{path}: no such file; give a .safetensors state or checkpoint")
    try:
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a mapping)
            entries = file.metadata() or {}
        metadata = json.loads(entries.get(METADATA_KEY, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise WageubnError(f"{path}: not a readable safetensors file ({error}); restore or rewrite it") from error
    return tensors, metadata

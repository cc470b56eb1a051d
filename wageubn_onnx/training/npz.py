"""Arrays of an .npz file, each held to the size of its entry before it is read."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.memory import require_memory

Array = NDArray[Any]

NPY = b"\x93NUMPY"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
DEFLATE = 1032  # bytes that a byte of deflated data can stand for, at most
UNREADABLE = (  # what zipfile and numpy raise for damaged files
    *(OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error),
    *(SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError),  # of headers
)


def read_npz(source: Path, names: Sequence[str]) -> dict[str, Array]:
    """The arrays ``names`` of ``source``, which hold numbers.

    Raises WageubnError where the file is no .npz, one is missing, or a header claims what its entry cannot hold, or there is no
    memory for all.
    """
    with open(source, "rb") as file:
        if file.read(len(NPY)) == NPY:
            raise WageubnError(f"{source}: a single array; save {', '.join(names)} together with numpy.savez")
    try:
        with zipfile.ZipFile(source) as content:
            entries = {info.filename.removesuffix(".npy"): info for info in content.infolist()}
            missing = [name for name in names if name not in entries]
            if missing:
                raise WageubnError(f"{source}: array {missing[0]} is missing; DATA needs {', '.join(names)}")
            require_memory(source, sum(_size(source, content, name, entries[name]) for name in names))
            return {name: _read(content, entries[name]) for name in names}
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise WageubnError(f"{source}: not a readable .npz file ({reason}); write it with numpy.savez") from error


def _size(source: Path, content: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo) -> int:
    """Bytes of an array, which its header claims and its entry has."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WageubnError(f"{source}: {name} is compressed as numpy never does; write it with numpy.savez or savez_compressed")
    if entry.file_size > DEFLATE * (entry.compress_size + 1):
        raise WageubnError(f"{source}: {name} claims {entry.file_size:,} bytes, more than its {entry.compress_size:,} can hold")
    with content.open(entry) as file:
        shape, _, dtype = _header(file)
        start = file.tell()
    if dtype.hasobject or dtype.kind not in "biuf":
        raise WageubnError(f"{source}: {name} holds {dtype}, not numbers; save images as uint8 and labels as integers")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != entry.file_size - start:
        claim = f"{name} claims to be {dtype} {list(shape)}"
        raise WageubnError(f"{source}: {claim}, but its entry has {entry.file_size - start:,} bytes; write it with numpy.savez")
    return size


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f".npy version {version}")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = HEADERS[version](file)
    return found


def _read(content: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    with content.open(entry) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
    return array

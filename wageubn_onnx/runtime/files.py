"""Files that are either whole or absent: atomic writes, and safetensors with one JSON metadata entry."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_tensors

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.external import refuse_pointer

Array = NDArray[Any]

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
    entries = {METADATA_KEY: json.dumps(metadata, sort_keys=True)} if metadata is not None else None
    # not ascontiguousarray, which would turn a scalar into a vector
    whole = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    write_bytes(path, encode_tensors(whole, entries))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a safetensors file: its tensors, and what `save_tensors` was given as metadata ({} for a foreign file).

    Raises WageubnError where the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise WageubnError(f"{path}: no such file; give a .safetensors state or checkpoint")
    refuse_pointer(Path(path))
    try:
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a mapping)
            entries = file.metadata() or {}
        metadata = json.loads(entries.get(METADATA_KEY, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise WageubnError(f"{path}: not a readable safetensors file ({error}); restore or rewrite it") from error
    return tensors, metadata

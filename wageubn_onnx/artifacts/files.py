"""Files that are either whole or absent: atomic writes, hashes, JSON, and safetensors with one JSON metadata entry."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_tensors

from wageubn_onnx.artifacts.locks import lock_if_possible, new_and_locked, unlock
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.external import refuse_pointer

Array = NDArray[Any]

# safetensors keeps metadata in an unordered map; a single entry makes equal contents equal bytes.
METADATA_KEY = "wageubn"
SEAL = "sha256"  # in the metadata: of the tensors and of all other metadata


# -- atomic writes --------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of ``path`` when the block ends, and vanishes if the block raises.

    The temporary file lies in the same folder, so that the final ``os.replace`` never crosses file systems; it is locked, so
    that what a killed process left behind is told from it, and removed. File and folder are flushed to the disk.
    """
    target = Path(path)
    _remove_leftovers(target)
    temporary, held = new_and_locked(lambda: _new_file(target))
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        unlock(held)


def _new_file(target: Path) -> Path:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    temporary.touch(exist_ok=False)
    return temporary


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of ``target`` that no process holds."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{12}\.tmp")
    if not target.parent.is_dir():
        return
    for file in [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]:
        held = lock_if_possible(file)
        if held is not None:
            file.unlink(missing_ok=True)
            unlock(held)


def sync_folder(folder: Path) -> None:
    """Flush the folder's list of names to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write ``content`` to ``path`` atomically, as UTF-8 with the line ends it has."""
    write_bytes(path, content.encode("utf-8"))


# -- hashes and JSON ------------------------------------------------------------------------------------------------------


def sha256(file: Path) -> str:
    """The sha256 of the contents of ``file``, in hexadecimal; a file that did not change is read once a process."""
    found = file.stat()
    return _sha256(file.absolute(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=1024)
def _sha256(file: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while part := content.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def parse_json(text: str | bytes, where: str, remedy: str) -> Any:
    """The value that ``text`` is JSON of; raises WageubnError that starts with ``where`` for anything else."""
    try:
        return json.loads(text)
    except RecursionError:
        raise WageubnError(f"{where}: not JSON (too deeply nested); {remedy}") from None
    except ValueError as error:  # of syntax, encoding, or a number with thousands of digits
        raise WageubnError(f"{where}: not JSON ({error}); {remedy}") from error


# -- tensors --------------------------------------------------------------------------------------------------------------


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``tensors`` (any shapes, scalars too) and JSON-able ``metadata`` as one safetensors file, atomically.

    Equal arguments give equal bytes. With metadata goes a sha256 of all that is written.
    """
    # not ascontiguousarray, which would turn a scalar into a vector
    whole = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    entries = None
    if metadata is not None:
        entries = {METADATA_KEY: json.dumps({**metadata, SEAL: _seal(whole, metadata)}, sort_keys=True)}
    write_bytes(path, encode_tensors(whole, entries))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a safetensors file: its tensors, and what `save_tensors` was given as metadata ({} for a foreign file).

    Raises WageubnError where the file is missing or damaged, or its contents are not those that it was written with.
    """
    if not Path(path).is_file():
        raise WageubnError(f"{path}: no such file; give a .safetensors state or checkpoint")
    refuse_pointer(Path(path))
    try:
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a mapping)
            entries = file.metadata() or {}
    except (SafetensorError, AttributeError, TypeError) as error:  # the last two for dtypes that numpy lacks
        raise WageubnError(f"{path}: not a readable safetensors file ({error}); restore or rewrite it") from error
    if METADATA_KEY not in entries:
        return tensors, {}
    metadata = parse_json(entries[METADATA_KEY], f"{path}: its metadata", "restore or rewrite it")
    if not isinstance(metadata, dict):
        raise WageubnError(f"{path}: its metadata is no JSON object; restore or rewrite it")
    recorded = metadata.pop(SEAL, None)
    if recorded not in (None, _seal(tensors, metadata)):  # older versions wrote none
        raise WageubnError(f"{path}: changed since it was written (its {SEAL} differs); restore it from a copy")
    return tensors, metadata


def _seal(tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor, by name, and the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key, value in sorted(tensors.items()):
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(np.asarray(value, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

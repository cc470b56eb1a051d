"""What manifest.json says of a folder's files: their hashes and its own, written last and checked when the folder is opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wageubn_onnx.artifacts.files import parse_json, sha256, write_text
from wageubn_onnx.errors import WageubnError

MANIFEST = "manifest.json"
FILES, SEAL = "files", "sha256"  # keys of the manifest: the hash of every other file by name, and that of the manifest itself


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json: ``manifest``, with the hashes of all files that lie in ``folder`` beside it."""
    hashes = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != MANIFEST}
    whole = {key: value for key, value in manifest.items() if key not in (FILES, SEAL)} | {FILES: hashes}
    write_text(folder / MANIFEST, json.dumps(whole | {SEAL: _of(whole)}, indent=1) + "\n")


def read_sealed(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``, which is a JSON object and as it was written; raises WageubnError where it is not."""
    file = folder / MANIFEST
    manifest = parse_json(file.read_bytes(), str(file), remedy({}))
    if not isinstance(manifest, dict):
        raise WageubnError(f"{file}: holds no JSON object; {remedy({})}")
    if not isinstance(manifest.get(FILES), dict) or SEAL not in manifest:
        raise WageubnError(f"{file}: has no hashes of the files: damaged, or written by an older version; {remedy(manifest)}")
    if manifest[SEAL] != _of({key: value for key, value in manifest.items() if key != SEAL}):
        raise WageubnError(f"{file}: changed since it was written; {remedy(manifest)}")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise WageubnError, naming the first file that is missing or not the one that the manifest was written with."""
    for name, digest in manifest[FILES].items():
        file = folder / name
        if not file.is_file():
            raise WageubnError(f"{file}: missing, though {MANIFEST} counts on it; {remedy(manifest)}")
        if sha256(file) != digest:
            raise WageubnError(f"{file}: not the file that {MANIFEST} was written with (its sha256 differs); {remedy(manifest)}")


def remedy(manifest: dict[str, Any]) -> str:
    """What to do about a folder whose files do not belong together."""
    return "export it again" if "target" in manifest else "convert the model again"


def peek(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder`` as far as it can be read; {} where it cannot."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes(), "", "")
    except (OSError, WageubnError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def listed(folder: Path) -> set[str]:
    """The names of the manifest of ``folder`` and of all files that it has the hash of; {} where it cannot be read."""
    hashes = peek(folder).get(FILES)
    return {MANIFEST, *hashes} if isinstance(hashes, dict) else set()


def _of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()

"""The folder that `convert` writes, as its reader sees it: manifest.json and the files that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wageubn_onnx.errors import WageubnError

FORMAT = 1
MANIFEST = "manifest.json"
STATE_FILES = {"state": "state.safetensors", "quant_state": "quant_state.safetensors", "fp_state": "fp_state.safetensors"}


class ArtifactFolder:
    """A converted folder: ``path`` and its checked ``manifest``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the manifest; raises WageubnError where it is missing, not JSON, or of another format."""
        self.path = Path(path)
        self.manifest = self._read()

    def _read(self) -> dict[str, Any]:
        file = self.path / MANIFEST
        if not self.path.is_dir():
            raise WageubnError(f"{self.path}: no such folder; give one written by `wageubn-onnx convert MODEL -o DIR`")
        if not file.is_file():
            raise WageubnError(f"{self.path}: has no {MANIFEST}; give a folder written by `wageubn-onnx convert`")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise WageubnError(f"{file}: not JSON ({error}); convert the model again") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise WageubnError(f"{file}: format {found!r}, but this version reads {FORMAT}; convert the model again")
        return manifest

    def section(self, name: str, *keys: str) -> Any:
        """Return ``manifest[name]``, an object that holds ``keys``.

        Raises WageubnError where it is missing, null (the profile has no integer form) or lacks a key.
        """
        if name not in self.manifest:
            raise WageubnError(f"{self.path / MANIFEST}: has no {name!r}; convert the model again")
        section = self.manifest[name]
        if section is None:
            reason = f"its profile {self.manifest.get('profile')} has no integer form"
            raise WageubnError(f"{self.path}: has no {name!r}, since {reason}; convert with another profile")
        self._require(section, name, keys)
        return section

    def state_names(self, name: str) -> list[tuple[str, str, str]]:
        """Return (key in files, input of the step, output of the step) of the tensors of ``name``."""
        entries = self.section(name)
        for index, entry in enumerate(entries):
            self._require(entry, f"{name}[{index}]", ("key", "in", "out"))
        return [(entry["key"], entry["in"], entry["out"]) for entry in entries]

    def _require(self, section: Any, name: str, keys: Iterable[str]) -> None:
        missing = [key for key in keys if not isinstance(section, dict) or key not in section]
        if missing:
            raise WageubnError(f"{self.path / MANIFEST}: {name!r} lacks {missing[0]!r}; convert the model again")

    def model(self, name: str) -> Path:
        """Return the .onnx file of section ``name``; raises WageubnError where it is absent."""
        return self._existing(str(self.section(name, "model")["model"]))

    def state_file(self, name: str) -> Path:
        """Return the initial state of ``name`` ("state", "quant_state" or "fp_state"); raises WageubnError where it is absent."""
        return self._existing(STATE_FILES[name])

    def _existing(self, name: str) -> Path:
        file = self.path / name
        if not file.is_file():
            raise WageubnError(f"{file}: missing, though {MANIFEST} counts on it; convert the model again")
        return file

"""The folder that `convert` writes, as its reader sees it: manifest.json and the files that it names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wageubn_onnx.artifacts.contents import FILES, MANIFEST, check_files, read_sealed, remedy
from wageubn_onnx.artifacts.contract import check_contract
from wageubn_onnx.artifacts.replace import recover
from wageubn_onnx.errors import WageubnError

FORMAT = 2  # 1: steps without composites
STATE_FILES = {"state": "state.safetensors", "quant_state": "quant_state.safetensors", "fp_state": "fp_state.safetensors"}


class ArtifactFolder:
    """A converted or exported folder: ``path`` and its ``manifest``, both as they were written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the manifest and check every file that it lists against its hash; one that did not change, once a process.

        Raises WageubnError where a file is missing or another, or the manifest is damaged or of another format.
        """
        self.path = Path(path)
        with contextlib.suppress(OSError):  # a reader without the right to write finds what there is
            recover(Path(os.path.realpath(path)))
        self.manifest = self._read()
        check_files(self.path, self.manifest)

    def _read(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise WageubnError(f"{self.path}: no such folder; give one written by `wageubn-onnx convert MODEL -o DIR`")
        if not (self.path / MANIFEST).is_file():
            raise WageubnError(f"{self.path}: has no {MANIFEST}; give a folder written by `wageubn-onnx convert`")
        manifest = read_sealed(self.path)
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise WageubnError(f"{self.path / MANIFEST}: format {found!r}, but this version reads {FORMAT}; {remedy(manifest)}")
        check_contract(manifest, str(self.path / MANIFEST), remedy(manifest))
        return manifest

    @property
    def files(self) -> dict[str, str]:
        """The hash of every file beside the manifest, by name."""
        return dict(self.manifest[FILES])

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
        if not isinstance(entries, list):
            raise WageubnError(f"{self.path / MANIFEST}: {name!r} is no list; {remedy(self.manifest)}")
        for index, entry in enumerate(entries):
            self._require(entry, f"{name}[{index}]", ("key", "in", "out"))
        return [(entry["key"], entry["in"], entry["out"]) for entry in entries]

    def _require(self, section: Any, name: str, keys: Iterable[str]) -> None:
        missing = [key for key in keys if not isinstance(section, dict) or key not in section]
        if missing:
            raise WageubnError(f"{self.path / MANIFEST}: {name!r} lacks {missing[0]!r}; convert the model again")

    def model(self, name: str) -> Path:
        """Return the .onnx file of section ``name``; raises WageubnError where it is not listed."""
        return self._existing(str(self.section(name, "model")["model"]))

    def state_file(self, name: str) -> Path:
        """Return the initial state ``name``, "state", "quant_state" or "fp_state"; raises WageubnError where it is not listed."""
        return self._existing(STATE_FILES[name])

    def _existing(self, name: str) -> Path:
        if name not in self.files:
            raise WageubnError(f"{self.path / name}: named in {MANIFEST}, which has no hash of it; {remedy(self.manifest)}")
        return self.path / name

"""What an integer stage of a folder was made of: `forward.onnx`, and the manifest that says how."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.artifacts.manifest import integers, optimizer
from wageubn_onnx.graph import load_model
from wageubn_onnx.profiles import table
from wageubn_onnx.proofs.derivation import Made
from wageubn_onnx.recipe import Recipe

Place = tuple[str, str]  # where, what


@dataclass(frozen=True)
class Origin:
    """forward: with its parameters. manifest: as the folder has it."""

    forward: onnx.ModelProto
    manifest: Mapping[str, Any]

    @staticmethod
    def of(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> Origin:
        """Of an artifact folder. Raises WageubnError where `forward.onnx` cannot be read."""
        return Origin(load_model(Path(folder) / "forward.onnx"), manifest)

    @cached_property
    def parameters(self) -> dict[str, np.ndarray[Any, Any]]:
        """The values of `forward`'s parameters, float32, by key."""
        keys = {value.name for value in self.forward.graph.input}
        return {t.name: numpy_helper.to_array(t) for t in self.forward.graph.initializer if t.name in keys}

    def differences(self, recipe: Recipe, made: Made) -> Iterator[Place]:
        """Where a file's ``recipe``, and what the conversion ``made`` of it with `parameters`, are not those of the folder."""
        again = Recipe.of(recipe.source(self.parameters), self.forward, recipe.config)
        for what, here, there in (
            ("network", again.network, recipe.network),
            ("magnitudes of the parameters", again.magnitudes, recipe.magnitudes),
        ):
            if here != there:
                yield "metadata wageubn.recipe", f"has another {what} than forward.onnx"
        for key, wanted in self._wanted(recipe, made).items():
            found = self.manifest.get(key)
            plain = json.loads(json.dumps(wanted))
            if found != plain:
                yield f"manifest.json, {key!r}", f"is not that of the file: {_first(found, plain)}"

    def _wanted(self, recipe: Recipe, made: Made) -> dict[str, Any]:
        """What the manifest must say of the file. Of inference alone it says little that its step does not."""
        config, profile = recipe.config, recipe.config.profile
        told = {
            "profile": profile.name,
            "formats": table(profile.formats),
            "exceptions": [{"layers": layers, "formats": table(formats)} for layers, formats in profile.exceptions],
            "input": {"scale": config.scale, "mean": list(config.mean), "std": list(config.std)},
        }
        if "loss" not in made.integer.named:
            return told
        optimizers = self.manifest.get("optimizer")
        of_float = {k: v for k, v in optimizers.items() if k.startswith("fp_")} if isinstance(optimizers, dict) else {}
        return told | {"optimizer": optimizer(config) | of_float} | integers(made.quantized, made.integer, config)


def _first(found: Any, wanted: Any, path: str = "") -> str:
    """The first place at which two values of JSON differ."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        return next(_first(found[k], wanted[k], f"{path}.{k}" if path else k) for k in wanted if found[k] != wanted[k])
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return next(_first(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    return f"{path or 'all of it'} is {str(found)[:80]!r}, and {str(wanted)[:80]!r} by the file"

"""The artifact folder: its stages, their initial states, one manifest."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, add_parameters

MANIFEST = "manifest.json"
OPTIONAL = ("int_training.onnx", "int_eval.onnx", "state.safetensors")  # absent where the profile has no integer form
LARGEST = 2**31 - 2**24  # bytes of parameters in an ONNX file, since protobuf's end at 2 GB; more lie beside it


@dataclass(frozen=True)
class Artifacts:
    """What `convert` makes. graphs: stage -> model, `forward` without its ``parameters``; the states: key -> initial value;
    manifest: see docs/artifacts.md.

    Of a profile without an integer form there are no integer stages, and ``state`` is empty.
    """

    graphs: dict[str, onnx.ModelProto]
    parameters: dict[str, np.ndarray[Any, Any]]
    fp_state: dict[str, np.ndarray[Any, Any]]
    quant_state: dict[str, np.ndarray[Any, Any]]
    state: dict[str, np.ndarray[Any, Any]]
    manifest: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """Lines for the user, one each: what of the source is not kept, and how close the rest comes."""
        return list(self.manifest["notes"])

    @cached_property
    def files(self) -> dict[str, onnx.ModelProto]:
        """Stage -> model, as the files have them."""
        return self.graphs | {"forward": self._forward()}

    def _forward(self) -> onnx.ModelProto:
        forward = onnx.ModelProto()
        forward.CopyFrom(self.graphs["forward"])
        add_parameters(forward, self.parameters)
        return forward

    def summary(self) -> list[tuple[str, int, int, int]]:
        """Rows of (stage, nodes, quantize nodes, bytes of graph and parameters)."""
        parameters = sum(value.nbytes for value in self.parameters.values())
        return [
            (
                stage,
                len(m.graph.node),
                sum(_is_quantizer(n) for n in m.graph.node),
                m.ByteSize() + (parameters if stage == "forward" else 0),
            )
            for stage, m in self.graphs.items()
        ]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder; into an existing one the files are moved when all are complete, the manifest last.

        Raises WageubnError where ``folder`` is a file, or holds something else than artifacts.
        """
        target = Path(folder)
        if target.exists() and not target.is_dir():
            raise WageubnError(f"{target}: is a file; give a folder to write to")
        if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise WageubnError(f"{target}: holds other files; give an empty or a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write(made)
            if target.is_dir():
                names = sorted(p.name for p in made.iterdir() if p.name != MANIFEST)
                for name in (*names, MANIFEST):
                    os.replace(made / name, target / name)
                for name in {*OPTIONAL} - {*names}:
                    (target / name).unlink(missing_ok=True)
            else:
                made.chmod(0o755)
                os.rename(made, target)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        for stage, graph in self.graphs.items():
            model, path = (self._forward() if stage == "forward" else graph), folder / f"{stage}.onnx"
            if stage == "forward" and sum(value.nbytes for value in self.parameters.values()) > LARGEST:
                onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
            else:
                path.write_bytes(model.SerializeToString(deterministic=True))
        for name, state in (("state", self.state), ("quant_state", self.quant_state), ("fp_state", self.fp_state)):
            if state:
                save_file({key: np.asarray(value, order="C") for key, value in state.items()}, folder / f"{name}.safetensors")
        (folder / MANIFEST).write_text(json.dumps(self.manifest, indent=1) + "\n")


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and any(a.name == "role" for a in node.attribute)

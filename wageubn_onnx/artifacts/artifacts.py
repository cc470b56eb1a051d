"""The artifact folder: its stages, their initial states, one manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from wageubn_onnx.artifacts.contents import MANIFEST, peek, seal
from wageubn_onnx.artifacts.replace import replaced
from wageubn_onnx.graph import DOMAIN, add_parameters

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
        """Write the folder, all or nothing; one that a conversion wrote is replaced whole, and other files in it stay.

        Raises WageubnError where a file is in the way, or the folder holds files and none of a conversion.
        """
        with replaced(folder, _is_conversion) as made:
            self._write(made)

    def _write(self, folder: Path) -> None:
        for stage, graph in self.graphs.items():
            model, path = (self._forward() if stage == "forward" else graph), folder / f"{stage}.onnx"
            if stage == "forward" and sum(value.nbytes for value in self.parameters.values()) > LARGEST:
                onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
            else:
                path.write_bytes(model.SerializeToString(deterministic=True))
        for name, state in (("state", self.state), ("quant_state", self.quant_state), ("fp_state", self.fp_state)):
            if state:
                path = folder / f"{name}.safetensors"
                save_file({key: np.asarray(value, order="C") for key, value in state.items()}, path)
                path.chmod(0o644)  # as the others: safetensors writes for its owner alone
        seal(folder, self.manifest)


def _is_conversion(folder: Path) -> bool:
    """Whether `convert` wrote ``folder``, also where its manifest is damaged."""
    manifest = peek(folder)
    if "target" in manifest or not (folder / MANIFEST).is_file():
        return False
    return "format" in manifest or (folder / "forward.onnx").is_file()


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and any(a.name == "role" for a in node.attribute)

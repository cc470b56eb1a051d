"""One contender of the step benchmark in its own process, so that its peak memory is its own.

``python -m wageubn_onnx.bench.step_worker KIND DIR THREADS STEPS`` answers with one JSON object a line: first that
it is ready, then the seconds a step of each round that a line on stdin asks for, and its peak memory when stdin ends.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.bench.peak import peak_bytes
from wageubn_onnx.errors import WageubnError

WARM_UP = 4


class Contender(Protocol):
    """A training step to time."""

    image_shape: tuple[int, ...]

    @property
    def classes(self) -> int:
        """Labels are in 0..classes-1."""

    @property
    def state_bytes(self) -> int:
        """Bytes that a step carries to the next."""

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> object:
        """Train on one batch."""


def main(kind: str, folder: str, threads: int, steps: int) -> None:
    """Serve rounds until stdin ends."""
    contender = _contender(kind, folder, threads)
    generator = np.random.default_rng(0)
    shape = contender.image_shape
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    labels = generator.integers(0, contender.classes, shape[0], dtype=np.int32)
    for _ in range(WARM_UP):
        contender.step(images, labels)
    _answer({"ready": True, "batch": shape[0], "state_bytes": contender.state_bytes})
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(steps):
            contender.step(images, labels)
        _answer({"seconds": (time.perf_counter() - start) / steps})
    _answer({"peak_bytes": peak_bytes()})


def _contender(kind: str, folder: str, threads: int) -> Contender:
    # a process loads only the runtime that it times
    if kind == "torch":
        import torch

        from wageubn_onnx.bench.torch_step import TorchStep

        torch.set_num_threads(threads)
        return TorchStep(ArtifactFolder(folder))
    from wageubn_onnx.runtime.session import FloatSession, TrainingSession

    return (TrainingSession if kind == "int" else FloatSession)(folder, threads)


def _answer(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    except WageubnError as error:
        _answer({"error": str(error)})

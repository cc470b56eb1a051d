"""Three steps of a converted folder in the onnxruntime of this environment, in three ways: `python releases_worker.py FOLDER`.

FOLDER holds a folder for each profile. Prints JSON: by profile and way the digests of the steps, or a refusal.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.targets.cpu.machine import MENDED, Kernel
from wageubn_onnx.runtime.kernels import kernels
from wageubn_onnx.runtime.session import TrainingSession

Array = np.ndarray[Any, Any]
PROFILES = ("full8", "fast")
WAYS = ("file", "file, optimized", "session")
STEPS, LR = 3, 5


def feeds(manifest: Mapping[str, Any], batch: int) -> Iterator[dict[str, Array]]:
    """Images, labels and scalars of each step by input name."""
    names, random = manifest["step"], np.random.default_rng(0)
    for seed in range(STEPS):
        scalars = {"lr": LR, "gradient_range": 128, "seed": seed}
        fed = {names[key]: np.array(value, np.int32) for key, value in scalars.items()}
        fed[names["images"]] = random.integers(0, 256, (batch, 1, 8, 8)).astype(np.uint8)
        yield fed | {names["labels"]: random.integers(0, 10, batch).astype(np.int32)}


def key_values(manifest: Mapping[str, Any], outputs: Mapping[str, Array]) -> tuple[dict[str, Array], str]:
    """The next state by key, and the digest of all that a step gave."""
    state = {entry["key"]: outputs[entry["out"]] for entry in manifest["state"]}
    content = hashlib.sha256()
    for key, value in sorted(state.items()):
        content.update(f"{key} {value.dtype.str} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
    content.update(f"{int(outputs[manifest['step']['loss']])} {int(outputs[manifest['step']['correct']])}".encode())
    return state, content.hexdigest()[:16]


def from_file(artifacts: ArtifactFolder, optimize: bool) -> Iterator[str]:
    """By the manifest alone, as any program may: int_training.onnx as it is."""
    for kernel in (Kernel.ARITHMETIC, *MENDED):
        if not kernels().is_exact(kernel):
            raise WageubnError(f"{kernel.value}: not exact here")
    options, level = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    model = str(artifacts.model("step"))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    state, _ = load_tensors(artifacts.state_file("state"))
    batch = next(i.shape[0] for i in session.get_inputs() if i.name == artifacts.manifest["step"]["images"])
    for fed in feeds(artifacts.manifest, batch):
        given = fed | {entry["in"]: state[entry["key"]] for entry in artifacts.manifest["state"]}
        state, digest = key_values(artifacts.manifest, dict(zip(names, session.run(names, given), strict=True)))
        yield digest


def from_session(artifacts: ArtifactFolder) -> Iterator[str]:
    """In the forms of `TrainingSession`."""
    session, manifest = TrainingSession(artifacts.path, threads=1), artifacts.manifest
    names = manifest["step"]
    for fed in feeds(manifest, session.batch):
        rate, seed = LR * session.smallest_rate, int(fed[names["seed"]])
        result = session.step(fed[names["images"]], fed[names["labels"]], lr=rate, seed=seed)
        loss = round(result.loss / 2.0 ** manifest["exponents"]["loss"])
        state = session.state()
        outputs = {entry["out"]: state[entry["key"]] for entry in manifest["state"]}
        yield key_values(manifest, outputs | {names["loss"]: np.array(loss), names["correct"]: np.array(result.correct)})[1]


def main(folder: Path) -> None:
    found: dict[str, list[str] | str] = {}
    for profile in PROFILES:
        artifacts = ArtifactFolder(folder / profile)
        for way in WAYS:
            try:
                steps = from_session(artifacts) if way == "session" else from_file(artifacts, way.endswith("optimized"))
                found[f"{profile} {way}"] = list(steps)
            except WageubnError as error:
                found[f"{profile} {way}"] = f"refused: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

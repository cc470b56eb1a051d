"""Steps in onnxruntime, with onnxruntime and numpy alone: also run as a script, by the python of another environment.

python ort_worker.py JOB.npz RESULTS.npz
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime


def described(optimize: bool, threads: int) -> str:
    """The options of a session in words."""
    return f"optimizations {'on' if optimize else 'off'}, {threads} thread{'s' if threads > 1 else ''}"


def steps(
    model: str,
    entries: Sequence[Mapping[str, str]],
    state: Mapping[str, Any],
    feeds: Sequence[Mapping[str, Any]],
    optimize: bool,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """Every output by name after each step; ``entries`` are the manifest's ``state``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    current = {entry["in"]: state[entry["key"]] for entry in entries}
    for fed in feeds:
        outputs = dict(zip(names, session.run(names, {**current, **fed}), strict=True))
        current = {entry["in"]: outputs[entry["out"]] for entry in entries}
        yield outputs


def first_step(model: str, names: Mapping[str, str], entries: Sequence[Mapping[str, str]], state: Mapping[str, Any]) -> str:
    """sha256 of loss, correct and next state after one step from ``state``, as train_onnxruntime.py checks it on its machine."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    shape = next(i.shape for i in session.get_inputs() if i.name == names["images"])
    feeds = {entry["in"]: state[entry["key"]] for entry in entries} | {
        names["images"]: (np.arange(np.prod(shape)) * 37 % 251).astype(np.uint8).reshape(shape),
        names["labels"]: np.zeros(shape[0], np.int32),
        names["lr"]: np.array(5, np.int32),
        names["gradient_range"]: np.array(128, np.int32),
        names["seed"]: np.array(0, np.int32),
    }
    values = session.run([names["loss"], names["correct"], *(entry["out"] for entry in entries)], feeds)
    return hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in values)).hexdigest()


def save_job(path: Any, model: str, entries: Any, state: Any, feeds: Any, optimize: bool, threads: int) -> None:
    """What `main` reads."""
    said = json.dumps({"model": model, "entries": entries, "steps": len(feeds), "optimize": optimize, "threads": threads})
    arrays = {f"state/{key}": value for key, value in state.items()}
    arrays.update({f"feeds/{i}/{name}": value for i, fed in enumerate(feeds) for name, value in fed.items()})
    np.savez(path, said=np.array(said), **arrays)


def load_results(path: Any, count: int) -> Iterator[dict[str, Any]]:
    """What `main` wrote of each step."""
    with np.load(path) as archive:
        for i in range(count):
            yield {name.split("/", 1)[1]: archive[name] for name in archive.files if name.startswith(f"{i}/")}


def main(job: str, results: str) -> None:
    """Read a job, run it, write every output of every step."""
    with np.load(job) as archive:
        arrays = {name: archive[name] for name in archive.files}
    said = json.loads(str(arrays["said"]))
    state = {name[len("state/") :]: value for name, value in arrays.items() if name.startswith("state/")}
    feeds = [
        {name.split("/", 2)[2]: value for name, value in arrays.items() if name.startswith(f"feeds/{i}/")}
        for i in range(said["steps"])
    ]
    run = steps(said["model"], said["entries"], state, feeds, said["optimize"], said["threads"])
    np.savez(results, **{f"{i}/{name}": value for i, outputs in enumerate(run) for name, value in outputs.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Where the time of the integer step goes, by kind of operator: onnxruntime's own profile of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.graph import load_model
from wageubn_onnx.passes.targets.cpu import for_cpu
from wageubn_onnx.runtime.models import lowered_options
from wageubn_onnx.runtime.selftest import trusted_kernels

KERNEL = "_kernel_time"  # how the profile ends the names of such events


@dataclass(frozen=True)
class Share:
    """Of the time in kernels, that of one kind of operator; calls: in one step."""

    operator: str
    share: float
    calls: int


def first_feeds(artifacts: ArtifactFolder, session: onnxruntime.InferenceSession) -> dict[str, NDArray[Any]]:
    """The first step's inputs: its state, random images, ones for labels and coefficients."""
    state, _ = load_tensors(artifacts.state_file("state"))
    held = {name: state[key] for key, name, _ in artifacts.state_names("state")}
    images = artifacts.section("step", "images")["images"]
    feeds = {}
    for i in session.get_inputs():
        dtype = np.dtype(i.type.removeprefix("tensor(").removesuffix(")"))
        feeds[i.name] = held[i.name] if i.name in held else np.ones(i.shape, dtype)
        if i.name == images:
            feeds[i.name] = np.random.default_rng(0).integers(0, 256, i.shape, dtype)
    return feeds


def by_operator(folder: str | os.PathLike[str], threads: int = 1, steps: int = 3) -> list[Share]:
    """The kinds of operator of the folder's integer step, those that take longest first; after one step to warm up.

    The nodes of a branch count as its If. Raises WageubnError where the folder has no integer step.
    """
    artifacts = ArtifactFolder(folder)
    step = for_cpu(load_model(artifacts.model("step")), trusted_kernels())
    inside = {n.name for node in step.graph.node for a in node.attribute if a.HasField("g") for n in a.g.node}
    options = lowered_options(threads)
    with tempfile.TemporaryDirectory() as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "step")
        session = onnxruntime.InferenceSession(step.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feeds = first_feeds(artifacts, session)
        for _ in range(steps + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    timed = [(e["name"].removesuffix(KERNEL), e) for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)]
    own = [event for name, event in timed if name not in inside]
    own = own[len(own) // (steps + 1) :]  # without the first step
    times, calls = Counter[str](), Counter[str]()
    for event in own:
        times[event["args"]["op_name"]] += event["dur"]
        calls[event["args"]["op_name"]] += 1
    return [Share(op, time / times.total(), round(calls[op] / steps)) for op, time in times.most_common()]

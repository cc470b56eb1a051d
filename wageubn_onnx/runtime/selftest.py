"""What a session is sure of before it opens: that its kernels are exact, and that they make the right step of a small network.

`probes` asks kernel by kernel; here whole steps, in the forms that this machine's sessions take, are held to digests that do not
come from a runtime. Both are done once for a machine, a release and a version.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from wageubn_onnx.dryrun import ORT_ERRORS
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.targets.cpu import for_cpu
from wageubn_onnx.passes.targets.cpu.machine import Machine, missing
from wageubn_onnx.runtime.cache import Cache
from wageubn_onnx.runtime.kernels import Kernels, kernels
from wageubn_onnx.runtime.models import lowered_options
from wageubn_onnx.runtime.releases import RIGHT

Array = np.ndarray[Any, Any]
FOLDER = Path(__file__).with_name("steps")
STEPS: dict[str, str] = {
    "full8": "efdc085392cc145bf8922c272fe090c7a37a6047f852b831bc941c6264bb50b7",
    "fast": "a1e8e3c56937416d34ccbb43cba248996db4d496901ea2c20e47ffda1d6c9208",
}
"""Profiles, each of a step beside this file, and the sha256 of what it gives. tests/make_selftest.py writes them."""

INSTALL = f"install another release of onnxruntime ({RIGHT} are right)"
TESTED = "tested"  # an entry of the cache


def trusted_kernels(optimize: bool = False) -> Kernels:
    """The table of this machine, after the self-test; optimize: with onnxruntime's own rewriting of graphs, too.

    Raises WageubnError, naming the kernel or the test, where no form of a step is exact.
    """
    table = kernels()
    lacking = missing(table)
    if lacking is not None:
        raise WageubnError(f"{lacking.value}: not exact on {table.machine}; {INSTALL}")
    cache = Cache(table.machine)
    found = cache.get(TESTED)
    tested, forms = found if isinstance(found, list) else [], _forms(table, optimize)
    if forms not in tested:
        for profile, expected in STEPS.items():
            if result(profile, table, optimize) != expected:
                raise WageubnError(f"self-test: a step of profile {profile} is not right on {table.machine}; {INSTALL}")
        cache.put(TESTED, [*tested, forms])
    return table


def _forms(table: Kernels, optimize: bool) -> str:
    """What the forms of a step depend on."""
    content = [optimize, sorted(kernel.name for kernel in table.exact), *table.measured, *STEPS.values()]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def result(profile: str, machine: Machine, optimize: bool) -> str:
    """The digest of what onnxruntime makes of a step in the forms for ``machine``; empty where it cannot run it."""
    step, feeds = load(profile)
    content = for_cpu(step, machine).SerializeToString()
    names = [output.name for output in step.graph.output]
    try:
        session = onnxruntime.InferenceSession(content, lowered_options(1, optimize), providers=["CPUExecutionProvider"])
        return digest(dict(zip(names, session.run(names, feeds), strict=True)))
    except ORT_ERRORS:
        return ""


def load(profile: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """int_training of a small network, and a value for each input, which the file holds as an initializer."""
    step = onnx.ModelProto.FromString(gzip.decompress((FOLDER / f"{profile}.onnx.gz").read_bytes()))
    inputs = {value.name for value in step.graph.input}
    feeds = {t.name: numpy_helper.to_array(t) for t in step.graph.initializer if t.name in inputs}
    constants = [t for t in step.graph.initializer if t.name not in inputs]
    del step.graph.initializer[:]
    step.graph.initializer.extend(constants)
    return step, feeds


def digest(outputs: Mapping[str, Array]) -> str:
    """sha256 of a step's outputs: names, types, shapes and values."""
    content = hashlib.sha256()
    for name, value in sorted(outputs.items()):
        content.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
    return content.hexdigest()

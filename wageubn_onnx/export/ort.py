"""onnxruntime, any build with the CPU provider: functions inlined, every constant and computation once.

The step loads in a fraction of the time, and needs nothing beside onnxruntime and numpy: the state is an .npz.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.dryrun import ORT_ERRORS
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import ort_worker as worker
from wageubn_onnx.export.base import Array, Bundle, Option, Passes, Runner, Target, Tensors
from wageubn_onnx.onnxir.view import View
from wageubn_onnx.passes.targets.cpu import exact_form, for_cpu, pass_names
from wageubn_onnx.passes.targets.table import PASSES
from wageubn_onnx.runtime.kernels import kernels
from wageubn_onnx.runtime.releases import RIGHT, RIGHT_AND_COMPLETE
from wageubn_onnx.runtime.selftest import trusted_kernels

STEP, EVAL, STATE, TRAIN = "step.onnx", "eval.onnx", "state.npz", "train_onnxruntime.py"
PORTABLE = "onnxruntime --portable"
INT8 = "convolutions of int8 by uint8 that do not saturate: on an x86, VNNI; for another machine export there, or --portable"
FUSED = "QLinear operators, some of com.microsoft, that do not saturate within (their scales are float parameters), as above"
FILES = Path(__file__).with_name("files")


def passes(bundle: Bundle, portable: bool = False) -> Passes:
    """Those for the kernels of this machine. ``portable``: for kernels that each release from 1.17 on has, and is right about."""
    if portable:
        return Passes.chain(bundle.step, PASSES[PORTABLE])
    machine = kernels()
    names = pass_names(machine)
    return Passes(names, lambda count: for_cpu(bundle.step, machine, without=names[count:]))


def write(bundle: Bundle, folder: Path, portable: bool = False) -> dict[str, Any]:
    """step.onnx, eval.onnx and state.npz."""
    before = bundle.evaluation
    evaluation = Passes.chain(before, PASSES[PORTABLE]).whole if portable else exact_form(before, kernels())
    models = {STEP: bundle.lowered, EVAL: evaluation}
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    np.savez(folder / STATE, **bundle.state)  # type: ignore[arg-type]
    shutil.copy(FILES / TRAIN, folder)
    sections = {section: bundle.manifest[section] | {"model": name} for section, name in (("step", STEP), ("eval", EVAL))}
    known = RIGHT if portable else RIGHT_AND_COMPLETE
    return sections | {"state_file": STATE, "needs": _needs(models[STEP]), "releases": known}


def tried(bundle: Bundle, folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The digest of a first step, to which another machine can hold its own.

    Raises WageubnError where no form of a step is exact on this machine.
    """
    trusted_kernels()
    try:
        first = worker.first_step(str(folder / STEP), said["step"], bundle.manifest["state"], bundle.state)
    except ORT_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise WageubnError(f"{STEP}: onnxruntime cannot run it ({reason}); report it, and export with --portable") from error
    return {"first_step": first}


def _needs(step: onnx.ModelProto) -> list[str]:
    """What the step asks of the kernels that run it."""
    view = View(step.graph)
    int8 = any(n.op_type == "ConvInteger" and view.dtype(n.input[0]) == onnx.TensorProto.INT8 for n in step.graph.node)
    fused = any(n.op_type.startswith("QLinear") for n in step.graph.node)
    return [INT8] * int8 + [FUSED] * fused


def readme(manifest: dict[str, Any]) -> str:
    """How to train from the folder with onnxruntime and numpy."""
    step = manifest["step"]
    scalars = ", ".join(f"`{step[key]}`" for key in ("lr", "gradient_range", "seed"))
    return f"""# A training step in integers, for onnxruntime

    pip install onnxruntime numpy
    python {TRAIN} . DATA.npz

DATA.npz holds `x_train` (uint8 [n, C, H, W]) and `y_train`; the trained state goes to trained.npz.

* `{STEP}` takes `{step["images"]}` (uint8 [N, C, H, W]), `{step["labels"]}` (int32 [N]), {scalars} (int32
  scalars) and the state; it gives the next state, `{step["loss"]}` and `{step["correct"]}`.
* `{STATE}` is the state to begin with.
* `manifest.json` says which output of the step is which input of the next (`state`: in, out, key) and what the integers mean
  (`exponents`: value = integer * 2^exponent).
* `{EVAL}` is inference from the same state.
* Not every release of onnxruntime computes integers right on every processor. {TRAIN} runs a first step and stops where its bits
  (`first_step` in manifest.json) are not those of the machine that exported it; {manifest["releases"]} are right.
{"".join(f"* It needs {need}." for need in manifest["needs"])}
"""


@dataclass(frozen=True)
class InProcess:
    """The onnxruntime of this process."""

    model: Path
    manifest: dict[str, Any]
    optimize: bool
    threads: int

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}, {worker.described(self.optimize, self.threads)}"

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        yield from worker.steps(str(self.model), self.manifest["state"], state, feeds, self.optimize, self.threads)


@dataclass(frozen=True)
class OtherPython:
    """The onnxruntime of another environment, which needs that and numpy alone."""

    python: Path
    model: Path
    manifest: dict[str, Any]
    optimize: bool
    threads: int

    @property
    def name(self) -> str:
        return f"onnxruntime {self._version()}, {worker.described(self.optimize, self.threads)}"

    def _version(self) -> str:
        return self._run("-c", "import onnxruntime; print(onnxruntime.__version__)").strip()

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run([str(self.python), "-I", *arguments], capture_output=True, text=True, check=False)
        except OSError as error:
            raise WageubnError(f"{self.python}: cannot be run ({error.strerror}); give the python of an environment") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise WageubnError(f"{self.python}: {last[0][:200]}")
        return done.stdout

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        with tempfile.TemporaryDirectory() as scratch:
            job, results = Path(scratch) / "job.npz", Path(scratch) / "results.npz"
            worker.save_job(job, str(self.model), self.manifest["state"], state, feeds, self.optimize, self.threads)
            self._run(str(Path(worker.__file__)), str(job), str(results))
            yield from worker.load_results(results, len(feeds))


def runners(folder: Path) -> list[Runner]:
    """Graph optimizations off and on, one thread and two."""
    manifest = ArtifactFolder(folder).manifest
    model = folder / manifest["step"]["model"]
    return [InProcess(model, manifest, optimize, threads) for optimize in (False, True) for threads in (1, 2)]


def in_python(python: Path, folder: Path) -> list[Runner]:
    """The same in the environment of ``python``."""
    manifest = ArtifactFolder(folder).manifest
    model = folder / manifest["step"]["model"]
    return [OtherPython(python, model, manifest, optimize, threads) for optimize in (False, True) for threads in (1, 2)]


TARGET = Target(
    "onnxruntime",
    "onnxruntime on the CPU: inlined, with an .npz state",
    write,
    readme,
    runners,
    options={"portable": Option("only kernels that release 1.17 has too", bool)},
    passes=passes,
    tried=tried,
)

"""IREE: the step compiled to machine code ahead of time, for this machine or another, run through iree.runtime."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Array, Bundle, Option, Passes, Runner, Target, Tensors, advance, state_feeds
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.iree import for_iree
from wageubn_onnx.passes.targets.table import PASSES

STEP, EVAL, STATE, TRAIN = "step.vmfb", "eval.vmfb", "state.npz", "train_iree.py"
FILES = Path(__file__).with_name("files")
FLAGS = (
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=generic",  # any CPU of the architecture
    "--iree-vm-bytecode-module-strip-source-map=true",  # the same bytes wherever it is compiled
)


def passes(bundle: Bundle, triple: str | None = None) -> Passes:
    """Those for IREE's compiler."""
    return Passes.chain(bundle.step, PASSES["iree"])


def write(bundle: Bundle, folder: Path, triple: str | None = None) -> dict[str, Any]:
    """step.vmfb, eval.vmfb and state.npz. ``triple``: LLVM's name of the platform to compile for.

    Raises WageubnError with the compiler's first error, where it has one.
    """
    images = next(i for i in bundle.step.graph.input if i.name == bundle.scalars["images"])
    batch = images.type.tensor_type.shape.dim[0].dim_value
    sections = {}
    evaluation = for_iree(tidy(_of_batch(inline(bundle.evaluation), batch)))
    steps = ("step", STEP, bundle.lowered, bundle.step), ("eval", EVAL, evaluation, bundle.evaluation)
    for section, file, model, source in steps:
        model.graph.name = section  # the function's name
        compiled(model, folder / file, triple)
        sections[section] = bundle.manifest[section] | {
            "model": file,
            "arguments": _dtypes(model.graph.input),
            "results": _dtypes(model.graph.output) | _dtypes(source.graph.output),
        }
    np.savez(folder / STATE, **bundle.state)  # type: ignore[arg-type]
    shutil.copy(FILES / TRAIN, folder)
    return sections | {"state_file": STATE, "batch": batch}


def _of_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """``model`` with its open size set: IREE does not compile a product of a strided slice of open size."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_value = batch
    return model


def compiled(model: onnx.ModelProto, out: Path, triple: str | None = None) -> None:
    """Write the program of ``model``, which is inlined, to ``out``; raises WageubnError where IREE cannot compile it."""
    flags = [*FLAGS, *([f"--iree-llvmcpu-target-triple={triple}"] if triple else [])]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        _tool("import_onnx", ["model.onnx", "-o", "model.mlir"], scratch)
        _tool("scripts.iree_compile", ["model.mlir", "-o", str(out.absolute()), *flags], scratch)


def _tool(name: str, arguments: Sequence[str], folder: str) -> None:
    command = [sys.executable, "-m", f"iree.compiler.tools.{name}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "rror" in line] or [f"exit code {done.returncode}"]
        raise WageubnError(f"target iree: {name.split('.')[-1]}: {said[0][:300]}")


def _dtypes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, str]:
    return {v.name: str(onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)) for v in values}


def readme(manifest: dict[str, Any]) -> str:
    """How to train from the folder with iree.runtime and numpy."""
    triple = manifest["target"]["options"].get("triple", "the machine that it was exported on")
    return f"""# A training step in integers, compiled by IREE

    pip install iree-base-runtime numpy
    python {TRAIN} . DATA.npz

DATA.npz holds `x_train` (uint8 [n, C, H, W]) and `y_train`; the trained state goes to trained.npz.

* `{STEP}` is the program of the function `step`, machine code for {triple}: in the order of manifest.json, it takes
  `step.arguments` and gives `step.results`, each with its dtype. A state of int16 travels as int32.
* `{STATE}` is the state to begin with.
* `manifest.json` also says which result is which argument of the next step (`state`: in, out, key) and what the integers mean
  (`exponents`: value = integer * 2^exponent).
* `{EVAL}` is inference from the same state, {manifest["batch"]} images at a time: function `eval`, likewise.
"""


@dataclass(frozen=True)
class Program:
    """A compiled step in this process."""

    file: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return f"IREE {version('iree-base-runtime')}, llvm-cpu"

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        run = function(self.file, "step")
        arguments: Mapping[str, str] = self.manifest["step"]["arguments"]
        results: Mapping[str, str] = self.manifest["step"]["results"]
        for fed in feeds:
            given = state_feeds(state, self.manifest) | dict(fed)
            found = run(*(given[name].astype(dtype) for name, dtype in arguments.items()))
            outputs = {name: np.asarray(value).astype(results[name]) for name, value in zip(results, found, strict=True)}
            state = advance(state, outputs, self.manifest)
            yield outputs


def function(file: Path, name: str) -> Any:
    """The function ``name`` of a program, on all cores."""
    import iree.runtime

    config = iree.runtime.Config("local-task")
    return iree.runtime.load_vm_module(iree.runtime.VmModule.mmap(config.vm_instance, str(file)), config)[name]


def missing() -> str | None:
    """See `base.Target`."""
    return _absent("iree.compiler", "iree-base-compiler")


def cannot_run() -> str | None:
    """See `base.Target`."""
    return _absent("iree.runtime", "iree-base-runtime")


def _absent(module: str, package: str) -> str | None:
    found = importlib.util.find_spec("iree") is not None and importlib.util.find_spec(module) is not None
    return None if found else f"needs {package}; pip install 'wageubn-onnx[iree]'"


def runners(folder: Path) -> list[Runner]:
    """One: on all cores."""
    manifest = ArtifactFolder(folder).manifest
    return [Program(folder / manifest["step"]["model"], manifest)]


TARGET = Target(
    "iree",
    "IREE on the CPU: compiled ahead of time",
    write,
    readme,
    runners,
    missing,
    cannot_run,
    options={"triple": Option("the platform to compile for, such as aarch64-linux-gnu [default: this one]")},
    passes=passes,
)

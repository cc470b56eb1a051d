"""onnxruntime-web: a page that trains in the browser by WebAssembly, and the same module under Node.js for `verify`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wageubn_onnx.artifacts.files import load_tensors, save_tensors
from wageubn_onnx.checkout import ROOT
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Array, Bundle, Option, Passes, Runner, Target, Tensors
from wageubn_onnx.export.ort_worker import described
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.table import PASSES
from wageubn_onnx.training.data import Dataset, load_data

STEP, EVAL, STATE, DATA = "step.onnx", "eval.onnx", "state.safetensors", "data.safetensors"
FILES = Path(__file__).with_name("files") / "web"
PACKAGE, COPIED, WORKER = "onnxruntime-web", ("index.html", "page.mjs", "training.mjs", "package.json"), "worker.mjs"
MODULES = ROOT / "build" / "web" / "node_modules"  # where `make test-backends` installs


def passes(bundle: Bundle, data: Path | None = None) -> Passes:
    """`tidy` alone."""
    return Passes.chain(bundle.step, PASSES["web"])


def write(bundle: Bundle, folder: Path, data: Path | None = None) -> dict[str, Any]:
    """step.onnx, eval.onnx, state.safetensors and the page; with the images and labels of ``data``, data.safetensors.

    Raises WageubnError for data that is damaged, or not of this network.
    """
    for name, model in ((STEP, bundle.lowered), (EVAL, tidy(inline(bundle.evaluation)))):
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    save_tensors(folder / STATE, bundle.state)
    for name in COPIED:
        shutil.copy(FILES / name, folder)
    sections = {section: bundle.manifest[section] | {"model": name} for section, name in (("step", STEP), ("eval", EVAL))}
    if data is None:
        return sections | {"state_file": STATE}
    save_tensors(folder / DATA, _checked(load_data(data), data, bundle).arrays)
    return sections | {"state_file": STATE, "data_file": DATA}


def _checked(data: Dataset, source: Path, bundle: Bundle) -> Dataset:
    """``data``, if the network takes its images and knows its labels."""
    images = next(i for i in bundle.step.graph.input if i.name == bundle.scalars["images"])
    sizes = [d.dim_value for d in images.type.tensor_type.shape.dim]
    if list(data.x_train.shape[1:]) != sizes[1:]:
        raise WageubnError(f"{source}: images are {list(data.x_train.shape[1:])}; this network takes {sizes[1:]}")
    if len(data.x_train) < sizes[0]:
        raise WageubnError(f"{source}: {len(data.x_train)} images to train on; the step takes {sizes[0]} at a time")
    classes = bundle.evaluation.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    greatest = int(max(data.y_train.max(), data.y_test.max()))
    if greatest >= classes:
        raise WageubnError(f"{source}: label {greatest}; this network knows the classes 0..{classes - 1}")
    return data


def readme(manifest: dict[str, Any]) -> str:
    """How to open the page."""
    data = f"`{DATA}` holds the images and labels." if "data_file" in manifest else "Export again with `--data DATA` for images."
    return f"""# A training step in integers, in the browser

    npm install
    python3 -m http.server

then open http://localhost:8000. Any other static server does as well. {data}

`npm install` fetches onnxruntime-web; nothing else is loaded, and nothing leaves the browser.

* `training.mjs` is the step for any page or Node.js program: `Training.open(ort, read)`, then `step(images, labels, lr)`,
  `predict(images)`, `save()` and `load(buffer)`.
* `{STATE}` is the state to begin with. What the page saves is such a file, too, and `wageubn-onnx eval --state`,
  `wageubn-onnx export --state` and `TrainingSession.load` read it.
* `manifest.json` says what the tensors of `{STEP}` and `{EVAL}` are and what the integers mean (`exponents`: value = integer *
  2^exponent).
"""


@dataclass(frozen=True)
class NodeJs:
    """onnxruntime-web under Node.js."""

    folder: Path
    modules: Path
    optimize: bool
    threads: int

    @property
    def name(self) -> str:
        release = json.loads((self.modules / PACKAGE / "package.json").read_text(encoding="utf-8"))["version"]
        return f"{PACKAGE} {release}, wasm, {described(self.optimize, self.threads)}"

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        with tempfile.TemporaryDirectory() as scratch:
            job, results = Path(scratch) / "job.safetensors", Path(scratch)
            fed = {f"feeds/{i}/{name}": value for i, given in enumerate(feeds) for name, value in given.items()}
            save_tensors(job, {f"state/{key}": value for key, value in state.items()} | fed)
            level = "all" if self.optimize else "disabled"
            places = [str(path) for path in (FILES / WORKER, self.modules, self.folder)]
            command = ["node", *places, level, str(self.threads), str(job), str(results)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if "Error" in line] or [f"exit code {done.returncode}"]
                raise WageubnError(f"target web: node: {said[0][:200]}")
            for i in range(len(feeds)):
                yield load_tensors(results / f"{i}.safetensors")[0]


def node_modules() -> Path | None:
    """The folder with onnxruntime-web: one of NODE_PATH, or build/web/node_modules of a checkout."""
    places = [*map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep))), MODULES]
    return next((place for place in places if (place / PACKAGE / "package.json").is_file()), None)


def cannot_run() -> str | None:
    """See `base.Target`."""
    if shutil.which("node") is None:
        return "needs Node.js; apt install nodejs"
    if node_modules() is None:
        return f"needs {PACKAGE}; npm install --prefix {MODULES.parent} {PACKAGE}, or name its node_modules in NODE_PATH"
    return None


def runners(folder: Path) -> list[Runner]:
    """Graph optimizations off and on, one thread and two."""
    modules = node_modules()
    if modules is None:
        raise WageubnError(f"target web: {cannot_run()}")
    return [NodeJs(folder, modules, optimize, threads) for optimize in (False, True) for threads in (1, 2)]


TARGET = Target(
    "web",
    "onnxruntime-web: a page that trains in the browser",
    write,
    readme,
    runners,
    cannot_run=cannot_run,
    options={"data": Option("images and labels for the page to train on: what `train --data` takes", Path)},
    passes=passes,
)

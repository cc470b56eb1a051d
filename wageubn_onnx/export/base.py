"""What an export target is: something that writes the integer step for a runtime, and ways of running what it wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from wageubn_onnx.artifacts.checkpoint import load_state
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import load_model
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.passbase import Pass
from wageubn_onnx.stages import check_stage

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class Bundle:
    """What is exported: the integer step and inference, the state by key, and the manifest of the artifact ``folder``.

    lowered: the step after the passes of a target that writes it.
    """

    step: onnx.ModelProto
    evaluation: onnx.ModelProto
    state: dict[str, Array]
    manifest: dict[str, Any]
    folder: Path = Path()
    lowered: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    @staticmethod
    def of(folder: str | os.PathLike[str], state: str | os.PathLike[str] | None = None) -> Bundle:
        """That of an artifact folder, with its initial state, or that of a file which `train` or `TrainingSession.save` wrote.

        Raises WageubnError where a file is missing or damaged, or the folder's profile has no integer form.
        """
        artifacts = ArtifactFolder(folder)
        step, evaluation = (load_model(artifacts.model(section)) for section in ("step", "eval"))
        tensors, _ = load_state(artifacts.state_file("state") if state is None else state)
        bundle = Bundle(step, evaluation, tensors, artifacts.manifest, artifacts.path)
        for model, stage in ((step, "int_training"), (evaluation, "int_eval")):
            check_stage(model, stage)
        bundle.check_state()
        return bundle

    def check_state(self) -> None:
        """Raise WageubnError, naming the tensor, where the state is not that of the step."""
        inputs = {i.name: i.type.tensor_type for i in self.step.graph.input}
        outputs = {o.name for o in self.step.graph.output}
        for entry in self.manifest["state"]:
            if entry["in"] not in inputs or entry["out"] not in outputs:
                raise WageubnError(f"{self.folder}: its step lacks {entry['in']} -> {entry['out']}, state of the manifest")
            key, declared = entry["key"], inputs[entry["in"]]
            shape = [d.dim_value for d in declared.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)
            if key not in self.state:
                raise WageubnError(f"state {key!r} is missing; give a state of this network")
            if list(self.state[key].shape) != shape or self.state[key].dtype != dtype:
                found = f"{self.state[key].dtype} {list(self.state[key].shape)}, not {dtype} {shape}"
                raise WageubnError(f"state {key!r} is {found}; give a state of this network")

    @property
    def scalars(self) -> dict[str, str]:
        """The names of the step's inputs and outputs beside the state, by what they are: images, labels, lr, ..."""
        keys = ("images", "labels", "lr", "gradient_range", "seed", "loss", "correct")
        return {key: self.manifest["step"][key] for key in keys}


@dataclass(frozen=True)
class Passes:
    """What a target makes of a step before it writes it.

    names: of the passes, in their order. after: the inlined step after so many of them; a pass is a function of what the ones
    before it left, so that any number of them gives a model by itself.
    """

    names: tuple[str, ...]
    after: Callable[[int], onnx.ModelProto]

    @staticmethod
    def chain(step: onnx.ModelProto, passes: Sequence[Pass]) -> Passes:
        """Those that each make a model of an inlined one."""

        def after(count: int) -> onnx.ModelProto:
            model = inline(step)
            for one in passes[:count]:
                model = one.run(model)
            return model

        return Passes(tuple(one.name for one in passes), after)

    @property
    def whole(self) -> onnx.ModelProto:
        """The step after all of them."""
        return self.after(len(self.names))


class Runner(Protocol):
    """One way of running a step, with its name in the table of `verify`, such as ``onnxruntime 1.31.1, 2 threads``."""

    @property
    def name(self) -> str: ...

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """Every output of the step by name, after each of ``feeds`` (images, labels and scalars by input name).

        ``state`` is the first step's, by key; each later step takes what the one before gave.
        """
        ...


@dataclass(frozen=True)
class Option:
    """An option of a target: what the command line says of it, and of what type it is; bool: given or not, without a value."""

    meaning: str
    kind: type[str] | type[Path] | type[bool] = str


@dataclass(frozen=True)
class Target:
    """A runtime to export to.

    passes: what the target makes of a bundle's step; None where it does not write the step, and `verify` leaves it out.
    write: put the files of a `Bundle`, lowered by those, into an empty folder and return what the manifest says of them beside
    the artifact folder's own entries. missing: what must be installed for that, in one line, or None. readme: how to use them, in
    Markdown.
    runners: of a folder that `write` filled, for `verify`. cannot_run: what must be installed for that, or None. options: what
    `passes` and `write` take, by name. tried: what else an export's manifest says, found by
    running what `write` filled a folder with, and ``said`` of it; raises WageubnError where this machine does not run it right.
    """

    name: str
    summary: str
    write: Callable[..., dict[str, Any]]
    readme: Callable[[dict[str, Any]], str]
    runners: Callable[[Path], list[Runner]] = lambda folder: []
    missing: Callable[[], str | None] = lambda: None
    cannot_run: Callable[[], str | None] = lambda: None
    options: dict[str, Option] = field(default_factory=dict)
    passes: Callable[..., Passes] | None = None
    tried: Callable[[Bundle, Path, Mapping[str, Any]], dict[str, Any]] = lambda bundle, folder, said: {}


def advance(state: Tensors, outputs: Tensors, manifest: Mapping[str, Any]) -> dict[str, Array]:
    """The state by key after a step that gave ``outputs`` by name."""
    return dict(state) | {entry["key"]: outputs[entry["out"]] for entry in manifest["state"]}


def state_feeds(state: Tensors, manifest: Mapping[str, Any]) -> dict[str, Array]:
    """The step's state inputs by name."""
    return {entry["in"]: state[entry["key"]] for entry in manifest["state"]}

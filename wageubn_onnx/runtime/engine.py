"""What every session shares: a step and an inference model in stock onnxruntime, and the state between steps."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from wageubn_onnx.artifacts.checkpoint import load_state
from wageubn_onnx.artifacts.files import save_tensors
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.artifacts.state import StateTensor, check_classes, check_state, signature
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.models import last_size, open_model

Array = NDArray[Any]
DTYPES = {"float": "float32", "double": "float64", "float16": "float16"}  # onnxruntime's names; integers keep theirs
RESULTS = ("loss", "correct", "health_output")  # the step keys that are outputs


@dataclass(frozen=True)
class StepResult:
    """What one step says of its batch.

    loss: the mean. correct: how many images it got right (None in float). health: int32 [quantizers, 3], the counters of a step
    converted with them, else None (docs/artifacts.md). extra: the fetched outputs by name.
    """

    loss: float
    correct: int | None
    health: Array | None = None
    extra: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """What the inference model says of n images.

    logits: [n, classes] in the model's own dtype. predictions: int64 [n]. correct and accuracy: None without labels.
    """

    logits: Array
    predictions: NDArray[np.int64]
    correct: int | None = None
    accuracy: float | None = None


class Session(ABC):
    """A training step and the state that it carries from one call to the next.

    The state lies in two sets of preallocated buffers: a step reads one set, writes the other, and then they change
    places, so that no input is ever an output. A step that raises leaves the state as it was.
    """

    # the sections of the manifest
    step_section: ClassVar[str]
    eval_section: ClassVar[str]
    state_section: ClassVar[str]
    step_keys: ClassVar[tuple[str, ...]]
    default_rate: ClassVar[float]
    """The rate that `step` takes where none is given."""

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None, optimize: bool | None = None) -> None:
        """Load the step and the initial state of ``folder``.

        threads: onnxruntime's threads within an operator (None: its own choice). optimize: let onnxruntime rewrite the
        graph (None: where nothing else did). Raises WageubnError where the folder is incomplete or its files disagree.
        """
        if threads is not None and threads < 1:
            raise WageubnError(f"threads {threads}: must be at least 1")
        self.folder = ArtifactFolder(folder)
        self._threads, self._optimize = threads, optimize
        section = self.folder.section(self.step_section, *self.step_keys)
        self.health: list[dict[str, Any]] = section.get("health", [])
        """What the rows of the step's health counters stand for; empty where it has none."""
        keys = (*self.step_keys, "health_output") if self.health else self.step_keys
        self._names: dict[str, str] = self.folder.section(self.step_section, *keys)
        model = self.folder.model(self.step_section)
        self._step_model = self._open_step(model)
        self._outputs = [output.name for output in self._step_model.get_outputs()]
        inputs = {node.name: node for node in self._step_model.get_inputs()}
        self._expected = self._expect(model, inputs)
        for key in keys:
            if self._names[key] not in (self._outputs if key in RESULTS else inputs):
                raise WageubnError(f"{model}: lacks {self._names[key]}, {key!r} of the manifest; convert the model again")
        self.image_shape = tuple(inputs[self._names["images"]].shape)
        if len(self.image_shape) != 4 or not all(isinstance(size, int) for size in self.image_shape):
            raise WageubnError(f"{model}: images are {list(self.image_shape)}, not four fixed sizes; convert the model again")
        self.batch = int(self.image_shape[0])
        self._said = {key: self._names[key] for key in keys if key in RESULTS}
        self._buffers: list[dict[str, Array]] = []
        self.class_names: Sequence[str] | None = None
        """What the labels that the state was trained on stand for, where that is known."""
        self.load(self.folder.state_file(self.state_section))

    # ---- what differs between integers and float ----

    def _open_step(self, model: Path) -> ort.InferenceSession:
        """A session for the step."""
        return open_model(model, self._threads, self._optimize is not False)

    @abstractmethod
    def effective_rate(self, lr: float) -> float:
        """Return the learning rate that the step really uses for ``lr``; WageubnError where it can use none."""

    @property
    @abstractmethod
    def smallest_rate(self) -> float:
        """The smallest learning rate above 0 that the step can use."""

    @abstractmethod
    def _pixels(self, images: Array) -> Array:
        """Turn uint8 [n, C, H, W] into what the models take."""

    @abstractmethod
    def _scalars(self, lr: float, gradient_range: int, seed: int) -> dict[str, Array]:
        """Return the scalar inputs of a step by tensor name."""

    @abstractmethod
    def _loss(self, raw: Array) -> float:
        """Turn the loss output into its value."""

    # ---- one step ----

    def step(
        self,
        images: ArrayLike,
        labels: ArrayLike,
        lr: float | None = None,
        gradient_range: int = 128,
        seed: int = 0,
        fetch: Sequence[str] = (),
    ) -> StepResult:
        """Train on one batch and advance the state.

        images: uint8 [N, C, H, W] exactly as the step was converted. labels: integers [N] in 0..classes-1. lr: the
        learning rate as a number (None: `default_rate`). gradient_range: a power of two in 2..128. seed: of the
        stochastic roundings; keep it over a run, the step counter in the state varies the bits. fetch: further outputs
        of the step (exposed gradients) for ``StepResult.extra``.
        Raises WageubnError for input that the step cannot take; the state then stays as it was.
        """
        feeds = self._scalars(self.default_rate if lr is None else lr, gradient_range, seed)
        feeds[self._names["images"]] = self._pixels(self.check_images(images, exact=True))
        feeds[self._names["labels"]] = self.check_labels(labels, self.batch)
        unknown = [name for name in fetch if name not in self.extra_outputs]
        if unknown:
            known = ", ".join(self.extra_outputs) or "none"
            raise WageubnError(f"fetch {unknown[0]}: not an extra output of the step; those are: {known}")
        results = self._advance(feeds, [*self._said.values(), *fetch])
        correct = int(results[self._said["correct"]]) if "correct" in self._said else None
        loss = self._loss(results[self._said["loss"]])
        health = results[self._said["health_output"]] if "health_output" in self._said else None
        return StepResult(loss, correct, health, {name: results[name] for name in fetch})

    def _advance(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Run the step, exchange the buffers, and return the outputs ``names``."""
        wanted = list(dict.fromkeys(names))
        current, following = self._buffers
        binding = self._step_model.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        for name in wanted:
            binding.bind_output(name)
        for key, tensor in self._expected.items():  # on the CPU an OrtValue is a view of the numpy buffer
            binding.bind_ortvalue_input(tensor.source, ort.OrtValue.ortvalue_from_numpy(current[key]))
            binding.bind_ortvalue_output(tensor.target, ort.OrtValue.ortvalue_from_numpy(following[key]))
        self._step_model.run_with_iobinding(binding)
        self._buffers = [following, current]
        # outputs come in the order in which they were bound
        return {name: value.numpy().copy() for name, value in zip(wanted, binding.get_outputs(), strict=False)}

    @property
    def extra_outputs(self) -> list[str]:
        """Outputs of the step beside state, loss, correct and health, for ``step(fetch=...)``."""
        known = {tensor.target for tensor in self._expected.values()}
        known |= set(self._said.values())
        return [name for name in self._outputs if name not in known]

    # ---- inference ----

    def evaluate(self, images: ArrayLike, labels: ArrayLike | None = None, batch: int = 256) -> EvalResult:
        """Run the inference model with the current state on uint8 [n, C, H, W], ``batch`` images at a time."""
        if batch < 1:
            raise WageubnError(f"batch {batch}: must be at least 1")
        pixels = self.check_images(images)
        truth = None if labels is None else self.check_labels(labels, len(pixels))
        logits = np.concatenate([self._infer(pixels[i : i + batch]) for i in range(0, len(pixels), batch)])
        predictions = logits.argmax(axis=1)
        if truth is None:
            return EvalResult(logits, predictions)
        correct = int((predictions == truth).sum())
        return EvalResult(logits, predictions, correct, correct / len(truth))

    def _infer(self, images: Array) -> Array:
        names = self.folder.section(self.eval_section, "images", "logits")
        feeds = {name: self._buffers[0][key] for name, key in self._eval_state.items()}
        return np.asarray(self._eval_model.run([names["logits"]], {names["images"]: self._pixels(images), **feeds})[0])

    @cached_property
    def _eval_model(self) -> ort.InferenceSession:
        return open_model(self.folder.model(self.eval_section), self._threads, self._optimize is not False)

    @cached_property
    def _eval_state(self) -> dict[str, str]:
        """State that the inference model takes: input name to key."""
        nodes = [*self._eval_model.get_inputs(), *self._eval_model.get_overridable_initializers()]
        names = {node.name for node in nodes}
        taken = {tensor.source: key for key, tensor in self._expected.items() if tensor.source in names}
        if not taken:
            model = self.folder.model(self.eval_section)
            raise WageubnError(f"{model}: takes no tensor of the state, so it cannot be evaluated; convert the model again")
        return taken

    @cached_property
    def classes(self) -> int:
        """How many classes the network tells apart: the last size of the inference model's logits."""
        logits = self.folder.section(self.eval_section, "logits")["logits"]
        return last_size(self.folder.model(self.eval_section), logits)

    # ---- state ----

    def state(self) -> dict[str, Array]:
        """Return a copy of the state by key."""
        return {key: value.copy() for key, value in self._buffers[0].items()}

    @property
    def state_bytes(self) -> int:
        """Bytes of the state (one of the two sets of buffers)."""
        return sum(value.nbytes for value in self._buffers[0].values())

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the state to a safetensors file, atomically; equal states and metadata give equal bytes."""
        classes = {} if self.class_names is None else {"classes": list(self.class_names)}
        recorded = {"signature": signature(self._expected), **classes, **(metadata or {})}
        save_tensors(path, self._buffers[0], recorded)

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Take the state of a file written by `save` (or of a training checkpoint) and return its metadata.

        Training goes on from it to the same bits. Raises WageubnError where the file is damaged or of another network;
        the state then stays as it was.
        """
        tensors, metadata = load_state(path)
        self.take(str(path), tensors, metadata)
        return metadata

    def take(self, where: str, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
        """Take a state that `load_state` read from the file ``where``; raises what `load` raises."""
        check_state(where, tensors, metadata.get("signature"), self._expected)
        current = {key: np.array(tensors[key]) for key in self._expected}
        self._buffers = [current, {key: np.empty_like(value) for key, value in current.items()}]
        self._taken_from, self.class_names = where, metadata.get("classes")

    def check_classes(self, classes: Sequence[str] | None) -> None:
        """Raise WageubnError, naming the first difference, where labels stand for other ``classes`` than in training."""
        check_classes(self._taken_from, self.class_names, classes)

    def update(self, tensors: Mapping[str, Array]) -> None:
        """Replace these tensors of the state; raises WageubnError for one that is unknown, misshapen or out of its range."""
        current = self.state() | dict(tensors)
        check_state("the new state", current, None, self._expected)
        self._buffers = [current, {key: np.empty_like(value) for key, value in current.items()}]

    # ---- input checks ----

    def check_images(self, images: ArrayLike, exact: bool = False) -> Array:
        """Return ``images`` as a whole uint8 [n, C, H, W]; ``exact``: n is the batch of the step."""
        array = np.asarray(images)
        expected = [self.batch if exact else "n", *self.image_shape[1:]]
        sizes_agree = array.ndim == 4 and array.shape[1:] == self.image_shape[1:]
        if array.dtype != np.uint8 or not sizes_agree or (exact and len(array) != self.batch) or not len(array):
            raise WageubnError(f"images are {array.dtype} {list(array.shape)}; this network takes uint8 {expected}")
        return np.asarray(array, order="C")

    def check_labels(self, labels: ArrayLike, count: int) -> NDArray[np.int32]:
        """Return ``labels`` as int32 [count], each in 0..classes-1."""
        array = np.asarray(labels)
        if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
            raise WageubnError(f"labels are {array.dtype} {list(array.shape)}; they must be integers [{count}]")
        wrong = np.flatnonzero((array < 0) | (array >= self.classes))
        if wrong.size:
            first = int(wrong[0])
            raise WageubnError(f"labels[{first}] is {array[first]}; this network knows the classes 0..{self.classes - 1}")
        return array.astype(np.int32)

    # ---- loading ----

    def _expect(self, model: Path, inputs: Mapping[str, ort.NodeArg]) -> dict[str, StateTensor]:
        formats = self.folder.manifest.get("tensors", {})
        expected = {}
        for key, source, target in self.folder.state_names(self.state_section):
            if source not in inputs or target not in self._outputs:
                raise WageubnError(f"{model}: lacks {source} -> {target}, state of the manifest; convert the model again")
            name = inputs[source].type.removeprefix("tensor(").removesuffix(")")
            dtype = np.dtype(DTYPES.get(name, name))
            expected[key] = StateTensor(key, source, target, dtype, tuple(inputs[source].shape), **_limits(formats, key))
        return expected


def _limits(formats: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return what the manifest's ``tensors`` declares of ``key``: range and grid, None where it is silent."""
    entry = formats.get(key, {})
    grid = next((f"{name} {entry[name]}" for name in ("fraction", "exponent") if entry.get(name) is not None), None)
    return {"minimum": entry.get("min"), "maximum": entry.get("max"), "unit": grid}

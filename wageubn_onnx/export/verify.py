"""`verify`: the same steps on every available target, and every output compared bit for bit with the reference's.

The reference is `int_training.onnx` itself in onnxruntime, optimizations off, on one thread. onnx's ReferenceEvaluator and the
project's own interpreter of exact integers are compared with it like the targets.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import ort
from wageubn_onnx.export.base import Array, Bundle, Passes, Runner, Target, Tensors, advance, state_feeds
from wageubn_onnx.export.export import write_lowered
from wageubn_onnx.export.locate import FAULTS, Case, Place, in_passes, in_runtime, one_line
from wageubn_onnx.export.table import TARGETS
from wageubn_onnx.passes.targets.cpu import exact_form, whole_forms_for
from wageubn_onnx.proofs.interpreter import interpret
from wageubn_onnx.runtime.kernels import kernels

RATE, GRADIENT_RANGES = 8, (128, 32)  # 8/512: no step of these inputs saturates the weights
EVALUATORS = ("reference-evaluator", "interpreter")


@dataclass(frozen=True)
class Difference:
    """Where a target first differs: in step ``step`` (from 0), tensor and index, and both values there."""

    step: int
    tensor: str
    index: list[int]
    expected: int
    found: int


@dataclass(frozen=True)
class Row:
    """What one way of running gave: how many tensors were compared, and the first difference.

    failure: why it could not be exported or run, though the target is there. place: where a difference or a failure begins.
    unavailable: why the target is not there.
    """

    target: str
    runner: str
    steps: int
    tensors: int
    difference: Difference | None = None
    unavailable: str | None = None
    failure: str | None = None
    place: Place | None = None

    @property
    def wrong(self) -> bool:
        return self.difference is not None or self.failure is not None

    @property
    def same(self) -> bool:
        return not self.wrong and self.unavailable is None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    folder: str | os.PathLike[str],
    targets: Sequence[str] = (),
    steps: int = 10,
    seed: int = 0,
    pythons: Sequence[Path] = (),
) -> Iterator[Row]:
    """Yield a `Row` for every way of running the folder's step on ``targets`` (none: all, and both evaluators).

    Images, labels and the seed of the roundings are drawn from ``seed``; the gradient range changes halfway. pythons: of further
    environments, whose onnxruntime runs the portable form. Raises WageubnError for an unknown target, one that was asked for and
    is unavailable, and a folder that is incomplete.
    """
    bundle = Bundle.of(folder)
    asked = set(targets)
    names = [*EVALUATORS, *(target.name for target in TARGETS if target.passes)]
    unknown = sorted(asked.difference(names))
    if unknown:
        raise WageubnError(f"target {unknown[0]}: unknown; choose from {', '.join(names)}")
    with tempfile.TemporaryDirectory() as scratch:
        reference = Reference.of(bundle, _inputs(bundle, steps, seed), Path(scratch))
        for name in EVALUATORS:
            if not asked or name in asked:
                way = Way(name, partial(_evaluators, name))
                yield _compared(way, Evaluator(name, replace(bundle, lowered=bundle.step)), reference)
        for target in TARGETS:
            if target.passes is None or asked and target.name not in asked:
                continue
            reason = target.missing() or target.cannot_run()
            if reason and target.name in asked:
                raise WageubnError(f"target {target.name}: {reason}")
            if reason:
                yield Row(target.name, "", 0, 0, unavailable=reason)
                continue
            yield from _on(target.name, target, target.passes(bundle), {}, target.runners, reference)
        for python in pythons:
            name, options, runners = "onnxruntime --portable", {"portable": True}, partial(ort.in_python, python)
            yield from _on(name, ort.TARGET, ort.passes(bundle, **options), options, runners, reference)


@dataclass(frozen=True)
class Way:
    """One way of running a step: the ``index``-th that ``runners`` gives of a lowered bundle and an empty folder."""

    target: str
    runners: Callable[[Bundle, Path], list[Runner]]
    index: int = 0
    passes: Passes | None = None  # None: the step runs as it is


def _on(
    name: str,
    target: Target,
    passes: Passes,
    options: dict[str, Any],
    runners: Callable[[Path], list[Runner]],
    reference: Reference,
) -> Iterator[Row]:
    """A row for each way of running what ``target`` writes."""

    def written(lowered: Bundle, folder: Path) -> list[Runner]:
        write_lowered(target, lowered, folder, options)
        return runners(folder)

    with tempfile.TemporaryDirectory() as scratch:
        try:
            ways = written(replace(reference.bundle, lowered=passes.whole), Path(scratch))
        except FAULTS as error:
            yield _failed(Way(name, written, 0, passes), "", error, reference, 0)
            return
        for index, runner in enumerate(ways):
            yield _compared(Way(name, written, index, passes), runner, reference)


@dataclass(frozen=True)
class Reference:
    """The steps that are compared: what goes into each, digests of what comes out, and how to run them again.

    places: where passes of a target change the numbers of a step; None where they do not. All ways of running it share that.
    """

    bundle: Bundle
    feeds: Sequence[Tensors]
    expected: Sequence[dict[str, str]]
    runner: Runner
    places: dict[tuple[str, int], Place | None] = field(default_factory=dict)

    @staticmethod
    def of(bundle: Bundle, feeds: Sequence[Tensors], scratch: Path) -> Reference:
        """Run ``feeds`` once."""
        step = scratch / "reference.onnx"
        machine = kernels()
        exact = exact_form(bundle.step, machine) if whole_forms_for(machine) else bundle.step
        step.write_bytes(exact.SerializeToString())
        runner = ort.InProcess(step, bundle.manifest, optimize=False, threads=1)
        return Reference(bundle, feeds, [_digests(outputs) for outputs in runner.steps(bundle.state, feeds)], runner)

    def case(self, step: int) -> Case:
        """What goes into that step, and what comes out."""
        state = dict(self.bundle.state)
        for i, outputs in enumerate(self.runner.steps(state, self.feeds[: step + 1])):
            if i == step:
                return Case({**self.feeds[step], **state_feeds(state, self.bundle.manifest)}, outputs, self.bundle.manifest)
            state = advance(state, outputs, self.bundle.manifest)
        raise IndexError(step)


def _evaluators(kind: str, bundle: Bundle, folder: Path) -> list[Runner]:
    return [Evaluator(kind, bundle)]


@dataclass(frozen=True)
class Evaluator:
    """onnx's ReferenceEvaluator, or the interpreter of exact integers, on the lowered step of a bundle: the step as it is."""

    kind: str
    bundle: Bundle

    @property
    def name(self) -> str:
        return f"onnx {onnx.__version__}, ReferenceEvaluator" if self.kind == EVALUATORS[0] else "exact integers"

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        names = [output.name for output in self.bundle.lowered.graph.output]
        run = self._function()
        for fed in feeds:
            found = run(state_feeds(state, self.bundle.manifest) | dict(fed))
            outputs = {name: found[name] for name in names}
            state = advance(state, outputs, self.bundle.manifest)
            yield outputs

    def _function(self) -> Callable[[dict[str, Array]], dict[str, Array]]:
        if self.kind == EVALUATORS[1]:
            return lambda fed: interpret(self.bundle.lowered, fed)
        evaluator = ReferenceEvaluator(self.bundle.lowered)
        return lambda fed: dict(zip(evaluator.output_names, map(np.asarray, evaluator.run(None, fed)), strict=True))


def _inputs(bundle: Bundle, steps: int, seed: int) -> list[dict[str, Array]]:
    """What the step is fed beside its state."""
    names, draw = bundle.scalars, np.random.default_rng(seed)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in bundle.step.graph.input}
    classes = bundle.evaluation.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    return [
        {
            names["images"]: draw.integers(0, 256, shapes[names["images"]], dtype=np.uint8),
            names["labels"]: draw.integers(0, classes, shapes[names["labels"]], dtype=np.int32),
            names["lr"]: np.array(RATE, np.int32),
            names["gradient_range"]: np.array(GRADIENT_RANGES[2 * step >= steps], np.int32),
            names["seed"]: np.array(seed, np.int32),
        }
        for step in range(steps)
    ]


def _digests(outputs: Tensors) -> dict[str, str]:
    """dtype, shape and bits of every output, in 32 hexadecimal digits: the outputs of all steps would not fit into memory."""
    return {
        name: hashlib.blake2b(f"{value.dtype}{value.shape}".encode() + value.tobytes(), digest_size=16).hexdigest()
        for name, value in sorted(outputs.items())
    }


def _compared(way: Way, runner: Runner, reference: Reference) -> Row:
    bundle, compared, step = reference.bundle, 0, 0
    try:
        for step, outputs in enumerate(runner.steps(bundle.state, reference.feeds)):
            expected, found = reference.expected[step], _digests(outputs)
            wrong = [tensor for tensor, digest in expected.items() if found.get(tensor) != digest]
            compared += len(expected)
            if wrong:
                first = _first_index(reference.case(step).expected[wrong[0]], outputs.get(wrong[0]))
                place = _located(way, reference, step)
                return Row(way.target, runner.name, step + 1, compared, Difference(step, wrong[0], *first), place=place)
    except FAULTS as error:
        return _failed(way, runner.name, error, reference, step)
    return Row(way.target, runner.name, len(reference.feeds), compared)


def _failed(way: Way, runner: str, error: Exception, reference: Reference, step: int) -> Row:
    place = _located(way, reference, step)
    return Row(way.target, runner, step, 0, failure=one_line(error), place=place)


def _located(way: Way, reference: Reference, step: int) -> Place:
    bundle, case, key = reference.bundle, reference.case(step), (way.target, step)
    passes = way.passes or Passes((), lambda count: bundle.step)
    if key not in reference.places:
        reference.places[key] = in_passes(bundle.step, passes, case)

    def again(model: onnx.ModelProto, folder: Path) -> Runner:
        return way.runners(replace(bundle, lowered=model), folder)[way.index]

    return reference.places[key] or in_runtime(passes.whole, again, case)


def _first_index(expected: Array, found: Array | None) -> tuple[list[int], int, int]:
    """Index, expected and found value; the index is empty where the shapes differ, too."""
    if found is None or found.shape != expected.shape:
        return [], expected.size, -1 if found is None else found.size
    flat = int(np.flatnonzero(expected.reshape(-1) != found.reshape(-1))[:1].sum())
    index = [int(i) for i in np.unravel_index(flat, expected.shape)] if expected.shape else []
    return index, int(expected.reshape(-1)[flat]), int(found.reshape(-1)[flat])

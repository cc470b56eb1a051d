"""`verify`: the same steps on every available target, and every output compared bit for bit with the reference's.

The reference is `int_training.onnx` itself in onnxruntime, optimizations off, on one thread. onnx's ReferenceEvaluator and the
project's own interpreter of exact integers are compared with it like the targets.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export import ort
from wageubn_onnx.export.base import Array, Bundle, Runner, Target, Tensors, advance, state_feeds
from wageubn_onnx.export.export import write
from wageubn_onnx.export.table import TARGETS
from wageubn_onnx.inline import inline
from wageubn_onnx.proofs.interpreter import interpret

BYTES = 2**28  # of intermediate tensors that are looked at together, to find the first that differs
RATE, GRADIENT_RANGES = 8, (128, 32)  # 8/512: no step of these inputs saturates the weights
EVALUATORS = ("reference-evaluator", "interpreter")


@dataclass(frozen=True)
class Difference:
    """Where a target first differs: in step ``step`` (from 0), tensor and index, and both values there.

    node: the first node of the inlined step, in topological order, whose result differs; None where the target cannot show it.
    """

    step: int
    tensor: str
    index: list[int]
    expected: int
    found: int
    node: str | None = None


@dataclass(frozen=True)
class Row:
    """What one way of running gave: how many tensors were compared, and the first difference, or why it could not run."""

    target: str
    runner: str
    steps: int
    tensors: int
    difference: Difference | None = None
    unavailable: str | None = None

    @property
    def same(self) -> bool:
        return self.difference is None and self.unavailable is None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    folder: str | os.PathLike[str],
    targets: Sequence[str] = (),
    steps: int = 10,
    seed: int = 0,
    pythons: Sequence[Path] = (),
    locate: bool = True,
) -> Iterator[Row]:
    """Yield a `Row` for every way of running the folder's step on ``targets`` (none: all, and both evaluators).

    Images, labels and the seed of the roundings are drawn from ``seed``; the gradient range changes halfway. pythons: of further
    environments with an onnxruntime of their own. locate: look for the node where a difference begins. Raises WageubnError for
    an unknown target, one that was asked for and is unavailable, and a folder that is incomplete.
    """
    bundle = Bundle.of(folder)
    asked = set(targets)
    names = [*EVALUATORS, *(target.name for target in TARGETS)]
    unknown = sorted(asked.difference(names))
    if unknown:
        raise WageubnError(f"target {unknown[0]}: unknown; choose from {', '.join(names)}")
    feeds = _inputs(bundle, steps, seed)
    with tempfile.TemporaryDirectory() as scratch:
        step = Path(scratch) / "reference.onnx"
        step.write_bytes(bundle.step.SerializeToString())
        reference = ort.InProcess(step, bundle.manifest, optimize=False, threads=1)
        expected = [_digests(outputs) for outputs in reference.steps(bundle.state, feeds)]
        for name in EVALUATORS:
            if not asked or name in asked:
                evaluator = Evaluator(name, bundle)
                yield _compared(name, evaluator, reference, bundle, feeds, expected, None)
        for target in TARGETS:
            if asked and target.name not in asked:
                continue
            reason = target.missing()
            if reason and target.name in asked:
                raise WageubnError(f"target {target.name}: {reason}")
            if reason:
                yield Row(target.name, "", 0, 0, unavailable=reason)
                continue
            exported = Path(scratch) / target.name
            exported.mkdir()
            write(target, bundle, exported, {})
            others = [runner for python in pythons for runner in ort.in_python(python, exported)] if target is ort.TARGET else []
            try:
                own = target.runners(exported)
            except WageubnError as error:
                if target.name in asked:
                    raise
                yield Row(target.name, "", 0, 0, unavailable=str(error))
                continue
            for runner in (*own, *others):
                yield _compared(target.name, runner, reference, bundle, feeds, expected, target if locate else None)


@dataclass(frozen=True)
class Evaluator:
    """onnx's ReferenceEvaluator, or the interpreter of exact integers, on the step as the folder has it."""

    kind: str
    bundle: Bundle

    @property
    def name(self) -> str:
        return f"onnx {onnx.__version__}, ReferenceEvaluator" if self.kind == EVALUATORS[0] else "exact integers"

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        names = [output.name for output in self.bundle.step.graph.output]
        run = self._function()
        for fed in feeds:
            found = run(state_feeds(state, self.bundle.manifest) | dict(fed))
            outputs = {name: found[name] for name in names}
            state = advance(state, outputs, self.bundle.manifest)
            yield outputs

    def _function(self) -> Callable[[dict[str, Array]], dict[str, Array]]:
        if self.kind == EVALUATORS[1]:
            return lambda fed: interpret(self.bundle.step, fed)
        evaluator = ReferenceEvaluator(self.bundle.step)
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


def _compared(
    name: str,
    runner: Runner,
    reference: Runner,
    bundle: Bundle,
    feeds: Sequence[Tensors],
    expected: Sequence[dict[str, str]],
    target: Target | None,
) -> Row:
    compared = 0
    for step, outputs in enumerate(runner.steps(bundle.state, feeds)):
        found = _digests(outputs)
        wrong = [tensor for tensor, digest in expected[step].items() if found.get(tensor) != digest]
        compared += len(expected[step])
        if wrong:
            difference = _difference(step, wrong[0], outputs, reference, bundle, feeds, target)
            return Row(name, runner.name, step + 1, compared, difference)
    return Row(name, runner.name, len(feeds), compared)


def _difference(
    step: int,
    tensor: str,
    outputs: Tensors,
    reference: Runner,
    bundle: Bundle,
    feeds: Sequence[Tensors],
    target: Target | None,
) -> Difference:
    state = dict(bundle.state)
    right: dict[str, Array] = {}
    for i, given in enumerate(reference.steps(bundle.state, feeds[: step + 1])):
        right = given
        if i < step:
            state = advance(state, given, bundle.manifest)
    first = _first_index(right[tensor], outputs.get(tensor))
    node = _first_node(bundle, state, feeds[step], target) if target else None
    return Difference(step, tensor, *first, node)


def _first_index(expected: Array, found: Array | None) -> tuple[list[int], int, int]:
    """Index, expected and found value; the index is empty where the shapes differ, too."""
    if found is None or found.shape != expected.shape:
        return [], expected.size, -1 if found is None else found.size
    flat = int(np.flatnonzero(expected.reshape(-1) != found.reshape(-1))[:1].sum())
    index = [int(i) for i in np.unravel_index(flat, expected.shape)] if expected.shape else []
    return index, int(expected.reshape(-1)[flat]), int(found.reshape(-1)[flat])


def _first_node(bundle: Bundle, state: dict[str, Array], fed: Tensors, target: Target) -> str | None:
    """Export the step with its intermediate tensors as outputs, some at a time, and compare them in topological order."""
    inlined = onnx.shape_inference.infer_shapes(inline(bundle.step), strict_mode=True, data_prop=True)
    makers = {name: node for node in inlined.graph.node for name in node.output}
    for names in _portions(inlined):
        shown = _showing(inlined, names)
        part = Bundle(shown, bundle.evaluation, state, bundle.manifest)
        with tempfile.TemporaryDirectory() as scratch:
            folder, model = Path(scratch) / "export", Path(scratch) / "reference.onnx"
            folder.mkdir()
            model.write_bytes(shown.SerializeToString())
            write(target, part, folder, {})
            expected = next(ort.InProcess(model, bundle.manifest, optimize=False, threads=1).steps(state, [fed]))
            found = next(target.runners(folder)[0].steps(state, [fed]))
        for name in names:
            if name in found and not np.array_equal(expected[name], found[name]):
                node = makers[name]
                return f"{node.name} ({node.op_type})"
    return None


def _portions(model: onnx.ModelProto) -> Iterator[list[str]]:
    """The results of the nodes, in order, in portions of at most `BYTES`; conditions are left out."""
    types = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.output)}
    names, size = list[str](), 0
    for node in model.graph.node:
        for name in node.output:
            declared = types.get(name)
            if declared is None or declared.elem_type == onnx.TensorProto.BOOL or node.op_type == "Constant":
                continue
            count = np.prod([d.dim_value for d in declared.shape.dim], dtype=np.int64)
            bytes_ = int(count) * onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type).itemsize
            if names and size + bytes_ > BYTES:
                yield names
                names, size = [], 0
            names.append(name)
            size += bytes_
    if names:
        yield names


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """``model`` with these tensors as outputs, too."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    types = {v.name: v for v in model.graph.value_info}
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(types[name] for name in names if name not in known)
    return shown

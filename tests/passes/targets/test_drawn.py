"""Drawn networks, degenerate wherever they may be: what sessions and exports run gives the bits of the canonical graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings

from drawn import Layer, Source, sources
from machines import Choosy, Plain, everything_fires
from networks import ort_session
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu import for_cpu
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.portable import portable
from wageubn_onnx.pipeline import convert
from wageubn_onnx.runtime.kernels import kernels

Array = np.ndarray[Any, Any]
STEPS = 3

# Networks that once could not be rewritten
ONE_CHANNEL_NORMALISED_INSIDE = Source(shape=(1, 8, 8), normalised="scalars", layers=(Layer(out=8),), classes=10, batch=4)
TAPS_ON_PADDING_ALONE = Source(
    shape=(3, 1, 8),
    layers=(
        Layer(kernel=(1, 2), strides=(3, 4), pads=(0, 0, 0, 0), bias=True, weights="zero", shortcut="projection"),
        Layer(kernel=(2, 2), strides=(4, 4), pads=(2, 2, 2, 1), groups="depthwise", gamma="", relu=False),
        Layer(kind="average", kernel=(2, 5), strides=(4, 1), pads=(2, 2, 2, 2)),
    ),
    pooled=False,
    batch=1,
    profile="fast",
)
PHASES_BEYOND_THE_MAP = Source(
    shape=(2, 1, 8),
    layers=(
        Layer(out=1, kernel=(3, 2), strides=(1, 3), dilation=2, pads=(1, 0, 1, 2), gamma="zero", shortcut="projection"),
        Layer(out=5, kernel=(2, 3), strides=(4, 4), pads=(2, 2, 2, 0), gamma="", relu=False),
    ),
    weights="zero",
    batch=1,
    profile="sq8s",
    bn="frozen",
    health=True,
)
ONE_NUMBER_OF_FOUR_AXES = Source(
    shape=(3, 3, 5),
    layers=(
        Layer(kind="max", kernel=(3, 2), pads=(2, 0, 0, 0)),
        Layer(out=1, kernel=(2, 1), strides=(2, 2), dilation=2, pads=(0, 0, 0, 0), gamma="zero"),
    ),
    pooled=False,
    classes=3,
    batch=1,
    profile="fast",
    bn="frozen",
    train_last=1,
    health=True,
)
NOTHING_BEFORE_THE_CLASSIFIER = Source(shape=(2, 2, 1), normalised="scalars", layers=(), pooled=False, profile="e16")


def forms(step: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto, bool]]:
    """The step as it is run, and whether graph optimizations are on."""
    yield "of this machine, as sessions and `export --target onnxruntime` have it", for_cpu(step, kernels()), True
    yield "--portable", portable(tidy(inline(step))), True
    if kernels().is_exact(*Kernel):
        yield "with every form", for_cpu(step, Choosy()), False
    yield "with the forms that every release has", for_cpu(step, Plain()), False


def inputs(made: Artifacts, source: Source, seed: int) -> dict[str, Array]:
    """Of a step: the initial state for seed 0, else one anywhere in its ranges, exponents at their least for every other."""
    random, values = np.random.default_rng(seed), {}
    for entry in made.manifest["state"]:
        declared, value = made.manifest["tensors"][entry["key"]], made.state[entry["key"]]
        least, greatest = int(declared["min"]), int(declared["max"])
        if seed and entry["key"].endswith(".exponent") and seed % 2:
            value = np.full_like(value, least)
        elif seed:
            value = random.integers(least, greatest, value.shape, endpoint=True).astype(value.dtype)
        values[entry["in"]] = value
    step = made.manifest["step"]
    scalars = {"lr": 1 + seed, "gradient_range": 2 ** (1 + seed % 7), "seed": seed}
    values |= {step[key]: np.array(value, np.int32) for key, value in scalars.items()}
    return values | {step["images"]: source.images(seed), step["labels"]: source.labels(seed)}


def hold(source: Source, folder: Path) -> None:
    """Convert ``source``, and hold every form of its step, and of inference, to the canonical one."""
    onnx.save(source.model, folder / "drawn.onnx")
    made = convert(folder / "drawn.onnx", source.config)
    step, evaluation = made.files["int_training"], made.files["int_eval"]
    empty = [v.name for v in step.graph.value_info if any(d.dim_value == 0 for d in v.type.tensor_type.shape.dim)]
    assert empty == [], "tensors without elements"
    canonical = ort_session(inline(step), optimize=False)
    names, feeds = [o.name for o in canonical.get_outputs()], [inputs(made, source, seed) for seed in range(STEPS)]
    expected = [canonical.run(names, fed) for fed in feeds]
    for form, model, optimize in forms(step):
        run = ort_session(model, optimize=optimize)
        for number, (fed, right) in enumerate(zip(feeds, expected, strict=True)):
            for name, found, value in zip(names, run.run(names, fed), right, strict=True):
                assert found.dtype == value.dtype
                np.testing.assert_array_equal(found, value, err_msg=f"{name} in step {number}, {form}")
    canonical, images = ort_session(inline(evaluation), optimize=False), made.manifest["eval"]["images"]
    runs = [ort_session(model, optimize=True) for model in (tidy(inline(evaluation)), portable(tidy(inline(evaluation))))]
    for fed in feeds:
        given = {i.name: fed[i.name] for i in canonical.get_inputs() if i.name != images} | {images: source.images(0)[:1]}
        (value,) = canonical.run(None, given)
        for run in runs:
            np.testing.assert_array_equal(run.run(None, given)[0], value, err_msg="inference")


quick = settings(
    max_examples=16, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(sources)
@example(ONE_CHANNEL_NORMALISED_INSIDE)
@example(TAPS_ON_PADDING_ALONE)
@example(PHASES_BEYOND_THE_MAP)
@example(ONE_NUMBER_OF_FOUR_AXES)
@example(NOTHING_BEFORE_THE_CLASSIFIER)
def test_what_is_run_is_the_canonical_step(tmp_path: Path, source: Source) -> None:
    hold(source, tmp_path)


@pytest.mark.slow
@settings(quick, max_examples=500)
@given(sources)
def test_what_is_run_is_the_canonical_step_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    """With the passes that only large tensors are worth."""
    everything_fires(monkeypatch)
    hold(source, tmp_path)

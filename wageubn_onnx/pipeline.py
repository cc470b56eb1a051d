"""THE list: every stage and every pass, in order, and `convert`, which runs it from top to bottom."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.artifacts.manifest import describe
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import INTEGER_STAGES, Model, Tensor, next_states, to_proto
from wageubn_onnx.operators import POOLS
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.importing import folded, formats, forward, freeze, head
from wageubn_onnx.passes.lower import fold, health, integers
from wageubn_onnx.passes.quantize import (
    activations,
    batchnorm,
    bn_backward,
    chance,
    constants,
    convolutions,
    errors,
    expect,
    frozen,
    gradients,
    inputs,
    momentum,
    rescale,
    updates,
    weights,
)
from wageubn_onnx.passes.quantize import loss as quantize_loss
from wageubn_onnx.passes.training import backward, loss, sgd, unroll
from wageubn_onnx.proofs.ranges import require
from wageubn_onnx.ranges import greatest_errors
from wageubn_onnx.recipe import Recipe
from wageubn_onnx.stages import check_stage


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: the passes that lead to it from the stage before (`quant_eval`: from `forward`)."""

    name: str
    summary: str
    passes: tuple[Pass, ...]

    def __call__(self, before: Any, config: Config) -> Model:
        """Run the passes in order and check nothing: `check_stage` looks at the file."""
        model = before
        for step in self.passes:
            model = step(model, config)
        model.stage = self.name
        return model  # type: ignore[no-any-return]


# The quantizers of the forward half serve training and inference alike
FORWARD_QUANTIZERS = (
    expect.PASS,
    rescale.PASS,
    inputs.PASS,
    weights.PASS,
    convolutions.PASS,
    activations.PASS,
    batchnorm.PASS,
    frozen.PASS,
)

FORWARD = Stage(
    "forward", "the source network in one spelling", (forward.PASS, folded.PASS, head.PASS, freeze.PASS, formats.PASS)
)
FP_TRAINING = Stage(
    "fp_training", "a float training step: state in, state out", (unroll.TRAINING, loss.PASS, backward.PASS, sgd.PASS)
)
QUANT_TRAINING = Stage(
    "quant_training",
    "every data path on its grid, still in float",
    (
        *FORWARD_QUANTIZERS,
        chance.PASS,
        errors.PASS,
        bn_backward.PASS,
        gradients.PASS,
        momentum.PASS,
        updates.PASS,
        quantize_loss.PASS,
        constants.PASS,
    ),
)
INT_TRAINING = Stage("int_training", "the same step in integers only", (integers.PASS, fold.PASS, health.PASS))
QUANT_EVAL = Stage("quant_eval", "inference on the same grids, still in float", (unroll.EVALUATION, *FORWARD_QUANTIZERS))
INT_EVAL = Stage("int_eval", "integer inference from the same state", (integers.PASS, fold.PASS))

STAGES = (FORWARD, FP_TRAINING, QUANT_TRAINING, INT_TRAINING, QUANT_EVAL, INT_EVAL)


def stage_before(stage: Stage) -> Stage | None:
    """The stage that ``stage`` is made of; None of the first."""
    return None if stage is FORWARD else FORWARD if stage is QUANT_EVAL else STAGES[STAGES.index(stage) - 1]


DRY_BATCH = 8  # images


def convert(model: str | os.PathLike[str], config: Config | None = None, out: str | os.PathLike[str] | None = None) -> Artifacts:
    """Convert the trained network in ``model``; write the artifact folder ``out`` unless it is None.

    ``model`` is an ONNX file, or a folder of onnxruntime-training's artifacts with its checkpoint.
    Of a profile without an integer form it makes the float and the quantized graphs. Raises WageubnError, one line, for anything
    that cannot be converted, ProofFailed where the integer stages could overflow; then nothing is written.
    """
    with _uncollected():
        artifacts = _converted(Path(model), config or Config())
        if out is not None:
            artifacts.save(out)
    return artifacts


def _converted(model: Path, config: Config) -> Artifacts:
    """All stages of the network in ``model``, checked and proven."""
    if config.health and not config.profile.has_integers:
        raise WageubnError(f"profile {config.profile.name} has no integer step, whose health could be counted; leave out health")
    source = FORWARD(model, config)
    channels = int(source.named["images"].shape[1])
    config = replace(config.for_channels(channels), profile=config.profile.on(*places(source)))
    files = {"forward": _written(source, {"logits": source.named["logits"]})}
    recipe = Recipe.of(source, files["forward"], config) if config.profile.has_integers else None

    step = FP_TRAINING(source, config)
    fp_state = {key: state.value for key, state in step.carried.items()}
    files["fp_training"] = _written(step, step_outputs(step, config))

    if config.profile.is_delayed:
        step.notes["errors"] = _first_errors(source, config)
    quantized = QUANT_TRAINING(step, config)
    files["quant_training"] = _written(quantized, step_outputs(quantized, config))
    integer = INT_TRAINING(quantized, config) if config.profile.has_integers else None
    if integer and recipe:
        integer.notes["recipe"] = recipe.to_json()
        files["int_training"] = _written(integer, step_outputs(integer, config))

    evaluation = QUANT_EVAL(source, config)
    files["quant_eval"] = _written(evaluation, {"logits": evaluation.named["logits"]})
    if integer and recipe:
        evaluation = INT_EVAL(evaluation, config)
        evaluation.notes["recipe"] = recipe.of_inference().to_json()
        files["int_eval"] = _written(evaluation, {"logits": evaluation.named["logits"]})

    manifest = describe(model, source, config, fp_state, quantized, integer)
    parameters = {key: state.value for key, state in source.states.items()}
    quant_state = {key: state.value for key, state in quantized.carried.items()}
    int_state = {key: state.value for key, state in integer.carried.items()} if integer else {}
    return Artifacts(files, parameters, fp_state, quant_state, int_state, manifest)


def _first_errors(source: Model, config: Config) -> dict[str, float]:
    """How great each error will be, for the first step of a profile that takes its exponents from the step before."""
    few = replace(config, batch=min(config.batch, DRY_BATCH))
    found = greatest_errors(rescale.PASS(FP_TRAINING(source, few), few))
    return {name: greatest * few.batch / config.batch for name, greatest in found.items()}


def places(source: Model) -> tuple[str, str, list[str]]:
    """The first and the last layer with weights, and those that pool: a profile may name them so."""

    def layers(*ops: str) -> list[str]:
        return [source.tag(node.outputs[0]).layer for node in source.graph.nodes if node.op in ops]

    weighty = layers("Conv", "Gemm") or [""]
    return weighty[0], weighty[-1], layers(*POOLS)


def _written(model: Model, outputs: dict[str, Tensor]) -> onnx.ModelProto:
    proto = to_proto(model, outputs, parameters=False)
    check_stage(proto, model.stage)
    if model.stage in INTEGER_STAGES:
        require(proto, model.stage)
    return proto


def step_outputs(model: Model, config: Config) -> dict[str, Tensor]:
    """Every state's next value, loss and correct; on request the health counters of the integer step, and the parameters'
    gradients, before weight decay and quantizers."""
    outputs = next_states(model) | {n: model.named[n] for n in ("loss", "correct", "health") if n in model.named}
    if config.expose_gradients:
        outputs |= {f"{key}.gradient": gradient for key, gradient in model.gradients.items()}
        for key, exponent in model.notes.get("gradient_exponents", {}).items():  # copies: the manifest names the originals
            with model.beside(model.tag(model.gradients[key])), model.context(made_by="outputs"):
                copy = model.op("Identity", exponent.tensor(model), name="gradient_exponent")
                outputs[f"{key}.gradient.exponent"] = copy
    return outputs


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection within: graphs are cycles of many objects, alive to the end, and every collection walks them all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

"""The starting points of both halves: `forward` replayed by the rules, with a fixed batch to train or any batch to evaluate."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.autodiff.reverse import replay
from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass


def training_form(forward: Model, config: Config) -> Model:
    """`forward` with batch statistics and ``config.batch`` images; the tape waits in ``notes`` for the backward pass."""
    return _replayed(forward, TRAINING, "fp_training", config.batch)


def evaluation_form(forward: Model, config: Config) -> Model:
    """`forward` with running statistics, for any batch: what `int_eval` is lowered from."""
    return _replayed(forward, EVALUATION, "fp_eval", "N")


def _replayed(forward: Model, step: Pass, stage: str, batch: int | str) -> Model:
    model = Model.empty(stage, forward.graph.name)
    shape = forward.named["images"].shape
    with model.context(made_by=step.name):
        with model.beside(forward.tag(forward.named["images"])):
            images = model.named["images"] = model.input("images", np.float32, [batch, *shape[1:]])
            bound: dict[str, Tensor] = {"images": model.slot(images, "I")}
        for key, state in forward.states.items():
            with model.beside(forward.tags[key]):
                tensor = model.state(key, state.kind, state.layer, state.value, frozen=state.frozen).tensor
                slotted = state.kind in ("W", "gamma", "beta", "bias")
                bound[key] = model.slot(tensor, state.kind) if slotted else tensor
        tape = replay(forward, model, bound, training=stage == "fp_training")
    model.named["logits"] = bound[forward.named["logits"].name]
    model.notes |= {"classes": forward.notes["classes"], "ranges": forward.notes["ranges"]}
    if stage == "fp_training":
        model.notes["tape"] = tape
        model.notes["slots"] = {key: bound[key] for key in forward.states}
    return model


TRAINING = Pass(
    "unroll-training", "replay `forward` by the gradient rules, with batch statistics and a fixed batch", training_form
)
EVALUATION = Pass("unroll-evaluation", "replay `forward` with running statistics, for any batch", evaluation_form)

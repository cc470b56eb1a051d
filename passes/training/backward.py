"""Errors and gradients: the reverse walk from the error at the logits."""

from __future__ import annotations

from wageubn_onnx.autodiff.reverse import Step, backward
from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass

TRAINABLE = ("W", "gamma", "beta", "bias")


def add_backward(g: Model, config: Config) -> None:
    """Emit every parameter's gradient, float32 of the parameter's shape, into ``model.gradients``."""
    tape: list[Step] = g.notes.pop("tape")
    slots: dict[str, Tensor] = g.notes.pop("slots")
    errors = backward(g, tape, g.named["dlogits"], g.named["logits"])
    g.gradients = {key: errors[slots[key].name] for key, state in g.states.items() if state.kind in TRAINABLE}


PASS = Pass("backward", "the gradient of every parameter, by the table of gradient rules", add_backward)

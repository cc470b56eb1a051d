"""Errors and gradients: the reverse walk from the error at the logits."""

from __future__ import annotations

from wageubn_onnx.autodiff.reverse import Step, backward
from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass

TRAINABLE = ("W", "gamma", "beta", "bias")


def add_backward(g: Model, config: Config) -> None:
    """Emit every trained parameter's gradient, float32 of the parameter's shape, into ``model.gradients``.

    Below the lowest of them there is nothing to compute.
    """
    tape: list[Step] = g.notes.pop("tape")
    slots: dict[str, Tensor] = g.notes.pop("slots")
    trained = {key: slots[key].name for key, state in g.carried.items() if state.kind in TRAINABLE}
    errors = backward(g, tape, g.named["dlogits"], g.named["logits"], trained.values())
    g.gradients = {key: errors[name] for key, name in trained.items()}


PASS = Pass("backward", "the gradient of every trained parameter, by the table of gradient rules", add_backward)

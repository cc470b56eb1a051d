"""Momentum SGD with weight decay: a = m*acc + g, w' = w - lr*a."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass


def add_sgd(g: Model, config: Config) -> None:
    """Add the input ``lr`` float32 [], a momentum state beside every parameter, and every parameter's next value.

    Weight decay, on the stored weight, covers convolutions and dense layers, not BN and biases.
    """
    with g.context(layer="optimizer", path="lr"):
        lr = g.named["lr"] = g.input("lr", np.float32, [])
        rate = g.op("Identity", lr, name="lr", role="lr")
        momentum = g.op("Identity", g.constant(config.momentum, name="coefficient"), name="momentum", role="M.coefficient")
        decay = g.constant(config.weight_decay, name="weight_decay")
    for key, gradient in g.gradients.items():
        state = g.states[key]
        with g.beside(g.tags[key]):
            with g.context(path=f"G.{state.kind}"):
                if state.kind == "W" and config.weight_decay:
                    gradient = g.op(
                        "Add", gradient, g.op("Mul", state.tensor, decay, name="decay", role="G.decay"), name="dw_decayed"
                    )
                gradient = g.slot(gradient, f"G.{state.kind}")
            with g.context(path=f"M.{state.kind}"):
                zeros = np.zeros(state.value.shape, state.value.dtype)  # no memory until written, unlike zeros_like
                accumulator = g.state(f"{key}.momentum", "momentum", state.layer, zeros, parameter=state.kind)
                carried = g.op("Mul", accumulator.tensor, momentum, name="carried")
                step = g.op("Add", carried, gradient, name="step")
                accumulator.after = g.op("Identity", step, name="momentum", role=f"M.{state.kind}")
            with g.context(path=f"U.{state.kind}"):
                update = g.op("Mul", step, rate, name="update", role="U.step")
                state.after = g.op("Sub", state.tensor, update, name="updated", role=f"U.{state.kind}")


PASS = Pass("sgd", "weight decay, momentum and the update of every parameter", add_sgd)

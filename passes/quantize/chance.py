"""Where random bits come from: the inputs and the state that make a stochastic step a pure function of its inputs."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass

STEP_LIMIT = 2**31 - 2  # where the counter of steps stays


def add_seed(g: Model, config: Config) -> None:
    """Add the input ``seed`` int32 [] and the state ``step`` int32 [], which the graph advances up to STEP_LIMIT."""
    with g.context(layer="optimizer", path="random"):
        g.named["seed"] = g.input("seed", np.int32, [])
        step = g.state("step", "step", "optimizer", np.zeros([], np.int32), exponent=0, limit=STEP_LIMIT, least=0)
        below = g.op("Min", step.tensor, g.scalar(STEP_LIMIT - 1, np.int32), name="step_before")
        step.after = g.op("Add", below, g.scalar(1, np.int32), name="step")


PASS = Pass("seed", "the seed and the step number, from which random bits are hashed", add_seed)

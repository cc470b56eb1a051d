"""Q_GW: constant quantization with stochastic rounding of weight gradients; Q_Ggamma, Q_Gbeta, Q_Gb: 15 bits."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import fill, insert, quantizer_of, source, state_of, step_of
from wageubn_onnx.quantizers import floating

STEP_LIMIT = 2**31 - 2  # where the counter of steps stays
DECAY_LIMIT = 2**45  # where the error is so small that a weight's decay leaves this, the decay saturates


def quantize_gradients(g: Model, config: Config) -> None:
    """Fill every slot G.*. Adds the inputs ``gradient_range`` and ``seed`` int32 [] and the state ``step`` int32 [].

    Random bits are a hash of (seed, step, state key, element index): a step stays a pure function of its inputs.
    """
    profile = config.profile
    dr = g.named["gradient_range"] = g.input("gradient_range", np.int32, [])
    seed = g.named["seed"] = g.input("seed", np.int32, [])
    with g.context(layer="optimizer"):
        step = g.state("step", "step", "optimizer", np.zeros([], np.int32), exponent=0, limit=STEP_LIMIT, least=0)
        below = g.op("Min", step.tensor, g.scalar(STEP_LIMIT - 1, np.int32), name="step_before")
        step.after = g.op("Add", below, g.scalar(1, np.int32), name="step")
    for decay in g.by_role("G.decay"):
        _align_decay(g, decay)
    for slot in g.by_role("G.W"):
        key, shape = state_of(g, slot, "W").key, list(slot.shape)
        with g.context(layer=g.tag(slot).layer):
            random = floating.random_bits(g, seed, step.tensor, key, shape)
        fill(g, slot, floating.constant, dr, random, "G.W", profile.gradient_fraction)
    for role in ("G.gamma", "G.beta", "G.bias"):
        for slot in g.by_role(role):
            bits, exponent = profile.parameter_gradient_bits, -profile.gradient_fraction
            fill(g, slot, floating.direct, role, bits, exponent)


def _align_decay(g: Model, decay: Tensor) -> None:
    """Weight decay on the grid of the weight gradient that it is added to: the grids of activation and error multiplied."""
    (total,) = decay.outputs
    product = source(total.inputs[0])
    while product.op != "MatMul":
        product = source(product.inputs[0])
    activation, error = product.inputs
    with g.context(layer=g.tag(decay).layer):
        unit = g.scalar(2.0 ** int(quantizer_of(activation).attrs["exponent"]))
        step = g.op("Mul", step_of(error), unit, name="step_dw")
    insert(g, decay, floating.grid, step, "G.decay", DECAY_LIMIT.bit_length() + 1, DECAY_LIMIT)


PASS = Pass(
    "quantize-gradients",
    "Q_GW on weight gradients, Q(.,15) on the others",
    quantize_gradients,
    ("G.W", "G.decay", "G.gamma", "G.beta", "G.bias"),
)

"""Q_GW: constant quantization with stochastic rounding of weight gradients; Q_Ggamma, Q_Gbeta, Q_Gb: 15 bits."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import fill, insert, quantizer_of, random_for, source, state_of, step_of
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

DECAY_LIMIT = 2**45  # where the error is so small that a weight's decay leaves this, the decay saturates


def quantize_gradients(g: Model, config: Config) -> None:
    """Fill every slot G.*. Adds the input ``gradient_range`` int32 []."""
    dr = g.named["gradient_range"] = g.input("gradient_range", np.int32, [])
    for decay in g.by_role("G.decay"):
        _align_decay(g, decay)
    for slot in g.by_role("G.W"):
        state = state_of(g, slot, "W")
        form = config.profile.format("G.W", state.layer)
        fill(g, slot, floating.constant, dr, "G.W", form, random_for(g, form, state.key, slot))
    for kind in ("gamma", "beta", "bias"):
        for slot in g.by_role(f"G.{kind}"):
            state = state_of(g, slot, kind)
            form = config.profile.format(f"G.{kind}", state.layer)
            fill(g, slot, floating.direct, f"G.{kind}", form, form.exponent, random=random_for(g, form, state.key, slot))


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
    insert(g, decay, floating.grid, step, "G.decay", Format(DECAY_LIMIT.bit_length() + 1, greatest=DECAY_LIMIT))


PASS = Pass(
    "quantize-gradients",
    "Q_GW on weight gradients, Q(.,15) on the others",
    quantize_gradients,
    ("G.W", "G.decay", "G.gamma", "G.beta", "G.bias"),
)

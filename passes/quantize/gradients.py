"""Q_GW: constant quantization with stochastic rounding of weight gradients; Q_Ggamma, Q_Gbeta, Q_Gb: 15 bits."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.composites import kind_of
from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import (
    fill,
    insert,
    is_dynamic,
    is_quantized,
    quantizer_of,
    random_for,
    source,
    state_of,
    step_of,
)
from wageubn_onnx.quantizers import floating


def quantize_gradients(g: Model, config: Config) -> None:
    """Fill every slot G.*. Adds the input ``gradient_range`` int32 []."""
    with g.context(layer="optimizer", path="G.W"):
        dr = g.named["gradient_range"] = g.input("gradient_range", np.int32, [])
    for decay in g.by_role("G.decay"):
        _align_decay(g, config, decay)
    for slot in g.by_role("G.W"):
        state = state_of(g, slot, "W")
        form = config.profile.format("G.W", state.layer)
        fill(g, slot, floating.constant, dr, "G.W", form, random_for(g, form, state.key, slot))
    for kind in ("gamma", "beta", "bias"):
        for slot in g.by_role(f"G.{kind}"):
            state = state_of(g, slot, kind)
            form = config.profile.format(f"G.{kind}", state.layer)
            fill(g, slot, floating.direct, f"G.{kind}", form, form.exponent, random=random_for(g, form, state.key, slot))


def _align_decay(g: Model, config: Config, decay: Tensor) -> None:
    """Weight decay on the grid of the weight gradient that it is added to: the grids of activation and error multiplied.

    Where one of these is in float, the gradient is, and so is its decay.
    """
    (total,) = decay.outputs
    product = source(total.inputs[0])
    while product.op != "MatMul" and not kind_of(product.op):
        product = source(product.inputs[0])
    activation, error = product.inputs
    if not (is_quantized(activation) and is_dynamic(error)):
        return
    with g.beside(g.tag(decay)):
        unit = g.scalar(2.0 ** int(quantizer_of(activation).attrs["exponent"]))
        step = g.op("Mul", step_of(error), unit, name="step_dw")
    insert(g, decay, floating.grid, step, "G.decay", config.profile.format("G.decay", g.tag(decay).layer))


PASS = Pass(
    "quantize-gradients",
    "Q_GW on weight gradients, Q(.,15) on the others",
    quantize_gradients,
    ("G.W", "G.decay", "G.gamma", "G.beta", "G.bias"),
)

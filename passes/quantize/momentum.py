"""Q_Mom on the coefficient and Q_Acc on every stored accumulator: acc' = Q(m*acc + g, 13)."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, source
from wageubn_onnx.quantizers import floating


def quantize_momentum(g: Model, config: Config) -> None:
    """The coefficient becomes the profile's, whose check keeps what gradients add up to within the accumulator."""
    profile = config.profile
    for coefficient in g.by_role("M.coefficient"):
        source(coefficient).inputs[0].values = np.asarray(profile.momentum, np.float32)
        form = profile.format("M.coefficient")
        insert(g, coefficient, floating.direct, "M.coefficient", form, form.exponent)
    for kind in ("W", "gamma", "beta", "bias"):
        role = f"M.{kind}"
        for accumulator in g.by_role(role):
            form = profile.format(role, g.tag(accumulator).layer)
            quantized = insert(g, accumulator, floating.direct, role, form, form.exponent)
            (state,) = (s for s in g.states.values() if s.after is quantized)
            if not form.is_float:
                state.info |= {"exponent": form.exponent, "limit": form.greatest}


PASS = Pass(
    "quantize-momentum", "Q_Mom on the coefficient, Q_Acc on every accumulator", quantize_momentum,
    ("M.coefficient", "M.W", "M.gamma", "M.beta", "M.bias"),
)  # fmt: skip

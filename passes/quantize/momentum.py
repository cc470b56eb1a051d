"""Q_Mom on the coefficient and Q_Acc on every stored accumulator: acc' = Q(m*acc + g, 13)."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, source
from wageubn_onnx.quantizers import floating


def quantize_momentum(g: Model, config: Config) -> None:
    """The coefficient becomes the profile's. A gradient of b bits keeps the accumulator in b bits, for any m <= 3/4.

    Raises WageubnError for a momentum that its grid rounds to 1 or beyond.
    """
    profile = config.profile
    if round(profile.momentum * 2**profile.momentum_fraction) >= 2**profile.momentum_fraction:
        raise WageubnError(f"momentum {profile.momentum} rounds to 1 on {profile.momentum_fraction} fractional bits; lower it")
    for coefficient in g.by_role("M.coefficient"):
        source(coefficient).inputs[0].values = np.asarray(profile.momentum, np.float32)
        bits, exponent = profile.momentum_fraction + 1, -profile.momentum_fraction
        insert(g, coefficient, floating.direct, "M.coefficient", bits, exponent)
    for kind, bits in (("W", 8), *((k, profile.parameter_gradient_bits) for k in ("gamma", "beta", "bias"))):
        role = f"M.{kind}"
        for accumulator in g.by_role(role):
            limit, exponent = floating.signed(bits), -profile.accumulator_fraction
            quantized = insert(g, accumulator, floating.direct, role, bits, exponent)
            (state,) = (s for s in g.states.values() if s.after is quantized)
            state.info |= {"exponent": exponent, "limit": limit}


PASS = Pass(
    "quantize-momentum", "Q_Mom on the coefficient, Q_Acc on every accumulator", quantize_momentum,
    ("M.coefficient", "M.W", "M.gamma", "M.beta", "M.bias"),
)  # fmt: skip

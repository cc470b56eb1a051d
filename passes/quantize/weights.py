"""Q_W: clip(Q(w, 8), +-(1 - 2^-7)) where a weight enters its products; the stored weight keeps its 24 bits. Q_b beside it."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import fill, parameter
from wageubn_onnx.quantizers import floating
from wageubn_onnx.ranges import exponent_for


def quantize_weights(g: Model, config: Config) -> None:
    """Fill the slots W and bias; note in each state the exponent and the bounds of what is stored.

    A weight that `rescale` left on its own exponent k lies on the grid 2^(-7-k). A bias gets twice its initial range.
    """
    profile = config.profile
    for slot in g.by_role("W"):
        state = parameter(g, slot)
        own = state.info["scale_log2"] if isinstance(state.info["scale_log2"], int) else 0
        exponent = 1 - profile.weight_bits - own
        state.info |= {"exponent": -profile.update_fraction - own, "limit": 2**profile.update_fraction - 1}
        fill(g, slot, floating.direct, "W", profile.weight_bits, exponent)
    for slot in g.by_role("bias"):
        state = parameter(g, slot)
        exponent = exponent_for(2.0 * max(float(abs(state.value).max()), 0.5), profile.bias_bits)
        limit = floating.signed(profile.bias_bits) * 2 ** (exponent + profile.update_fraction)
        state.info |= {"exponent": -profile.update_fraction, "limit": int(limit)}
        fill(g, slot, floating.direct, "bias", profile.bias_bits, exponent)


PASS = Pass(
    "quantize-weights", "Q_W on every weight and Q_b on every bias, where a product reads it", quantize_weights, ("W", "bias")
)

"""Q_W: clip(Q(w, 8), +-(1 - 2^-7)) where a weight enters its products; the stored weight keeps its 24 bits. Q_b beside it."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import fill, own_exponent, parameter, parameter_state
from wageubn_onnx.quantizers import floating

LEAST_REACH = 0.5  # a bias that starts near zero may still grow this far


def quantize_weights(g: Model, config: Config) -> None:
    """Fill the slots W and bias; note in each state the exponent and the bounds of what is stored: none for a reader in float.

    A weight that `rescale` left on its own exponent k lies on the grid 2^(-7-k). A bias gets twice its initial range.
    """
    profile = config.profile
    for slot in g.by_role("W"):
        state = parameter(g, slot)
        own = own_exponent(state)
        form, stored = profile.format("W", state.layer), profile.format("U", state.layer)
        if form.bounded and not form.is_float:
            whole = form.bits - 1 + form.exponent  # of the greatest weight: 0 where they end at 1
            state.info["limit"] = 2 ** (whole - stored.exponent) - 1
        state.info["exponent"] = stored.exponent - own
        fill(g, slot, floating.direct, "W", form, form.exponent - own)
    for slot in g.by_role("bias"):
        state = parameter(g, slot)
        parameter_state(g, config, slot, "bias", LEAST_REACH)


PASS = Pass(
    "quantize-weights", "Q_W on every weight and Q_b on every bias, where a product reads it", quantize_weights, ("W", "bias")
)

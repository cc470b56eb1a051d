"""Frozen parameters on the grids on which trained ones are stored, so that a layer computes the same whether frozen or not."""

from __future__ import annotations

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass


def round_frozen(g: Model, config: Config) -> None:
    """Round and clip the constants as the other passes noted it of their states; no format of a profile in float asks for it."""
    if not config.profile.has_integers:
        return
    for state in g.states.values():
        if state.frozen:
            exponent, limit = state.info["exponent"], state.info["limit"]
            integers = np.round(np.ldexp(state.value.astype(np.float64), -exponent))
            stored = np.clip(integers, state.info.get("least", -limit), limit)
            state.assign(np.ldexp(stored, exponent).astype(np.float32))


PASS = Pass("round-frozen", "frozen parameters on the grids on which trained ones are stored", round_frozen)

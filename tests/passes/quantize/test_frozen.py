"""Frozen parameters on the grids of trained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from until import before

from wageubn_onnx.passes.quantize import frozen


def test_a_frozen_parameter_is_rounded_to_what_would_be_stored(tmp_path: Path) -> None:
    g, config = before(frozen.PASS, tmp_path, train_last=1)
    state = next(s for s in g.states.values() if s.frozen and s.kind == "W")
    trained = next(s for s in g.states.values() if not s.frozen and s.kind == "W")
    values = np.zeros_like(state.value)
    unit = 2.0 ** state.info["exponent"]
    values.flat[:4] = [0.25 + 0.4 * unit, 5.5 * unit, 7.0, -7.0]
    state.assign(values)
    kept = trained.value.copy()
    frozen.PASS(g, config)
    limit = state.info["limit"] * unit
    np.testing.assert_array_equal(state.value.flat[:4], np.float32([0.25, 6 * unit, limit, -limit]))
    np.testing.assert_array_equal(trained.value, kept)

"""Weights scaled into the fixed grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from until import before

from wageubn_onnx.passes.quantize import rescale


def test_a_convolution_before_a_bn_is_scaled_by_channel_and_its_statistics_with_it(tmp_path: Path) -> None:
    g, config = before(rescale.PASS, tmp_path)
    states = {s.kind: s for s in g.states.values() if s.layer in ("stem", "stem_bn")}
    old = {kind: s.value.astype(np.float64) for kind, s in states.items()}
    rescale.PASS(g, config)
    k = np.array(states["W"].info["scale_log2"])
    greatest = abs(states["W"].value).max((1, 2, 3))
    assert k.shape == (6,) and ((greatest >= 0.5) & (greatest < 1)).all()
    np.testing.assert_array_equal(states["W"].value, old["W"] * 2.0 ** k.reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(states["running_mean"].value, old["running_mean"] * 2.0**k)
    np.testing.assert_array_equal(states["running_var"].value, old["running_var"] * 4.0**k)
    (shifted,) = g.by_role("BN.eps", layer="stem_bn")
    np.testing.assert_allclose(shifted.inputs[0].inputs[1].values.ravel(), 1e-5 * 4.0**k, rtol=2**-22)


def test_any_other_product_keeps_its_weights(tmp_path: Path) -> None:
    g, config = before(rescale.PASS, tmp_path)
    state = next(s for s in g.states.values() if s.layer == "fc" and s.kind == "W")
    old = state.value.copy()
    rescale.PASS(g, config)
    np.testing.assert_array_equal(state.value, old)
    assert 0.5 <= abs(old).max() * 2.0 ** state.info["scale_log2"] < 1


@pytest.mark.parametrize(("greatest", "k"), [(0.5, 0), (1.0, -1), (0.99, 0), (0.2, 2), (2.0**-20, 8), (2.0**20, -16), (0.0, 0)])
def test_the_greatest_lands_between_a_half_and_1(greatest: float, k: int) -> None:
    assert rescale.power(np.float32(greatest)) == k

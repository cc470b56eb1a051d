"""Constant factors in 12 bits."""

from __future__ import annotations

import numpy as np
import pytest

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passes.quantize import constants


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1 / 3, 2731 / 2**13), (0.5, 0.5), (-0.1, -3277 / 2**15), ([1.0, 1 / 3], [1.0, 683 / 2**11])],
)  # entries share the exponent of the greatest: 1.0 is 2048 of 2^-11
def test_a_factor_has_a_mantissa_of_12_bits(value: object, rounded: object) -> None:
    g = Model.empty("quant_training", "case")
    x = g.input("x", np.float32, [2])
    for kind in ("Mul", "Add"):  # what is added is no factor
        g.op(kind, x, g.constant(value))
    constants.PASS(g, Config())
    factor, term = (node.inputs[1].values for node in g.graph.nodes)
    np.testing.assert_array_equal(factor, np.float32(rounded))
    np.testing.assert_array_equal(term, np.float32(value))

"""The initial states of the integer step: floats on a grid, rounded half to even, inside their bounds."""

from __future__ import annotations

import numpy as np
import pytest

from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.passes.lower.integers import BLOCK, mantissas_of


@pytest.mark.parametrize("shape", [(), (1,), (BLOCK,), (3, BLOCK // 2 + 1), (0, 4)])
def test_states_are_rounded_half_to_even_and_clipped(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(-300, 300, shape) / np.float32(8)  # quarters of the grid 1/2: ties among them
    exact = [min(max(round(float(v) * 2), -50), 40) for v in np.ravel(values)]
    found = mantissas_of(np.asarray(values, np.float32), -1, -50, 40, np.int8)
    assert found.dtype == np.int8 and found.shape == shape
    assert found.ravel().tolist() == exact


def test_zeros_stay_inside_bounds_without_zero() -> None:
    assert mantissas_of(np.zeros(3, np.float32), 0, 1, 9, np.uint8).tolist() == [1, 1, 1]
    assert mantissas_of(np.zeros(3, np.float32), 0, 0, 9, np.uint8).tolist() == [0, 0, 0]


def test_the_evaluation_takes_the_types_of_the_steps_states(tiny_artifacts: Artifacts) -> None:
    inputs = {i.name: i.type for i in tiny_artifacts.files["int_training"].graph.input}
    for value in tiny_artifacts.files["int_eval"].graph.input:
        assert value.name == "images" or value.type == inputs[value.name]

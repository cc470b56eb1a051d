"""How large forward tensors are taken to get: an estimate from the parameters alone."""

from __future__ import annotations

import numpy as np
import pytest

from networks import Array
from wageubn_onnx.graph import Model
from wageubn_onnx.ranges import estimate


def moments_of_a_convolution(w: Array, group: int, channels: int) -> tuple[Array, Array, Array]:
    """Of a convolution of the image, whose channels differ in mean and deviation."""
    g = Model.empty("forward", "case")
    x = g.input("images", np.float32, [1, channels, 4, 4])
    weight, bias = g.state("w", "W", "conv", w).tensor, g.state("b", "bias", "conv", np.arange(len(w), dtype=np.float32)).tensor
    window = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1]}
    y = g.op("Conv", x, weight, bias, name="conv", group=group, **window)
    low = np.linspace(-1, 0.5, channels)
    found = estimate(g, np.stack([low, low + np.linspace(1, 3, channels)]))[y.name]
    return found.mean, found.deviation, found.reach


@pytest.mark.parametrize(("group", "channels", "outputs"), [(1, 4, 6), (2, 4, 6), (4, 4, 4), (3, 3, 6)])
def test_groups_are_blocks_of_a_whole_convolution(group: int, channels: int, outputs: int) -> None:
    w = np.random.default_rng(0).normal(0, 1, (outputs, channels // group, 3, 3)).astype(np.float32)
    blocks = np.zeros((outputs, channels, 3, 3), np.float32)
    for o in range(outputs):
        first = o // (outputs // group) * (channels // group)
        blocks[o, first : first + channels // group] = w[o]
    grouped, whole = moments_of_a_convolution(w, group, channels), moments_of_a_convolution(blocks, 1, channels)
    for found, expected in zip(grouped, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)

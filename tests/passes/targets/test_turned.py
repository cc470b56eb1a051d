"""Kernels flipped by their taps: the same errors of the input, phase by phase."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradients import drawn, gradients, run

from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.passes.targets.cpu.products.flip_kernels_by_taps import turned_kernels

# Maps, kernels, strides, pads, dilations
WINDOWS: dict[str, tuple[list[int], list[int], list[int], list[int], list[int]]] = {
    "as ResNets have them": ([6, 5], [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    "with strides": ([7, 8], [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
    "the stem's": ([10, 12], [7, 7], [2, 2], [3, 3, 3, 3], [1, 1]),
    "strides beyond the kernel": ([9, 8], [2, 1], [3, 2], [0, 0, 0, 0], [1, 1]),
    "uneven, dilated": ([9, 8], [3, 2], [2, 3], [1, 0, 3, 2], [3, 2]),
}
BOUNDS = {"dy": (-127, 127), "w": (-127, 127)}


def by_numpy(dy: Any, w: Any, size: list[int], strides: list[int], pads: list[int], dilations: list[int]) -> Any:
    """dx [N, I, *size] in int64: each error goes back to what each tap saw."""
    n, _, oh, ow = dy.shape
    canvas = np.zeros((n, w.shape[1], size[0] + pads[0] + pads[2], size[1] + pads[1] + pads[3]), np.int64)
    for i, j in np.ndindex(*w.shape[2:]):
        rows = slice(i * dilations[0], i * dilations[0] + (oh - 1) * strides[0] + 1, strides[0])
        columns = slice(j * dilations[1], j * dilations[1] + (ow - 1) * strides[1] + 1, strides[1])
        canvas[:, :, rows, columns] += np.einsum("nohw,oi->nihw", dy.astype(np.int64), w[:, :, i, j].astype(np.int64))
    return canvas[:, :, pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]


@pytest.mark.parametrize("name", WINDOWS)
def test_errors_are_the_same(name: str) -> None:
    size, kernel, strides, pads, dilations = WINDOWS[name]
    window = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": 1}
    before = gradients([2, 3, *size], [4, 3, *kernel], (-128, 127), BOUNDS["dy"], "dx", **window)
    after = rewritten(before, {"turned": turned_kernels})
    assert not any(node.op_type.startswith("FlipKernel") for node in after.graph.node)
    for ends in (False, True):
        feeds = drawn(before, BOUNDS, ends)
        result = run(after, feeds)
        np.testing.assert_array_equal(result, run(before, feeds))
        np.testing.assert_array_equal(result, by_numpy(feeds["dy"], feeds["w"], size, strides, pads, dilations))
        assert result.any()


@pytest.mark.parametrize(("weight", "group"), [([4, 2, 1, 1], 1), ([4, 1, 3, 3], 2)])
def test_kernels_of_one_tap_and_of_groups_stay(weight: list[int], group: int) -> None:
    window = {"kernel_shape": weight[2:], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": group}
    before = gradients([3, 2, 6, 6], weight, (-128, 127), (-127, 127), "dx", **window)
    after = rewritten(before, {"turned": turned_kernels})
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]

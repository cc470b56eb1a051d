"""Flat columns: the same sums for every window, and no slice of rows left."""

from __future__ import annotations

import numpy as np
import pytest
from gradients import by_numpy, drawn, gradients, run

from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.passes.lower import products
from wageubn_onnx.passes.targets.cpu.products.im2col import flat_columns

N, CHANNELS, ERRORS = 3, 2, 4  # images, channels of the maps and of the errors

# The sizes of the maps, and what slides over them: kernel, strides, pads before and after, dilations
WINDOWS = {
    "as ResNets have them": ([6, 5], [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
    "with strides": ([6, 8], [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
    "with strides, of odd sizes": ([7, 9], [3, 3], [2, 2], [1, 1, 1, 1], [1, 1]),
    "the stem's": ([10, 12], [7, 7], [2, 2], [3, 3, 3, 3], [1, 1]),
    "one element with strides": ([7, 6], [1, 1], [2, 2], [0, 0, 0, 0], [1, 1]),
    "without pads": ([6, 6], [3, 3], [1, 1], [0, 0, 0, 0], [1, 1]),
    "uneven": ([8, 7], [2, 5], [3, 1], [0, 3, 1, 2], [1, 1]),
    "padded before alone": ([5, 5], [3, 3], [1, 1], [2, 2, 0, 0], [1, 1]),
    "dilated": ([9, 9], [3, 3], [1, 1], [2, 2, 2, 2], [2, 2]),
    "dilated, with strides": ([9, 8], [3, 2], [2, 3], [1, 0, 3, 2], [3, 2]),
    "greater than the image": ([2, 3], [5, 5], [1, 1], [2, 2, 2, 2], [1, 1]),
}
BOUNDS = {"int8": (-128, 127), "seven bits": (0, 127), "uint8": (0, 255)}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("as_int8", "pieces"), [(False, 1), (True, 1), (False, 2), (True, 3)])
@pytest.mark.parametrize("name", WINDOWS)
def test_sums_are_the_same(name: str, as_int8: bool, pieces: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, kernel, strides, pads, dilations = WINDOWS[name]
    window = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": 1}
    bounds = {"x": BOUNDS[dtype], "dy": (-8, 8)}  # small errors, whose products no kernel saturates
    shapes = [N, CHANNELS, *size], [ERRORS, CHANNELS, *kernel]
    if pieces > 1:
        out = [(s + pads[a] + pads[2 + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a, s in enumerate(size)]
        longest = -(-N * out[0] * out[1] // pieces)
        monkeypatch.setattr(products, "INT32_LIMIT", longest * max(-bounds["x"][0], bounds["x"][1]) * 8 + 1)
    before = gradients(*shapes, bounds["x"], bounds["dy"], "dw", **window)
    after = rewritten(before, {"columns": lambda edit: flat_columns(edit, lambda image, kernel: as_int8)})
    assert sum(node.op_type == "MatMulInteger" for node in after.graph.node) == pieces
    for ends in (False, True):
        feeds = drawn(before, bounds, ends)
        result = run(after, feeds)
        np.testing.assert_array_equal(result, run(before, feeds))
        np.testing.assert_array_equal(result, by_numpy(feeds["x"], feeds["dy"], kernel, strides, pads, dilations))


def test_plain_and_grouped_kernels_stay() -> None:
    window = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}
    for weight, group in (([4, 2, 1, 1], 1), ([4, 1, 3, 3], 2)):
        window |= {"kernel_shape": weight[2:], "group": group}
        before = gradients([N, CHANNELS, 6, 6], weight, (-128, 127), (-127, 127), "dw", **window)
        after = rewritten(before, {"columns": lambda edit: flat_columns(edit, lambda image, kernel: False)})
        assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]

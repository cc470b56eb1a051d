"""Weight gradients of 1x1 kernels and of matrices: the same sums, whichever side is transposed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from gradients import by_numpy, drawn, gradients, run

from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.products.swap_weight_gradient_operands import swapped_gradients
from wageubn_onnx.runtime.kernels import kernels

WINDOW = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
SIZES = {
    "narrow errors": ([3, 8, 5, 4], 2),
    "narrow maps": ([3, 2, 9, 9], 8),
    "a large result": ([2, 6, 1, 1], 8),
    "matrices": ([4, 8], 5),
}
BOUNDS = {"int8": (-128, 127), "uint8": (0, 127)}


def gradient(name: str, dtype: str) -> onnx.ModelProto:
    maps, o = SIZES[name]
    kernel, window = ([1, 1], WINDOW) if len(maps) == 4 else ([], {})
    return gradients(maps, [o, maps[1], *kernel], BOUNDS[dtype], (-127, 127), "dw", **window)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", SIZES)
def test_sums_are_the_same(name: str, dtype: str) -> None:
    if not kernels().is_exact(Kernel.INT8):
        pytest.skip("this machine or release has no exact int8 by uint8")
    before = gradient(name, dtype)
    after = rewritten(before, {"swapped": lambda edit: swapped_gradients(edit, lambda image, kernel: True)})
    is_swapped = "MatMulInteger" in {node.op_type for node in after.graph.node}
    assert is_swapped == (name != "narrow maps")
    for ends in (False, True):
        feeds = drawn(before, {"x": BOUNDS[dtype], "dy": (-127, 127)}, ends)
        result = run(after, feeds)
        np.testing.assert_array_equal(result, run(before, feeds))
        maps = [feeds[n].reshape(*feeds[n].shape[:2], *(feeds[n].shape[2:] or (1, 1))) for n in ("x", "dy")]
        np.testing.assert_array_equal(result.ravel(), by_numpy(*maps, [1, 1], [1, 1], [0] * 4, [1, 1]).ravel())
        assert result.any()


def test_where_uint8_by_int8_is_slow_it_stays() -> None:
    before = gradient("narrow errors", "int8")
    after = rewritten(before, {"swapped": lambda edit: swapped_gradients(edit, lambda image, kernel: False)})
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]

"""Max pooling by choices of taps: the same maxima and errors as the canonical bodies, and as a count in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper

from wageubn_onnx.composites import expanded
from wageubn_onnx.geometry import Window
from wageubn_onnx.graph import DOMAIN
from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.passes.targets.cpu.maps.max_pool_from_taps import pools_from_taps

Array = np.ndarray[Any, Any]
WINDOWS = {
    "overlapping": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "side by side": {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]},
    "uneven": {"kernel_shape": [3, 2], "strides": [1, 3], "pads": [0, 1, 1, 0]},
}


def step(window: dict[str, list[int]], out: list[int], dtype: int, greatest: int) -> onnx.ModelProto:
    """x is quantized to 0..greatest, pooled, and errors dy go back; the canonical gradient's body need not be right here."""
    limit = helper.make_node("Min", ["x", "greatest"], ["a"], "a", greatest=greatest)
    limit.ClearField("attribute")
    nodes = [
        limit,
        helper.make_node("MaxPool", ["a"], ["y"], "y", **window),
        helper.make_node("MaxPoolGradient_00000000", ["a", "y", "dy"], ["dx"], "dx", domain=DOMAIN, **window),
    ]
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("x", T.UINT8, [2, 3, 7, 8]), helper.make_tensor_value_info("dy", dtype, out)],
        [helper.make_tensor_value_info("y", T.UINT8, out), helper.make_tensor_value_info("dx", T.INT32, [2, 3, 7, 8])],
        [helper.make_tensor("greatest", T.UINT8, [], [greatest])],
        value_info=[helper.make_tensor_value_info("a", T.UINT8, [2, 3, 7, 8])],
    )
    body = onnx.FunctionProto(domain=DOMAIN, name="MaxPoolGradient_00000000", input=["x", "y", "dy"], output=["dx"])
    body.node.add(op_type="Cast", input=["x"], output=["dx"]).attribute.append(helper.make_attribute("to", T.INT32))
    body.opset_import.add(version=18)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[body])


def counted(x: Array, dy: Array, window: Window) -> tuple[Array, Array]:
    """Maxima and errors, window by window."""
    y, dx = np.zeros(dy.shape, np.uint8), np.zeros(x.shape, np.int32)
    for n, c, i, j in np.ndindex(*dy.shape):
        rows = [i * window.strides[0] - window.before[0] + k for k in range(window.kernel[0])]
        columns = [j * window.strides[1] - window.before[1] + k for k in range(window.kernel[1])]
        seen = [(h, w) for h in rows for w in columns if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]]
        y[n, c, i, j] = max(x[n, c, h, w] for h, w in seen)
        h, w = next(place for place in seen if x[n, c, place[0], place[1]] == y[n, c, i, j])
        dx[n, c, h, w] += dy[n, c, i, j]
    return y, dx


@pytest.mark.parametrize("greatest", [1, 127, 254])
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("name", WINDOWS)
def test_maxima_and_errors(name: str, dtype: Any, greatest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attrs = WINDOWS[name]
    window, random = Window.of(attrs), np.random.default_rng(0)
    out = [(7 + attrs["pads"][0] + attrs["pads"][2] - window.kernel[0]) // window.strides[0] + 1]
    out += [(8 + attrs["pads"][1] + attrs["pads"][3] - window.kernel[1]) // window.strides[1] + 1]
    model = step(attrs, [2, 3, *out], helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), greatest)
    monkeypatch.setattr("wageubn_onnx.onnxir.edit.Edit.bound", lambda edit, name: greatest)
    found = rewritten(model, {"pools": pools_from_taps})
    assert not [node for node in found.graph.node if node.op_type == "MaxPool"]
    flat = expanded(found)
    session = onnxruntime.InferenceSession(flat.SerializeToString(), providers=["CPUExecutionProvider"])
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    for dy in (random.integers(least, most, (2, 3, *out), dtype, endpoint=True), np.full((2, 3, *out), least, dtype)):
        x = random.integers(0, greatest, (2, 3, 7, 8), np.uint8, endpoint=True)
        for left, right in zip(session.run(["y", "dx"], {"x": x, "dy": dy}), counted(x, dy, window), strict=True):
            np.testing.assert_array_equal(left, right)

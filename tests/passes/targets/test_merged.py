"""Images merged into larger ones give the same maps, whatever the kernel, and stay as they are where a kernel sees neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from wageubn_onnx.passes.targets.cpu.machine import LAST
from wageubn_onnx.passes.targets.cpu.maps import merge_images as merging
from wageubn_onnx.passes.targets.cpu.maps.merge_images import merge_images
from wageubn_onnx.runtime.kernels import kernels

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(not kernels().is_exact(*LAST), reason="the fused kernels are not exact here")

CONSTANTS = """float s = {1.0}, float[3] scales = {1.0, 0.5, 2.0}, uint8 z = {128}, int8 none = {0}, int32[3] bias = {7, -90, 5},
    int8[3, 1, 1, 1] one_each = {1, -2, 3}, int8[5, 3, 1, 1] dense = {1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5, -6},
    int8[3, 1, 2, 1] two_each = {1, 2, -3, 4, 5, -6}, int8[3, 1, 1, 3] window = {1, 2, 3, 4, 5, 6, 7, 8, 9},
    int64[4] rows = {8, 1, 20, 3}, int64[4] maps = {8, 4, 5, 3}, uint8 limit = {150}"""
DENSE = "com.microsoft.QLinearConv <channels_last: int = 1"
CONV = f"{DENSE}, group: int = 3"
# what is made of x and y [8, 4, 5, 3], and how many images the first convolution takes after the pass, of 160 elements at most
BODIES = {
    "a factor a channel": (f"o = {CONV}> (x, s, z, one_each, scales, none, s, z, bias)", 4),
    "a matrix": (f"o = {DENSE}, pads: ints = [0, 0, 0, 0]> (x, s, z, dense, s, none, s, z)", 8),
    "two maps": (
        f"""a = Reshape (x, rows) b = Reshape (y, rows) c = Concat <axis: int = 1> (a, b)
        p = {CONV}, kernel_shape: ints = [2, 1]> (c, s, z, two_each, s, none, s, z)
        q = {CONV}, kernel_shape: ints = [2, 1]> (c, s, z, two_each, scales, none, s, z)
        r = Max (p, q) o = Reshape (r, maps)""", 4,
    ),
    "a window": (f"o = {CONV}, pads: ints = [0, 1, 0, 1]> (x, s, z, window, s, none, s, z)", 8),
    "one row of a window": (f"o = {CONV}> (x, s, z, two_each, s, none, s, z)", 8),
    "every second": (f"o = {CONV}, strides: ints = [2, 2]> (x, s, z, one_each, s, none, s, z)", 8),
    "in a branch": (
        f"""m = ReduceMax <keepdims: int = 0> (x) over = Greater (m, limit)
        o = If (over) <
            then_branch = then () => (uint8[8, 4, 5, 3] p) {{
                p = {CONV}> (x, s, z, one_each, s, none, s, z)
            }},
            else_branch = other () => (uint8[8, 4, 5, 3] q) {{ q = Max (x, y) }}>""", 4,
    ),
}  # fmt: skip


def convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [n for node in graph.node for a in node.attribute if a.HasField("g") for n in convolutions(a.g)]
    return [node for node in graph.node if node.op_type == "QLinearConv"] + inner


def taken(model: onnx.ModelProto, name: str) -> int:
    """How many images the tensor ``name`` of 8 of them has: the target of the Reshape that makes it, if one does."""
    graphs = [model.graph, *(a.g for node in model.graph.node for a in node.attribute if a.HasField("g"))]
    makers = {output: node for graph in graphs for node in graph.node for output in node.output}
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Concat":
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type != "Reshape":
        return 8
    return int(next(onnx.numpy_helper.to_array(t)[0] for t in model.graph.initializer if t.name == maker.input[1]))


@pytest.mark.parametrize("name", BODIES)
def test_merged_images_give_the_same_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LARGEST", 160)
    monkeypatch.setattr(merging, "FLATTEST", 160)
    body, images = BODIES[name]
    before = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (uint8[8, 4, 5, 3] x, uint8[8, 4, 5, 3] y) => (uint8[N, H, W, C] o) <{CONSTANTS}> {{ {body} }}"""
    )
    types = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, [8, 1, 20, 3]) for n in ("a", "b")]
    before.graph.value_info.extend([*types, onnx.helper.make_tensor_value_info("c", onnx.TensorProto.UINT8, [8, 2, 20, 3])])
    after = merge_images(before)
    random = np.random.default_rng(0)
    feeds = {name: random.integers(0, 256, (8, 4, 5, 3)).astype(np.uint8) for name in "xy"}
    results = []
    for model in (before, after):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds)[0])
    np.testing.assert_array_equal(results[1], results[0])
    assert taken(after, convolutions(after.graph)[0].input[0]) == images

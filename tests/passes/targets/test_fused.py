"""The fused forms at the ends of what they claim: sums beyond 2^24, shifts around 17, quotients at and beside every tie."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from wageubn_onnx.graph import DOMAIN, IR_VERSION, OPSET
from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.machine import LAST, Kernel
from wageubn_onnx.passes.targets.cpu.maps.normalize_by_reciprocals import LARGEST, LIFT, WEIGHT, reciprocals
from wageubn_onnx.passes.targets.cpu.products.fuse_requantization import Preference, fused_products
from wageubn_onnx.passes.targets.cpu.scalars.scales import DEEPEST, FARTHEST, LEFT, POWERS
from wageubn_onnx.quantizers import reference
from wageubn_onnx.quantizers.integer import GRID, ROUND_SHIFT
from wageubn_onnx.runtime.kernels import kernels

Array = np.ndarray[Any, Any]
T = onnx.TensorProto
CHANNELS = 1200  # 1200 * 127 * 127 = 2^24.2


def always(image: object, kernel: object) -> bool:
    return True


def never(image: object, kernel: object) -> bool:
    return False


def with_fused(model: onnx.ModelProto, prefers_fused: Preference, prefers_matrix: Preference) -> onnx.ModelProto:
    return rewritten(model, {"fuse-requantization": lambda edit: fused_products(edit, prefers_fused, prefers_matrix)})


def product(x: Array, w: Array) -> onnx.ModelProto:
    """ConvInteger of x int8 by w int8, both with their sign bits flipped, and its quantizer to 8 bits by shifts [1, O, 1, 1]."""
    n, _, height, width = x.shape
    window = {"kernel_shape": list(w.shape[2:]), "pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1], "group": 1}
    nodes = [
        helper.make_node("Cast", ["x"], ["xc"], "xc", to=T.UINT8),
        helper.make_node("BitwiseXor", ["xc", "flip"], ["xu"], "xu"),
        helper.make_node("Cast", ["w"], ["wc"], "wc", to=T.UINT8),
        helper.make_node("BitwiseXor", ["wc", "flip"], ["wu"], "wu"),
        helper.make_node("ConvInteger", ["xu", "wu", "flip", "flip"], ["m"], "m", **window),
        helper.make_node("GridQuantize", ["m", "shift"], ["q"], "q", domain=DOMAIN, least=-127, greatest=127, to=T.INT8),
    ]
    shapes: dict[str, tuple[int, tuple[int, ...]]] = {
        "x": (T.INT8, x.shape), "w": (T.INT8, w.shape), "shift": (T.INT32, (1, len(w), 1, 1)), "xc": (T.UINT8, x.shape),
        "xu": (T.UINT8, x.shape), "wc": (T.UINT8, w.shape), "wu": (T.UINT8, w.shape), "m": (T.INT32, (n, len(w), height, width)),
        "q": (T.INT8, (n, len(w), height, width)),
    }  # fmt: skip
    types = {name: helper.make_tensor_value_info(name, *of) for name, of in shapes.items()}
    flip = numpy_helper.from_array(np.array(128, np.uint8), "flip")
    inner = [types[name] for name in ("xc", "xu", "wc", "wu", "m")]
    graph = helper.make_graph(nodes, "one", [types["x"], types["w"], types["shift"]], [types["q"]], [flip], value_info=inner)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    functions = [GRID["half_even"], ROUND_SHIFT["half_even"]]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION)


def run(model: onnx.ModelProto, **feeds: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = inline(model).SerializeToString()
    return np.asarray(onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0])


FLIP = onnx.parser.parse_function(f"""<opset_import: ["" : {OPSET}], domain: "{DOMAIN}"> FlipKernel_00000000 (w) => (v) {{
    back = Constant <value_ints: ints = [-1, -1]> ()
    ends = Constant <value_ints: ints = [-99, -99]> ()
    axes = Constant <value_ints: ints = [2, 3]> ()
    r = Slice (w, back, ends, axes, back)
    v = Transpose <perm: ints = [1, 0, 2, 3]> (r)
}}""")  # as the lowering makes it


@pytest.mark.skipif(
    not kernels().is_exact(*LAST, Kernel.QLINEAR_MATMUL), reason="this machine or release has no exact fused kernel"
)
@pytest.mark.parametrize("as_matrix", [False, True])
@pytest.mark.parametrize("channels", [20, CHANNELS])
def test_a_fused_product_near_every_tie(channels: int, as_matrix: bool) -> None:
    """Sums one above, at and one below odd halves, for every shift that the fused form may get, and beyond."""
    assert CHANNELS * 127 * 127 >= 2**24
    random = np.random.default_rng(0)
    w = np.broadcast_to(random.choice([-127, 127], channels), (64, channels))[:, :, None, None].astype(np.int8).copy()
    w[1::2, 0] = 1  # whose channel makes the sums odd
    x = np.sign(w[0, :, 0, 0].astype(int))[None, :, None, None] * random.integers(100, 128, (2, channels, 8, 8))
    x = x.astype(np.int8)
    plain = product(x, w)
    fused = with_fused(plain, never if as_matrix else always, always if as_matrix else never)
    inner = [n for node in fused.graph.node for a in node.attribute if a.HasField("g") for n in a.g.node]
    assert ("MatrixQuantize" if as_matrix else "ProductQuantize") in {n.op_type for n in [*fused.graph.node, *inner]}
    assert [n.op_type for n in fused.graph.node].count("If") == (channels == CHANNELS)
    sums = np.einsum("nihw,oi->nohw", x.astype(int), w[:, :, 0, 0].astype(int))
    assert channels < CHANNELS or abs(sums).max() > 2**23.9
    for shift in (-40, -LEFT, -1, 0, 1, 8, 11, DEEPEST - 1, DEEPEST, DEEPEST + 1, 20, 28, FARTHEST, 31, 60):
        shifts = np.full((1, 64, 1, 1), shift, np.int32)
        expected = np.clip(reference.rescale(sums, min(shift, 62)), -127, 127) if shift >= 0 else np.sign(sums) * 127
        expected = (
            np.where(sums == 0, 0, expected)
            if shift < -7
            else np.clip(sums * 2 ** max(-shift, 0), -127, 127)
            if shift < 0
            else expected
        )
        for model in (plain, fused):
            np.testing.assert_array_equal(run(model, x=x, w=w, shift=shifts), expected, err_msg=f"shift {shift}")


WINDOWS = {
    "one element": {"kernel_shape": [1, 1], "pads": [0, 0, 0, 0], "strides": [1, 1], "dilations": [1, 1]},
    "one element with strides": {"kernel_shape": [1, 1], "pads": [0, 0, 0, 0], "strides": [2, 2], "dilations": [1, 1]},
    "as ResNets have them": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1]},
    "with strides": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "dilations": [1, 1]},
    "uneven": {"kernel_shape": [2, 3], "pads": [0, 2, 1, 0], "strides": [1, 3], "dilations": [2, 1]},
}


@pytest.mark.skipif(
    not kernels().is_exact(*LAST, Kernel.QLINEAR_MATMUL), reason="this machine or release has no exact fused kernel"
)
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("kernel", ["as it is", "turned", "swapped"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_as_rows_of_a_matrix(name: str, kernel: str, is_signed: bool) -> None:
    """Every window, of kernels as they are and as the error of the input has them, of maps with and without a zero point."""
    window = WINDOWS[name]
    size = window["kernel_shape"]
    lines = {
        "as it is": "v = Identity (w)",
        "turned": f"v = {DOMAIN}.FlipKernel_00000000 (w)",
        "swapped": "v = Transpose <perm: ints = [1, 0, 2, 3]> (w)",
    }
    shape = [5, 6, *size] if kernel == "as it is" else [6, 5, *size]
    attributes = ", ".join(f"{key}: ints = {value}" for key, value in window.items())
    text = f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]>
        one (uint8[2, 6, 7, 8] x, int8{shape} w) => (int8[2, 5, a, b] q)
            <uint8 zero = {{{128 if is_signed else 0}}}, uint8 flip = {{128}}, int32 shift = {{10}}> {{
            {lines[kernel]}
            bits = Cast <to: int = {T.UINT8}> (v)
            k = BitwiseXor (bits, flip)
            m = ConvInteger <group: int = 1, {attributes}> (x, k, zero, flip)
            q = {DOMAIN}.GridQuantize <least: int = -127, greatest: int = 127, to: int = {T.INT8}> (m, shift)
        }}"""
    plain = onnx.parser.parse_model(text)
    plain.functions.extend([GRID["half_even"], ROUND_SHIFT["half_even"], FLIP])
    for node in plain.graph.node:
        node.name = node.output[0]
    fused = with_fused(onnx.shape_inference.infer_shapes(plain), never, always)
    assert [n.op_type for n in fused.graph.node].count("MatrixQuantize") == 1
    random = np.random.default_rng(0)
    feeds = {"x": random.integers(0, 256, (2, 6, 7, 8)).astype(np.uint8), "w": random.integers(-127, 128, shape).astype(np.int8)}
    expected = run(plain, **feeds)
    np.testing.assert_array_equal(run(fused, **feeds), expected)
    assert len(np.unique(expected)) > 20
    if kernel == "turned":  # then nothing is: its taps are taken in their reverse order
        assert "Slice" not in [n.op_type for n in tidy(inline(fused)).graph.node if n.input[0] == "w"]


def test_powers_are_all_there() -> None:
    assert len(POWERS) == LEFT + FARTHEST + 1 and POWERS[LEFT] == 1 and POWERS[-1] == 2.0**-FARTHEST and POWERS[0] == 2.0**LEFT


@pytest.mark.parametrize("factor", [1, 2, 8, 32])
def test_a_reciprocal_rounds_as_the_division(factor: int) -> None:
    """For every deviation, at each tie that there is and at its neighbours: in float32 as the kernel multiplies and rounds."""
    deviation = np.arange(1, LARGEST + 1)[:, None, None]
    ties = (2 * np.arange(2 * LIFT) + 1)[None, :, None] * deviation  # 2 f a = (2k + 1) s
    numerator = ties // (2 * factor) + np.array([-1, 0, 1, 2])
    numerator = numerator[..., :].clip(0, 2**24 - 1)
    exact = (2 * factor * numerator + deviation) // (2 * deviation)
    by = reciprocals(factor, LARGEST)[1:, None, None]
    product = numerator.astype(np.float32) * by
    assert product.dtype == np.float32
    inside = exact <= 2 * LIFT - 1
    np.testing.assert_array_equal(np.rint(product)[inside], exact[inside])
    assert (np.rint(product)[~inside] >= 2 * LIFT - 1).all()
    assert WEIGHT * (LIFT - 1) + LARGEST * LIFT < 2**24

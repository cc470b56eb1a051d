"""Integer convolutions, their transposes and matrix products equal the float64 graph and plain sums of products, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lowered import Array, Format, Lowered

from wageubn_onnx.fixedpoint import Fixed, Pair
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passes.lower import products
from wageubn_onnx.profiles import Format as Bits
from wageubn_onnx.quantizers import floating, reference

SIGNED, UNSIGNED, FULL_SIGNED, FULL_UNSIGNED = (-127, 127), (0, 127), (-128, 127), (0, 255)

# kernel, strides, dilations, pads (before rows, columns; after rows, columns), image
GEOMETRIES = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (6, 6)),
    "3x3 stride 2": ((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), (7, 6)),
    "7x7 stride 2": ((7, 7), (2, 2), (1, 1), (3, 3, 3, 3), (10, 9)),
    "no padding": ((3, 2), (1, 1), (1, 1), (0, 0, 0, 0), (5, 6)),
    "kernel below stride": ((1, 1), (2, 2), (1, 1), (0, 0, 0, 0), (5, 6)),
    "2x1 stride 3": ((2, 1), (3, 3), (1, 1), (0, 0, 0, 0), (8, 7)),
    "strides differ": ((3, 3), (1, 3), (1, 1), (1, 0, 1, 2), (5, 8)),
    "dilation": ((3, 3), (1, 1), (2, 2), (2, 2, 2, 2), (6, 7)),
    "dilation and stride": ((3, 2), (2, 2), (2, 3), (1, 2, 0, 1), (9, 8)),
    "pads larger than kernel": ((1, 1), (1, 1), (1, 1), (2, 2, 2, 2), (3, 4)),
    "pads much larger": ((2, 2), (2, 2), (1, 1), (4, 3, 5, 4), (3, 3)),
    "asymmetric pads": ((3, 3), (1, 1), (1, 1), (0, 1, 2, 3), (4, 5)),
    "asymmetric pads, stride 2": ((3, 3), (2, 2), (1, 1), (2, 0, 0, 1), (6, 7)),
    "rows never seen": ((2, 2), (3, 3), (1, 1), (0, 0, 0, 0), (7, 7)),
}
GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES)
GROUPS = {"2 groups": (2, 4, 6), "depthwise": (4, 4, 4), "depthwise, 2 outputs a channel": (3, 3, 6)}  # groups, inputs, outputs
GROUPED = pytest.mark.parametrize("groups", GROUPS)


def attributes(geometry: str, group: int = 1) -> dict[str, Any]:
    kernel, strides, dilations, pads, _ = GEOMETRIES[geometry]
    return {
        "kernel_shape": list(kernel),
        "strides": list(strides),
        "dilations": list(dilations),
        "pads": list(pads),
        "group": group,
    }


def sizes(geometry: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Image and output, rows and columns."""
    kernel, strides, dilations, pads, image = GEOMETRIES[geometry]
    out = [(image[a] + pads[a] + pads[a + 2] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1 for a in range(2)]
    return image, (out[0], out[1])


def windows(geometry: str) -> list[tuple[int, int, int, int, int, int]]:
    """(output row, column, kernel row, column, image row, column) of every product that lies on the image."""
    kernel, strides, dilations, pads, image = GEOMETRIES[geometry]
    _, out = sizes(geometry)
    found = []
    for r, c in np.ndindex(*out):
        for i, j in np.ndindex(*kernel):
            row, column = r * strides[0] + i * dilations[0] - pads[0], c * strides[1] + j * dilations[1] - pads[1]
            if 0 <= row < image[0] and 0 <= column < image[1]:
                found.append((r, c, i, j, row, column))
    return found


def convolution(x: Array, w: Array, geometry: str) -> Array:
    """y[n, o, r, c] = sum of x[n, i, row, column] * w[o, i, kr, kc], in int64."""
    _, out = sizes(geometry)
    y = np.zeros((x.shape[0], w.shape[0], *out), np.int64)
    for r, c, i, j, row, column in windows(geometry):
        y[:, :, r, c] += x[:, :, row, column] @ w[:, :, i, j].T
    return y


def data_gradient(e: Array, w: Array, geometry: str) -> Array:
    """The transpose: dx[n, i, row, column] = sum of e[n, o, r, c] * w[o, i, kr, kc], in int64."""
    image, _ = sizes(geometry)
    dx = np.zeros((e.shape[0], w.shape[1], *image), np.int64)
    for r, c, i, j, row, column in windows(geometry):
        dx[:, :, row, column] += e[:, :, r, c] @ w[:, :, i, j]
    return dx


def by_group(operation: Callable[[Array, Array, str], Array], x: Array, w: Array, geometry: str, group: int) -> Array:
    """``operation`` on each group's channels of x, axis 1, and outputs of w, axis 0."""
    parts = zip(np.split(x, group, 1), np.split(w, group), strict=True)
    return np.concatenate([operation(*part, geometry) for part in parts], 1)


def transposed_attributes(geometry: str, group: int = 1) -> dict[str, Any]:
    """As the gradient rule of Conv writes them."""
    kernel, strides, dilations, pads, _ = GEOMETRIES[geometry]
    image, out = sizes(geometry)
    full = [(out[a] - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1 for a in range(2)]
    return attributes(geometry, group) | {"output_padding": [image[a] + pads[a] + pads[a + 2] - full[a] for a in range(2)]}


def most_taps(geometry: str) -> int:
    """How many positions of the kernel reach one pixel, at most."""
    kernel, strides, dilations, pads, _ = GEOMETRIES[geometry]
    residues = ([(k * dilations[a] - pads[a]) % strides[a] for k in range(kernel[a])] for a in range(2))
    return math.prod(max(r.count(phase) for phase in r) for r in residues)


# -- Conv -----------------------------------------------------------------------------------------------------------------


@GEOMETRY
def test_conv(geometry: str) -> None:
    kernel, image = GEOMETRIES[geometry][0], GEOMETRIES[geometry][4]
    case = Lowered(
        lambda g, x, w: g.op("Conv", x, w, **attributes(geometry)),
        x=Format((2, 3, *image), *UNSIGNED, exponent=-4),
        w=Format((4, 3, *kernel)),
    )
    feeds = case.random(1)
    (y,) = case.check(feeds)
    np.testing.assert_array_equal(np.ldexp(y, 11), convolution(feeds["x"], feeds["w"], geometry))


@GROUPED
@GEOMETRY
def test_conv_in_groups(geometry: str, groups: str) -> None:
    (kernel, *_, image), (group, i, o) = GEOMETRIES[geometry], GROUPS[groups]
    case = Lowered(
        lambda g, x, w: g.op("Conv", x, w, **attributes(geometry, group)),
        x=Format((2, i, *image), *UNSIGNED),
        w=Format((o, i // group, *kernel)),
    )
    feeds = case.random(1)
    (y,) = case.check(feeds)
    np.testing.assert_array_equal(np.ldexp(y, 14), by_group(convolution, feeds["x"], feeds["w"], geometry, group))
    case.check(case.extreme(True))


@pytest.mark.parametrize("x_range", [SIGNED, UNSIGNED, FULL_SIGNED, FULL_UNSIGNED])
@pytest.mark.parametrize("w_range", [SIGNED, UNSIGNED, FULL_SIGNED, FULL_UNSIGNED])
def test_conv_of_every_sign(x_range: tuple[int, int], w_range: tuple[int, int]) -> None:
    """Zero points 0 and 128 on either side; padding is 0 in the value, whatever the zero point. All ends of the ranges too."""
    case = Lowered(
        lambda g, x, w: g.op("Conv", x, w, **attributes("asymmetric pads")),
        x=Format((1, 2, 4, 5), *x_range),
        w=Format((2, 2, 3, 3), *w_range),
    )
    for feeds in (case.random(2), case.extreme(True), case.extreme(False)):
        (y,) = case.check(feeds)
        np.testing.assert_array_equal(np.ldexp(y, 14), convolution(feeds["x"], feeds["w"], "asymmetric pads"))


def test_conv_of_a_wide_activation() -> None:
    """After a ReLU the mantissas stand in int32 and are still 8 bits: 0..127."""
    case = Lowered(
        lambda g, x, w: g.op("Conv", g.op("Relu", x), w, **attributes("3x3")), x=Format((1, 2, 6, 6)), w=Format((2, 2, 3, 3))
    )
    case.check(case.random(3))


# -- ConvTranspose --------------------------------------------------------------------------------------------------------


def transposed(geometry: str, quantize: bool, groups: tuple[int, int, int] = (1, 3, 4)) -> Lowered:
    """The data gradient of an error, flag-quantized or 8 bits wide."""
    kernel, (_, out), (group, i, o) = GEOMETRIES[geometry][0], sizes(geometry), groups

    def build(g: Model, e: Tensor, w: Tensor) -> Tensor:
        error = floating.flag(g, e, "E2", Bits(8))[0] if quantize else e
        return g.op("ConvTranspose", error, w, **transposed_attributes(geometry, group))

    limit = 2**20 if quantize else 127
    return Lowered(build, e=Format((2, o, *out), -limit, limit, -20), w=Format((o, i // group, *kernel)))


@GEOMETRY
def test_conv_transpose(geometry: str) -> None:
    case = transposed(geometry, quantize=False)
    feeds = case.random(4)
    (dx,) = case.check(feeds)
    np.testing.assert_array_equal(np.ldexp(dx, 27), data_gradient(feeds["e"], feeds["w"], geometry))


@GROUPED
@GEOMETRY
def test_conv_transpose_in_groups(geometry: str, groups: str) -> None:
    """The bound counts the terms of one group."""
    group, _, o = GROUPS[groups]
    case = transposed(geometry, False, GROUPS[groups])
    feeds = case.random(4)
    (dx,) = case.check(feeds)
    np.testing.assert_array_equal(np.ldexp(dx, 27), by_group(data_gradient, feeds["e"], feeds["w"], geometry, group))
    assert case.fixed().bound == o // group * most_taps(geometry) * 127 * 127


@GEOMETRY
def test_conv_transpose_of_a_flag_pair(geometry: str) -> None:
    """Two products, combined: 128*high + low."""
    case = transposed(geometry, quantize=True)
    feeds = case.random(5)
    feeds["e"] = feeds["e"] >> np.random.default_rng(5).integers(0, 20, feeds["e"].shape)  # magnitudes of every size
    (dx,) = case.check(feeds)
    high, low, exponent = reference.flag(feeds["e"], -20)
    assert high.any()
    assert low.any()
    np.testing.assert_array_equal(np.ldexp(dx, 7 - exponent), data_gradient(128 * high + low, feeds["w"], geometry))


def test_conv_transpose_is_the_transpose() -> None:
    """sum(conv(x, w) * e) = sum(x * conv_transpose(e, w)) for the integer kernels themselves."""
    for geometry in GEOMETRIES:
        kernel, image, (_, out) = GEOMETRIES[geometry][0], GEOMETRIES[geometry][4], sizes(geometry)
        forward = Lowered(
            lambda g, x, w, geometry=geometry: g.op("Conv", x, w, **attributes(geometry)),
            x=Format((2, 3, *image)),
            w=Format((4, 3, *kernel)),
        )
        feeds = forward.random(6)
        e = Format((2, 4, *out)).random(np.random.default_rng(7))
        y, _ = forward.integers(feeds, {"y": forward.fixed()})["y"]
        backward = transposed(geometry, quantize=False)
        dx, _ = backward.integers({"e": e, "w": feeds["w"]}, {"dx": backward.fixed()})["dx"]
        assert (y * e).sum() == (feeds["x"] * dx).sum(), geometry


# -- MatMul ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a_range", [SIGNED, UNSIGNED, FULL_SIGNED, FULL_UNSIGNED])
@pytest.mark.parametrize("b_range", [SIGNED, UNSIGNED, FULL_SIGNED, FULL_UNSIGNED])
def test_matmul_of_every_sign(a_range: tuple[int, int], b_range: tuple[int, int]) -> None:
    case = Lowered(lambda g, a, b: g.op("MatMul", a, b), a=Format((5, 37), *a_range), b=Format((37, 6), *b_range))
    for feeds in (case.random(8), case.extreme(True), case.extreme(False)):
        (y,) = case.check(feeds)
        np.testing.assert_array_equal(np.ldexp(y, 14), feeds["a"] @ feeds["b"])


def test_only_a_small_unsigned_operand_meets_int8() -> None:
    """uint8 above 127 times int8 saturates on some processors: then both operands become uint8."""
    for hi, dtype in ((127, np.int8), (128, np.uint8), (255, np.uint8)):
        case = Lowered(lambda g, a, b: g.op("MatMul", a, b), a=Format((2, 3), 0, hi), b=Format((3, 2)))
        (product,) = (n for n in case.lowering.g.graph.nodes if n.op == "MatMulInteger")
        assert product.inputs[1].dtype == dtype


@pytest.mark.parametrize("a_range", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("longest", [3, 37])
def test_matmul_of_a_batch(monkeypatch: pytest.MonkeyPatch, longest: int, a_range: tuple[int, int]) -> None:
    """A product a group, whole or in pieces of the inner axis."""
    monkeypatch.setattr(products, "INT32_LIMIT", longest * 127 * 127 + 1)
    case = Lowered(lambda g, a, b: g.op("MatMul", a, b), a=Format((3, 5, 37), *a_range), b=Format((3, 37, 2)))
    assert sum(n.op == "MatMulInteger" for n in case.lowering.g.graph.nodes) == -(-37 // longest)
    for feeds in (case.random(8), case.extreme(True), case.extreme(False)):
        (y,) = case.check(feeds)
        np.testing.assert_array_equal(np.ldexp(y, 14), feeds["a"] @ feeds["b"])


@pytest.mark.parametrize("flagged", ["a", "b"])
def test_matmul_with_a_flag_pair(flagged: str) -> None:
    def build(g: Model, a: Tensor, b: Tensor) -> Tensor:
        if flagged == "a":
            return g.op("MatMul", floating.flag(g, a, "E2", Bits(8))[0], b)
        return g.op("MatMul", a, floating.flag(g, b, "E2", Bits(8))[0])

    wide = {"lo": -(2**20), "hi": 2**20, "exponent": -20}
    case = Lowered(
        build,
        a=Format((3, 9), **wide) if flagged == "a" else Format((3, 9)),
        b=Format((9, 4), **wide) if flagged == "b" else Format((9, 4)),
    )
    feeds = case.random(9)
    feeds[flagged] = feeds[flagged] >> np.random.default_rng(9).integers(0, 20, feeds[flagged].shape)
    high, low, exponent = reference.flag(feeds[flagged], -20)
    exact = {**feeds, flagged: 128 * high + low}
    (y,) = case.check(feeds)
    np.testing.assert_array_equal(np.ldexp(y, 7 - exponent), exact["a"] @ exact["b"])


@pytest.mark.parametrize("pieces", [2, 3, 5, 20, 37])
@pytest.mark.parametrize("a_range", [SIGNED, UNSIGNED])
def test_matmul_splits_its_inner_axis(monkeypatch: pytest.MonkeyPatch, pieces: int, a_range: tuple[int, int]) -> None:
    """As if int32 held a piece of the sum only: each piece stays in int32, their sum is int64."""
    longest = -(-37 // pieces)
    monkeypatch.setattr(products, "INT32_LIMIT", longest * 127 * 127 + 1)
    case = Lowered(lambda g, a, b: g.op("MatMul", a, b), a=Format((5, 37), *a_range), b=Format((37, 6)))
    made = [n for n in case.lowering.g.graph.nodes if n.op == "MatMulInteger"]
    assert len(made) == -(-37 // longest)
    assert all(n.inputs[0].shape[1] <= longest for n in made)
    assert sum(n.inputs[0].shape[1] for n in made) == 37
    assert case.fixed().tensor.dtype == np.int64
    for feeds in (case.random(10), case.extreme(True), case.extreme(False)):
        (y,) = case.check(feeds)
        np.testing.assert_array_equal(np.ldexp(y, 14), feeds["a"] @ feeds["b"])


def test_matmul_of_a_pair_splits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "INT32_LIMIT", 4 * 127 * 127 + 1)
    case = Lowered(
        lambda g, a, e: g.op("MatMul", a, floating.flag(g, e, "E2", Bits(8))[0]),
        a=Format((3, 13), *UNSIGNED),
        e=Format((13, 4), -(2**20), 2**20, -20),
    )
    assert sum(n.op == "MatMulInteger" for n in case.lowering.g.graph.nodes) == 2 * 4
    case.check(case.random(11))


def test_the_longest_unsplit_matmul() -> None:
    """133,144 products of 127*127 stay below 2^31, one more is split; the extremes are exact."""
    longest = (2**31 - 1) // (127 * 127)
    assert longest == 133_144
    for inner, count in ((longest, 1), (longest + 1, 2)):
        case = Lowered(lambda g, a, b: g.op("MatMul", a, b), a=Format((1, inner)), b=Format((inner, 1)))
        assert sum(n.op == "MatMulInteger" for n in case.lowering.g.graph.nodes) == count
        (y,) = case.check(case.extreme(True))
        assert np.ldexp(y, 14).item() == inner * 127 * 127


# -- pairs that wait for their quantizer ------------------------------------------------------------------------------------


def test_a_long_pair_stays_a_pair_until_it_is_requantized() -> None:
    """Where 128*high + low may leave 28 bits the parts stay apart, and a grid some bits coarser takes them together."""
    channels, step = 40, 2.0**3

    def build(g: Model, e: Tensor, w: Tensor) -> Tensor:
        error, unit = floating.flag(g, e, "E2", Bits(8))
        product = g.op("ConvTranspose", error, w, **transposed_attributes("3x3"))
        return floating.grid(g, product, g.op("Mul", unit, g.scalar(step * 2.0**-7), name="step"), "E.acc", Bits(29))

    case = Lowered(build, e=Format((1, channels, 6, 6), -(2**20), 2**20, -20), w=Format((channels, 2, 3, 3)))
    assert any(isinstance(v, Pair) and v.high.tensor.dtype == np.int32 for v in case.lowering.values.values())
    assert isinstance(case.fixed(), Fixed)
    for feeds in (case.random(12), case.extreme(True), case.extreme(False)):
        case.check(feeds)

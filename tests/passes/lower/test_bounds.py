"""Bounds are refused, by node, where they break what a kernel computes exactly; bounds that stand are true, and are reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from lowered import Format, Lowered

from wageubn_onnx.config import Config
from wageubn_onnx.errors import ProofFailed, WageubnError
from wageubn_onnx.fixedpoint import Exponent, Fixed, Pixels
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passes.lower.integers import RULES
from wageubn_onnx.passes.lower.lowering import Lowering
from wageubn_onnx.profiles import Format as Bits
from wageubn_onnx.quantizers import floating

NARROW, WIDE, INT32 = 2**28, 2**52, 2**31
CONV = {"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}


def product(g: Model, x: Tensor, w: Tensor) -> Tensor:
    return g.op("Conv", x, w, name="conv", **CONV)


def refused(error: type[WageubnError], node: str, build: Callable[..., Any], **formats: Format) -> str:
    """The message of the refusal: one line that names ``node``."""
    with pytest.raises(error) as caught:
        Lowered(build, **formats)
    message = str(caught.value)
    assert f"'layer/{node}'" in message, message
    assert "\n" not in message
    return message


# -- refusals by bound ----------------------------------------------------------------------------------------------------


def test_a_convolution_of_too_many_products() -> None:
    """127*127 * 9*channels reaches 2^28 with 1850 channels, and not with 1849."""
    assert 127 * 127 * 9 * 1849 < NARROW <= 127 * 127 * 9 * 1850
    shapes = {c: {"x": Format((1, c, 3, 3)), "w": Format((1, c, 3, 3))} for c in (1849, 1850)}
    Lowered(product, **shapes[1849])
    message = refused(ProofFailed, "conv", product, **shapes[1850])
    assert str(127 * 127 * 9 * 1850) in message
    assert str(NARROW) in message


REQUANTIZED: dict[str, Callable[..., Any]] = {
    "Q_E1": lambda g, x: floating.shift(g, x, "E1", Bits(8))[0],
    "Q_E2": lambda g, x: floating.flag(g, x, "E2", Bits(8))[0],
    "Q_ES": lambda g, x: floating.align(g, x, x, "E.sum", Bits(16))[0],
}


@pytest.mark.parametrize("node", REQUANTIZED)
def test_run_time_requantization_takes_28_bits(node: str) -> None:
    case = Lowered(REQUANTIZED[node], x=Format((4,), -5, NARROW - 1, -28))
    case.check(case.extreme(True))
    message = refused(ProofFailed, node, REQUANTIZED[node], x=Format((4,), -5, NARROW, -28))
    assert str(NARROW) in message


def test_wide_requantization_takes_52_bits() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        return floating.direct(g, x, "E1", Bits(8), -7)

    for hi in (NARROW - 1, NARROW, WIDE - 1):
        case = Lowered(build, x=Format((3,), -hi, hi, -40))
        name = "DirectQuantize" if hi < NARROW else "DirectQuantizeWide"
        assert [n.op for n in case.lowering.g.graph.nodes if n.domain == "wageubn"] == [name]
        case.check(case.extreme(True))
        case.check(case.random(1))
    refused(ProofFailed, "Q_E1", build, x=Format((3,), 0, WIDE, -40))


def test_a_left_shift_counts_against_28_bits() -> None:
    """Mantissas of 2^20 brought 2^8 finer would leave int32: they saturate first, in int64 where the bounds are wide."""

    for bits, exponent, name in (
        (8, -30, "DirectQuantize"),
        (8, -8, "DirectQuantize"),
        (8, -7, "GridQuantize"),
        (8, 30, "GridQuantize"),
        (20, -7, "DirectQuantizeWide"),
        (20, 30, "DirectQuantizeWide"),
    ):

        def build(g: Model, x: Tensor, bits: int = bits) -> Tensor:
            return floating.direct(g, x, "E1", Bits(bits), -15)

        case = Lowered(build, x=Format((5,), 1 - 2**20, 2**20, exponent))
        assert [n.op for n in case.lowering.g.graph.nodes if n.domain == "wageubn"] == [name]
        for feeds in (case.random(2), case.extreme(True), case.extreme(False)):
            case.check(feeds)


def test_products_and_sums_stay_below_2_to_53() -> None:
    def square(g: Model, x: Tensor) -> Tensor:
        return g.op("Mul", x, x, name="square")

    def total(g: Model, x: Tensor) -> Tensor:
        return g.op("ReduceSum", x, g.ints(0, 1), name="total", keepdims=0)

    def double(g: Model, x: Tensor) -> Tensor:
        return g.op("Add", x, x, name="double")

    root = 94_906_265  # of 2^53, rounded down
    assert root**2 < 2**53 <= (root + 1) ** 2
    case = Lowered(square, x=Format((3,), -root, root, 0))
    case.check(case.extreme(True))
    refused(ProofFailed, "square", square, x=Format((3,), -root - 1, root, 0))
    Lowered(total, x=Format((2**10, 2**11), 0, INT32 - 1, 0))
    refused(ProofFailed, "total", total, x=Format((2**11, 2**11), 0, INT32, 0))
    case = Lowered(double, x=Format((3,), 0, 2**52 - 1, 0))
    case.check(case.extreme(True))
    refused(ProofFailed, "double", double, x=Format((3,), 0, 2**52, 0))


def test_raising_to_a_finer_grid_counts() -> None:
    """2^30 on the grid 2^23 beside 1: 2^53 does not fit."""

    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        return g.op("Add", x, y, name="sum")

    refused(ProofFailed, "sum", build, x=Format((3,), 0, 2**30, 23), y=Format((3,), 0, 1, 0))
    case = Lowered(build, x=Format((3,), 0, 2**30, 22), y=Format((3,), 0, 1, 0))
    case.check(case.extreme(True))


def test_a_ratio_stays_below_2_to_52() -> None:
    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        return floating.direct(g, g.op("Div", x, y), "BN.x", Bits(8), -4)

    divisor = Format((3,), 1, 100, 0)
    case = Lowered(build, x=Format((3,), 0, 2**48 - 1, 0), y=divisor)
    case.check(case.extreme(True))
    refused(ProofFailed, "Q_BN", build, x=Format((3,), 0, 2**48, 0), y=divisor)
    refused(ProofFailed, "Q_BN", build, x=Format((3,), 0, 2**48, -60), y=Format((3,), 1, WIDE, 0))


def test_a_root_saturates_instead_of_wrapping() -> None:
    """A variance of 2^40 on sigma's grid 2^-16 is 2^74 quarters of a squared unit."""

    def build(g: Model, x: Tensor) -> Tensor:
        variance = g.op("Div", x, g.scalar(1.0))
        return floating.direct(g, g.op("Sqrt", g.op("Add", variance, g.constant([1.0]))), "BN.sigma", Bits(16), -16, lo=1)

    case = Lowered(build, x=Format((4,), 0, 2**50, -10))
    for feeds in (case.random(1), case.extreme(True), case.extreme(False)):
        case.check(feeds)


def test_constant_quantization_takes_52_bits() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        dr, random = g.constant(128, np.int32), g.constant(np.zeros(3), np.int32)
        return floating.constant(g, x, dr, "G.W", Bits(8, 14, rounding="stochastic"), random)

    case = Lowered(build, x=Format((3,), 0, WIDE - 1, -60))
    case.check({"x": np.array([WIDE - 1, 5, 0])})
    refused(ProofFailed, "Q_GW", build, x=Format((3,), 0, WIDE, -60))


def test_an_image_scale_beyond_28_bits() -> None:
    source = Model.empty("quant_training", "case")
    images = source.input("images", np.float32, [1, 3, 2, 2])
    with source.context(layer="layer"):
        floating.direct(source, images, "I", Bits(8), -5)
    for std, allowed in ((1.0, True), (1e-4, False)):
        lower = Lowering(source, Model.empty("int_training", "n"), Config(std=(std,)), RULES)
        lower.values["images"] = Pixels(lower.g.input("images", np.uint8, [1, 3, 2, 2]))
        if allowed:
            lower.walk("lower-to-integers")
        else:
            with pytest.raises(ProofFailed, match="layer/Q_I"):
                lower.walk("lower-to-integers")


def test_a_maximum_with_a_constant_an_element() -> None:
    """Every element is raised to its own least; the greatest of these bounds the result."""

    def build(g: Model, x: Tensor) -> Tensor:
        return g.op("Max", x, g.constant([-4.0, 0.0, 50.0], name="least"))

    case = Lowered(build, x=Format((3,), -10, 10, 0))
    case.check({"x": np.array([-10, -10, -10])})
    assert (case.fixed().lo, case.fixed().hi) == (-4, 50)


# -- refusals of what has no exact form -------------------------------------------------------------------------------------


def test_run_time_exponents_must_be_the_same() -> None:
    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        return g.op("Add", floating.shift(g, x, "E1", Bits(8))[0], floating.shift(g, y, "E1", Bits(8))[0], name="sum")

    assert "exponents differ" in refused(WageubnError, "sum", build, x=Format((3,)), y=Format((3,)))


def test_a_tensor_adds_to_itself_on_its_run_time_exponent() -> None:
    def build(g: Model, x: Tensor) -> Tensor:
        q, _ = floating.shift(g, x, "E1", Bits(8))
        return g.op("Sub", g.op("Mul", q, g.scalar(4.0)), q)

    case = Lowered(build, x=Format((9,), -(2**20), 2**20, -15))
    case.check(case.random(3))


@pytest.mark.parametrize("lo", [0, -1, -127])
def test_a_divisor_below_1(lo: int) -> None:
    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        return floating.direct(g, g.op("Div", x, y, name="ratio"), "BN.x", Bits(8), -4)

    assert "divisor" in refused(WageubnError, "ratio", build, x=Format((3,)), y=Format((3,), lo, 127))


def test_a_divisor_on_a_run_time_exponent() -> None:
    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        error = g.op("Max", floating.shift(g, y, "E1", Bits(8))[0], g.scalar(1.0), name="positive")
        return floating.direct(g, g.op("Div", x, error, name="ratio"), "BN.x", Bits(8), -4)

    with pytest.raises(WageubnError):
        Lowered(build, x=Format((3,)), y=Format((3,)))


def test_operators_without_an_integer_form() -> None:
    def root(g: Model, x: Tensor) -> Tensor:
        return g.op("Sqrt", x, name="root")

    def exponential(g: Model, x: Tensor) -> Tensor:
        return g.op("Exp", x, name="exp")

    def above(g: Model, x: Tensor) -> Tensor:
        return g.op("Greater", x, g.scalar(0.5), name="above")

    def unrounded(g: Model, x: Tensor) -> Tensor:
        return g.op("Relu", g.op("Div", x, g.scalar(3.0), name="third"), name="relu")

    for build, node in ((root, "root"), (exponential, "exp"), (above, "above"), (unrounded, "relu")):
        refused(WageubnError, node, build, x=Format((3,), 1, 127))


def test_a_grid_must_be_a_step() -> None:
    def build(g: Model, x: Tensor, y: Tensor) -> Tensor:
        return floating.grid(g, x, y, "E.acc", Bits(29))

    refused(WageubnError, "Q_ED", build, x=Format((3,)), y=Format(()))


# -- true bounds ----------------------------------------------------------------------------------------------------------


def extremes(case: Lowered, *feeds: dict[str, Any]) -> tuple[int, int]:
    """The least and the greatest mantissa of the first result over all ``feeds``."""
    found = [case.integers(f, {"y": case.fixed()})["y"][0] for f in feeds]
    return min(int(m.min()) for m in found), max(int(m.max()) for m in found)


X, Y, IMAGE = Format((3,), -100, 127), Format((3,), -50, 90, -5), Format((1, 2, 4, 4))

ATTAINED: dict[str, tuple[Callable[..., Tensor], dict[str, Format]]] = {
    "Add": (lambda g, x, y: g.op("Add", x, y), {"x": X, "y": Y}),
    "Sub": (lambda g, x, y: g.op("Sub", x, y), {"x": X, "y": Y}),
    "Mul": (lambda g, x, y: g.op("Mul", x, y), {"x": X, "y": Y}),
    "Mul by a constant": (lambda g, x: g.op("Mul", x, g.constant([3.0, -5.0, 0.75])), {"x": Format((3,), -100, 100)}),
    "Relu": (lambda g, x: g.op("Relu", x), {"x": X}),
    "Max": (lambda g, x: g.op("Max", x, g.scalar(-0.5)), {"x": X}),
    "Where": (lambda g, x, y: g.op("Where", g.op("Greater", y, g.scalar(0.0)), x, g.scalar(0.0)), {"x": X, "y": Y}),
    "ReduceSum": (lambda g, x: g.op("ReduceSum", x, g.ints(0, 2, 3), keepdims=1), {"x": Format((2, 3, 4, 4), -7, 9)}),
    "ReduceSum int64": (
        lambda g, x: g.op("ReduceSum", x, g.ints(0, 2, 3), keepdims=1),
        {"x": Format((2, 3, 4, 4), -(2**27), 2**27)},
    ),
    "ReduceMax": (lambda g, x: g.op("ReduceMax", x, g.ints(1), keepdims=1), {"x": Format((3, 4), -7, 9)}),
    "MaxPool": (
        lambda g, x: g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]),
        {"x": IMAGE},
    ),
    "Conv": (product, {"x": Format((1, 2, 4, 4), 0, 127), "w": Format((2, 2, 3, 3))}),
    "Conv, signed": (product, {"x": IMAGE, "w": Format((2, 2, 3, 3))}),
    "MatMul": (lambda g, x, w: g.op("MatMul", x, w), {"x": Format((2, 5)), "w": Format((5, 3))}),
    "direct": (lambda g, x: floating.direct(g, x, "A", Bits(8), -4), {"x": Format((3,), -(2**15), 2**15)}),
    "direct, unsigned": (lambda g, x: floating.direct(g, x, "A", Bits(8), -4, lo=0), {"x": Format((3,), -(2**15), 2**15)}),
}


@pytest.mark.parametrize("name", ATTAINED)
def test_bounds_are_attained(name: str) -> None:
    """Every pattern of inputs at their ends: the bounds of the result are reached, both of them, and never passed."""
    build, formats = ATTAINED[name]
    case = Lowered(build, **formats)
    generator = np.random.default_rng(0)
    feeds = []
    for pattern in range(2 ** len(formats)):
        ends = [np.full(f.shape, f.hi if pattern >> i & 1 else f.lo, np.int64) for i, f in enumerate(formats.values())]
        feeds.append(dict(zip(formats, ends, strict=True)))
    mixed = {k: generator.choice([f.lo, f.hi], f.shape) for k, f in formats.items()}
    feeds.append(mixed)
    for f in feeds:
        case.check(f)
    assert extremes(case, *feeds) == (case.fixed().lo, case.fixed().hi)


def random_graph(generator: np.random.Generator) -> Callable[..., list[Tensor]]:
    """A few random operators on images [2, 3, 4, 4]; every tensor that one makes is a result."""

    def build(g: Model, a: Tensor, b: Tensor, w: Tensor, c: Tensor) -> list[Tensor]:
        wide, narrow, made = [a, b], [a, b], list[Tensor]()

        def pick(pool: list[Tensor]) -> Tensor:
            return pool[generator.integers(len(pool))]

        operators: dict[str, Callable[[], Tensor]] = {
            "Add": lambda: g.op("Add", pick(wide), pick(wide)),
            "Sub": lambda: g.op("Sub", pick(wide), pick(wide)),
            "Mul": lambda: g.op("Mul", pick(narrow), pick(narrow)),
            "scale": lambda: g.op("Mul", pick(wide), c),
            "power": lambda: g.op("Mul", pick(wide), g.scalar(float(2.0 ** generator.integers(-3, 4)))),
            "Relu": lambda: g.op("Relu", pick(narrow)),
            "mask": lambda: g.op("Where", g.op("Greater", pick(wide), g.scalar(0.0)), pick(wide), g.scalar(0.0)),
            "centre": lambda: g.op("Sub", x := pick(narrow), g.op("ReduceMax", x, g.ints(2, 3), keepdims=1)),
            "sum": lambda: g.op("Add", pick(wide), g.op("ReduceSum", pick(narrow), g.ints(0, 2, 3), keepdims=1)),
            "Conv": lambda: g.op("Conv", pick(narrow), w, **CONV),
            "quantize": lambda: floating.direct(g, pick(wide), "A", Bits(8), int(generator.integers(-9, 0))),
            "unsigned": lambda: floating.direct(g, pick(wide), "A", Bits(8), int(generator.integers(-9, 0)), lo=0),
        }
        for _ in range(10):
            kind = generator.choice(list(operators))
            made.append(operators[kind]())
            if _bits(made[-1]) < 27:
                wide.append(made[-1])
            if kind in ("quantize", "unsigned"):
                narrow.append(made[-1])
        return made

    sizes: dict[str, int] = {}

    def _bits(tensor: Tensor) -> int:
        """A generous width of what ``tensor`` may hold, so that graphs stay inside what lowering allows."""
        if isinstance(tensor, gs.Constant) or not tensor.inputs:
            return 8
        if tensor.name not in sizes:
            node = tensor.inputs[0]
            widest = max(_bits(i) for i in node.inputs)
            grown = {"Mul": 8, "Conv": 14, "ReduceSum": 6, "Add": 8, "Sub": 8}.get(node.op, 0)
            sizes[tensor.name] = 8 if node.domain else widest + grown
        return sizes[tensor.name]

    return build


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_keep_their_bounds(seed: int) -> None:
    """Every tensor equals its float64 form and stays within its proven bounds, on random inputs and at all corners."""
    generator = np.random.default_rng(seed)
    case = Lowered(
        random_graph(generator),
        a=Format((2, 3, 4, 4)),
        b=Format((2, 3, 4, 4), 0, 127, -4),
        w=Format((3, 3, 3, 3)),
        c=Format((1, 3, 1, 1), -31, 31, -3),
    )
    corners = [
        {k: np.full(f.shape, f.hi if pattern >> i & 1 else f.lo, np.int64) for i, (k, f) in enumerate(case.formats.items())}
        for pattern in range(16)
    ]
    for feeds in (case.random(seed), case.random(seed + 1000), *corners[:: 1 + seed % 5]):
        case.check(feeds)


def test_a_product_says_its_bounds_and_exponent() -> None:
    case = Lowered(product, x=IMAGE, w=Format((2, 2, 3, 3), exponent=-5))
    limit = 18 * 127 * 127
    assert case.fixed() == Fixed(case.fixed().tensor, Exponent(-12), -limit, limit)

"""Which kernels are exact: each is asked, in one session, and held to numpy's integers.

The cases are what steps give their kernels: sizes with every rest of 16 and 64 in rows, columns and sums, one row and one column,
the zero points that occur, the greatest products there are, operands found at run time and constant ones. A kernel that a
release lacks is not exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from wageubn_onnx.dryrun import ORT_ERRORS
from wageubn_onnx.graph import IR_VERSION, OPSET
from wageubn_onnx.onnxir.nodes import MICROSOFT
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.maps.batchnorm_statistics import RAISED, STEP
from wageubn_onnx.passes.targets.cpu.maps.normalize_by_reciprocals import reciprocals
from wageubn_onnx.runtime.models import session_options

T = onnx.TensorProto
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Fixed:
    """An operand that is a constant of the graph."""

    value: Array


@dataclass(frozen=True)
class Case:
    """One node: its operands, and what it must give."""

    kind: str
    operands: Sequence[Array | Fixed]
    expected: Array
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


Run = Callable[[onnx.ModelProto, dict[str, Array]], list[Array]]
"""A runtime: the outputs of a model, in their order, for these inputs. Raises what onnxruntime raises where it cannot run it."""


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """onnxruntime on one thread, as steps run it."""
    options = session_options(threads=1, optimize=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def exact_kernels(runtime: Run = run) -> frozenset[Kernel]:
    """Those that give the right integers in every case."""
    return frozenset(kernel for kernel, cases in PROBES.items() if _is_right(list(cases()), runtime))


def _is_right(cases: Sequence[Case], runtime: Run) -> bool:
    model, feeds = _model(cases)
    try:
        found = runtime(model, feeds)
    except ORT_ERRORS:
        return False
    pairs = zip(found, cases, strict=True)
    return all(got.dtype == case.expected.dtype and np.array_equal(got, case.expected) for got, case in pairs)


def _model(cases: Sequence[Case]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """All cases in one graph, and what to feed it."""
    nodes, outputs = [], []
    feeds: dict[str, Array] = {}
    constants: dict[str, Array] = {}
    for number, case in enumerate(cases):
        names = [f"{number}/{position}" for position in range(len(case.operands))]
        for name, operand in zip(names, case.operands, strict=True):
            if isinstance(operand, Fixed):
                constants[name] = operand.value
            else:
                feeds[name] = operand
        nodes.append(helper.make_node(case.kind, names, [f"{number}"], f"{number}", domain=case.domain, **case.attributes))
        outputs.append(helper.make_tensor_value_info(f"{number}", _dtype(case.expected), case.expected.shape))
    inputs = [helper.make_tensor_value_info(name, _dtype(value), value.shape) for name, value in feeds.items()]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), feeds


def _dtype(value: Array) -> int:
    return helper.np_dtype_to_tensor_dtype(value.dtype)


# ---- what is right ----


def _product(a: Array, b: Array, zeros: tuple[int, int]) -> Array:
    """(a - zero) @ (b - zero); float64 holds every sum below 2^53, and is quick."""
    return ((a.astype(np.float64) - zeros[0]) @ (b.astype(np.float64) - zeros[1])).astype(np.int64)


@dataclass(frozen=True)
class Window:
    """Of a convolution of x [N, I, H, W] with kernels [O, I/group, KH, KW]."""

    stride: int = 1
    pad: tuple[int, int] = (0, 0)
    group: int = 1

    @property
    def attributes(self) -> dict[str, Any]:
        return {"strides": [self.stride] * 2, "pads": [*self.pad, *self.pad], "group": self.group}

    def sums(self, x: Array, w: Array, zeros: tuple[int, int] = (0, 0)) -> Array:
        """The products' sums: int64 [N, O, OH, OW]."""
        padded = np.pad(x.astype(np.float64) - zeros[0], ((0, 0), (0, 0), *((size, size) for size in self.pad)))
        kernels = w.astype(np.float64) - zeros[1]
        seen = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))[:, :, :: self.stride, :: self.stride]
        n, _, oh, ow, *_ = seen.shape
        depth = w[0].size
        columns = seen.transpose(0, 2, 3, 1, 4, 5).reshape(n, oh * ow, self.group, depth).transpose(0, 2, 1, 3)
        sums = columns @ kernels.reshape(self.group, -1, depth).transpose(0, 2, 1)
        maps: Array = sums.transpose(0, 1, 3, 2).reshape(n, len(w), oh, ow).astype(np.int64)
        return maps


def _requantized(sums: Array, scale: Array, zero: int) -> Array:
    """round(sums * scale) + zero, half to even, as uint8; channels last. float32, as the kernels' own."""
    rounded: Array = np.rint(sums.astype(np.float32) * scale).astype(np.float64)
    saturated: Array = np.clip(rounded + zero, 0, 255).astype(np.uint8)
    return saturated


class _Draw:
    """Operands from a seed, any number of them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def any(self, dtype: Any, *shape: int, least: int | None = None, greatest: int | None = None) -> Array:
        limits = np.iinfo(dtype)
        low, high = limits.min if least is None else least, limits.max if greatest is None else greatest
        return self.random.integers(low, high, shape, dtype, endpoint=True)

    def ends(self, dtype: Any, *shape: int, least: int | None = None, greatest: int | None = None) -> Array:
        """The least and the greatest alone, in runs of two: pairs of products that int16 cannot hold."""
        limits = np.iinfo(dtype)
        low, high = limits.min if least is None else least, limits.max if greatest is None else greatest
        runs = self.random.integers(0, 2, (*shape[:-1], -(-shape[-1] // 2)))
        return np.where(np.repeat(runs, 2, -1)[..., : shape[-1]], high, low).astype(dtype)

    def units(self, dtype: Any, *shape: int, zero: int = 0) -> Array:
        """``zero`` and its neighbours: sums that fit into 8 bits, so that no rounding hides what is wrong by one."""
        return self.any(dtype, *shape, least=max(zero - 1, np.iinfo(dtype).min), greatest=zero + 1)


# ---- the cases ----

ROWS, COLUMNS = (1, 5, 31, 32, 33, 64, 216), (1, 5, 15, 16, 17, 24, 40, 63, 64, 65, 130)
DEPTHS = (1, 3, 9, 36, 63, 64, 65, 130, 512)
GREATEST = 127  # of the first operand beside int8: there every kernel is exact that adds pairs in int16


def _sizes(columns: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Rows, depths and columns of products: every two of them together somewhere."""
    for at, m in enumerate(ROWS):
        for then, n in enumerate(columns):
            yield m, DEPTHS[(at + then) % len(DEPTHS)], n
    yield from ((64, 36, columns[4]), (216, 512, columns[5]), (64, 500, columns[5]), (200, 2304, columns[1]))


def _matmul(columns: Sequence[int] = COLUMNS) -> Iterator[Case]:
    for number, (m, k, n) in enumerate(_sizes(columns)):
        draw = _Draw(number)
        drawn = draw.ends if number % 4 == 3 else draw.any
        a, signed = drawn(np.uint8, m, k, greatest=GREATEST), draw.any(np.int8, k, n)
        whole, b = drawn(np.uint8, m, k), draw.any(np.uint8, k, n)
        late = number % 3 > 0  # the others are constants, which onnxruntime puts into an order of their own
        yield _product_case(a, signed if late else Fixed(signed), (0, 0))
        yield _product_case(whole, b if late else Fixed(b), (128, 128))


def _product_case(a: Array, b: Array | Fixed, zeros: tuple[int, int] | None) -> Case:
    """None for operands without zero points."""
    second = b.value if isinstance(b, Fixed) else b
    expected = _product(a, second, zeros or (0, 0)).astype(np.int32)
    points = [] if zeros is None else [Fixed(np.array(z, v.dtype)) for z, v in zip(zeros, (a, second), strict=True)]
    return Case("MatMulInteger", [a, b, *points], expected)


def _whole_matmul() -> Iterator[Case]:
    return _matmul((16, 32, 48, 64, 80, 144))


RAGGED = ((7, 7), (1, 1), (3, 5), (5, 5), (14, 14), (9, 7), (8, 8), (1, 33), (6, 11), (28, 28))  # places of an output map
WHOLES = ((4, 4), (8, 8), (2, 8), (1, 16), (7, 16), (4, 12), (12, 12))
CHANNELS = (
    (3, 16, 3),
    (64, 64, 3),
    (16, 33, 3),
    (65, 32, 1),
    (256, 130, 1),
    (31, 31, 3),
    (17, 1, 3),
    (64, 64, 1),
)  # in, out, kernel


def _conv(places: Sequence[tuple[int, int]] = RAGGED) -> Iterator[Case]:
    for number, (size, (i, o, k)) in enumerate(
        (p, c) for at, p in enumerate(places) for c in (CHANNELS[at % 8], CHANNELS[(at + 3) % 8])
    ):
        draw = _Draw(number)
        drawn = draw.ends if number % 4 == 3 else draw.any
        zero = 128 if number % 2 else 0
        w = draw.any(np.uint8, o, i, k, k)
        yield _conv_case(drawn(np.uint8, 1 + number % 2, i, *size), w, Window(1, (k // 2, k // 2)), zero)
    for number, size in enumerate(places):
        draw = _Draw(number)
        x = draw.any(np.uint8, 2, 34, 2 * size[0] - 1, 2 * size[1] - 1)
        yield _conv_case(x, draw.any(np.uint8, 33, 34, 1, 1), Window(2), 0)  # strided
        x = draw.any(np.uint8, 2, 6, size[0], size[1])
        yield _conv_case(x, draw.any(np.uint8, 6 * (1 + number % 2), 1, 3, 3), Window(1, (1, 1), 6), 128)  # depthwise
        x = draw.any(np.uint8, 1, 66, size[0], size[1])
        yield _conv_case(x, draw.any(np.uint8, 66, 33, 3, 3), Window(1, (1, 1), 2), 128)  # grouped
        x = draw.any(np.uint8, 1, 40, size[0], size[1])
        yield _conv_case(x, Fixed(draw.any(np.uint8, 48, 40, 3, 1)), Window(1, (1, 0)), 128)  # rows, of a frozen layer


def _conv_case(x: Array, w: Array | Fixed, window: Window, zero: int) -> Case:
    kernels = w.value if isinstance(w, Fixed) else w
    expected = window.sums(x, kernels, (zero, 128)).astype(np.int32)
    points = [Fixed(np.array(zero, x.dtype)), Fixed(np.array(128, np.uint8))]
    return Case("ConvInteger", [x, w, *points], expected, {"kernel_shape": list(kernels.shape[2:]), **window.attributes})


def _whole_conv() -> Iterator[Case]:
    return _conv(WHOLES)


def _int8() -> Iterator[Case]:
    for number, (size, (i, o, k)) in enumerate((p, CHANNELS[at % 8]) for at, p in enumerate((*RAGGED, *WHOLES))):
        draw = _Draw(number)
        drawn = draw.any if number % 2 else draw.ends
        x, w = drawn(np.int8, 2, i, *size, least=-127), draw.ends(np.uint8, o, i, k, k)
        yield _conv_case(x, w, Window(1, (k // 2, k // 2)), 0)
        x = drawn(np.int8, 1, i, 2 * size[0] - 1, 2 * size[1] - 1, least=-127)
        yield _conv_case(x, draw.any(np.uint8, o, i, 1, 1), Window(2), 0)
    for number, (m, k, n) in enumerate(_sizes(COLUMNS)):
        draw = _Draw(number)
        drawn = draw.any if number % 2 else draw.ends
        yield _product_case(drawn(np.uint8, m, k), drawn(np.int8, k, n, least=-127), (128, 0))


def _sums() -> Iterator[Case]:
    for number, (channels, places) in enumerate((c, p) for c in (1, 3, 16, 24, 33, 64, 65) for p in (1, 9, 16, 49, 64, 785)):
        draw = _Draw(number)
        x, ones = draw.any(np.int8, 2 * channels, places), Fixed(np.ones((places, 1), np.int8))
        yield _product_case(x, ones, None)
        maps, row = draw.any(np.uint8, 2, places, channels), np.ones((1, places), np.uint8)
        if number % 2:
            yield _product_case(row, maps, (0, 128))
        else:
            yield _product_case(row, maps, None)
        factors = np.array([[1 + number, 3]], np.uint8)
        yield _product_case(factors, draw.any(np.int8, 2, channels * places), None)


QUANTIZED = ((1, 1, 1), (3, 16, 3), (16, 5, 1), (17, 33, 3), (64, 64, 3), (65, 17, 1), (48, 24, 3), (130, 64, 1), (512, 32, 3))


def _qlinear_conv() -> Iterator[Case]:
    for number, (size, (i, o, k)) in enumerate((p, QUANTIZED[(at + more) % 9]) for at, p in enumerate(RAGGED) for more in (0, 4)):
        draw = _Draw(number)
        drawn = draw.ends if number % 4 == 3 else draw.any
        x, w = drawn(np.uint8, 1 + number % 2, i, *size), draw.ends(np.int8, o, i, k, k, least=-127)
        shift = int(np.log2(i * k * k)) // 2 + 7 + number % 4
        scale = np.full(o, 2.0**-shift) if number % 2 else np.array([2.0**-shift])
        window, zero = Window(1, (k // 2, k // 2)), 128 * (number // 2 % 2)
        yield _qlinear_conv_case(x, w, scale, window, zero)
        x, w = draw.units(np.uint8, *x.shape, zero=zero), draw.units(np.int8, *w.shape)
        yield _qlinear_conv_case(x, w, np.ones_like(scale), window, zero)
    for number, (i, o, k) in enumerate(QUANTIZED):
        draw = _Draw(number)
        x, w = draw.any(np.uint8, 2, i, 13, 11), draw.any(np.int8, o, i, k, k)
        scale = 2.0 ** -draw.random.integers(9, 17, o)
        yield _qlinear_conv_case(x, Fixed(w), scale, Window(2, (k // 2, k // 2)), 128)  # strided, of a frozen layer
        x, w = draw.any(np.uint8, 1, 2 * i, 9, 7), draw.any(np.int8, 2 * o, i, 3, 1)
        yield _qlinear_conv_case(x, w, np.array([2.0**-11]), Window(1, (1, 0), 2), 128)  # grouped, rows
    draw = _Draw(0)
    x, w = draw.any(np.uint8, 1, 2048, 7, 7), draw.any(np.int8, 24, 2048, 1, 1)  # sums beyond 2^24, which saturate
    yield _qlinear_conv_case(x, w, np.array([2.0**-17]), Window(), 0)


def _qlinear_conv_case(x: Array, w: Array | Fixed, scale: Array, window: Window, zero: int) -> Case:
    """uint8 with 128 for 0."""
    return _fused_case(x, w, scale, window, zero, 128)


def _fused_case(
    x: Array, w: Array | Fixed, scale: Array, window: Window, zero: int, y_zero: int, bias: Array | Fixed | None = None
) -> Case:
    """A QLinearConv of images x [N, I, H, W], given with their channels last; a constant uint8 kernel has 128 for 0."""
    kernels = w.value if isinstance(w, Fixed) else w
    w_zero = 128 if kernels.dtype == np.uint8 else 0
    sums = window.sums(x, kernels, (zero, w_zero)).transpose(0, 2, 3, 1)
    given = bias.value if isinstance(bias, Fixed) else bias
    scale = scale.astype(np.float32)
    expected = _requantized(sums if given is None else sums + given, scale, y_zero)
    one = Fixed(np.array(1, np.float32))
    operands: list[Array | Fixed] = [
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
        one,
        Fixed(np.array(zero, np.uint8)),
        w,
        scale,
    ]
    operands += [Fixed(np.array(w_zero, kernels.dtype)), one, Fixed(np.array(y_zero, np.uint8))]
    operands += [] if bias is None else [bias]
    attributes = {"kernel_shape": list(kernels.shape[2:]), "channels_last": 1, **window.attributes}
    return Case("QLinearConv", operands, expected, attributes, MICROSOFT)


def _depthwise() -> Iterator[Case]:
    near = reciprocals(1, 4095)
    for number, channels in enumerate((1, 2, 7, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 128, 144)):
        for rows in (1, 1 + number % 6):
            draw = _Draw(number * 8 + rows)
            alone = Window(group=channels)
            height = 2 if rows == 1 else rows
            x = draw.any(np.uint8, 1, channels, height, 1 + 9 * (number % 5))
            w = draw.ends(np.int8, channels, 1, rows, 1, least=-127)
            bias = draw.any(np.int32, channels, least=-9000, greatest=9000)
            scale = 2.0 ** -draw.random.integers(3, 12, channels)
            yield _fused_case(x, w, scale, alone, 128, 128, bias)
            yield _fused_case(x, w, scale[:1], alone, 0, 0, bias)
            yield _fused_case(x, Fixed(w.view(np.uint8) ^ np.uint8(128)), scale, alone, 128, 0, bias)
            yield _fused_case(x, Fixed(w), scale, alone, 128, 0, Fixed(bias))
            # a quotient by a float32 reciprocal, of passes/targets/cpu/maps/normalize_by_reciprocals.py
            sizes = draw.any(np.int32, channels, least=64, greatest=4095)
            yield _fused_case(x, Fixed(np.full((channels, 1, 1, 1), 192, np.uint8)), near[sizes], alone, 128, 0, bias)
        taken = Fixed(np.ones((channels, 1, 1, 1), np.int8))  # every other row and column
        x = _Draw(number).any(np.uint8, 3, channels, 5 + number % 2, 7)
        yield _fused_case(x, taken, np.array([1.0]), Window(2, group=channels), 0, 0)
        draw = _Draw(number)
        x, w = draw.any(np.uint8, 2, channels, 9, 7), draw.any(np.int8, channels, 1, 3, 3)
        yield _fused_case(x, w, np.full(channels, 2.0**-10), Window(1, (1, 1), channels), 128, 128)


def _qlinear_matmul() -> Iterator[Case]:
    one = Fixed(np.array(1, np.float32))
    for number, (m, k, n) in enumerate(_sizes(COLUMNS)):
        draw = _Draw(number)
        drawn = draw.any if number % 2 else draw.ends
        a, b, zero = drawn(np.uint8, m, k), drawn(np.int8, k, n, least=-127), 128 * (number % 2)
        shift = int(np.log2(k)) // 2 + 7 + number % 4
        scale = np.full(n, 2.0**-shift, np.float32) if number % 3 else np.array([2.0**-shift], np.float32)
        points = [Fixed(np.array(z, t)) for z, t in ((zero, np.uint8), (0, np.int8), (128, np.uint8))]
        units = draw.units(np.uint8, m, k, zero=zero), draw.units(np.int8, k, n)
        for left, right, by in ((a, b, scale), (*units, np.ones_like(scale))):
            expected = _requantized(_product(left, right, (zero, 0)), by, 128)
            second = right if number % 4 else Fixed(right)
            yield Case("QLinearMatMul", [left, one, points[0], second, by, points[1], one, points[2]], expected)


def _pairs(dtype: Any) -> tuple[Array, Array]:
    """All pairs of 8 bits, and some more, so that the last ones stand alone."""
    x, y = np.meshgrid(*[np.arange(256, dtype=np.uint8).view(dtype)] * 2)
    return np.append(x.ravel(), x[3, :13]), np.append(y.ravel(), y[:13, 7])


def _of_pairs(
    kind: str, dtype: Any, scales: tuple[float, float, float], zeros: tuple[int, int, int], right: Any
) -> Iterator[Case]:
    """``right`` of the numbers that two tensors stand for is what the result does; of a few and of many."""
    for much in (1, 15, 33, None):
        x, y = (value[-much:] if much else value for value in _pairs(dtype))
        limits = np.iinfo(dtype)
        wanted = right(x.astype(int) - zeros[0], y.astype(int) - zeros[1])
        expected = np.clip(wanted + zeros[2], limits.min, limits.max).astype(dtype)
        points = [Fixed(np.array(zero, dtype)) for zero in zeros]
        factors = [Fixed(np.array(scale, np.float32)) for scale in scales]
        operands = [x, factors[0], points[0], y, factors[1], points[1], factors[2], points[2]]
        yield Case(kind, operands, expected, domain=MICROSOFT)


def _qlinear_add() -> Iterator[Case]:
    yield from _of_pairs("QLinearAdd", np.int8, (3, 1, 4), (0, 0, 0), lambda x, y: np.rint((3 * x + y) / 4))
    yield from _of_pairs("QLinearAdd", np.int8, (192, 64, 128), (0, 0, 0), lambda x, y: np.rint((192 * x + 64 * y) / 128))
    raised = (RAISED, RAISED, RAISED)
    for shift in range(-8, 9, 2):
        scales = (1.0, 1.0, 2.0**shift)
        yield from _of_pairs("QLinearAdd", np.uint8, scales, raised, lambda x, y, s=shift: np.rint((x + y) / 2.0**s))


def _qlinear_mul() -> Iterator[Case]:
    for zero in (RAISED, 0):
        yield from _of_pairs("QLinearMul", np.uint8, (1, 1, STEP), (RAISED, zero, RAISED), lambda x, y: np.rint(x * y / STEP))


def _pool() -> Iterator[Case]:
    for number, channels in enumerate((1, 3, 15, 16, 17, 24, 33, 64, 65)):
        for dtype in (np.uint8, np.int8):
            x = _Draw(number).any(dtype, 2, 2 + number % 7, 1 + number, channels)
            window = {"kernel_shape": [x.shape[1], 1]}
            yield Case("NhwcMaxPool", [x], x.max(1, keepdims=True), window, MICROSOFT)


SHORT = (np.uint16, np.int16, np.int8)  # without a kernel for Max and Min in onnxruntime 1.20
OPERATORS: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum,
    "Equal": np.equal, "Greater": np.greater, "Less": np.less, "GreaterOrEqual": np.greater_equal,
    "BitwiseAnd": np.bitwise_and, "BitwiseXor": np.bitwise_xor,
}  # fmt: skip
LENGTHS = (1, 7, 33, 1000)


def _elementwise(kinds: Sequence[str], dtype: Any, draw: _Draw, most: int | None = None) -> Iterator[Case]:
    """All of ``kinds``, with two tensors, and with a tensor and one number; sizes below ``most``, where given."""
    for kind in kinds:
        for length in LENGTHS:
            least, greatest = (None, None) if most is None else (-most, most)
            x, y = (draw.any(dtype, length, least=least, greatest=greatest) for _ in range(2))
            x[-1] = y[-1] = np.iinfo(dtype).max if most is None else most
            x[0], y[0] = y[0], x[0]
            for second in (y, y[:1].reshape(()), Fixed(y[-1:].reshape(()))):
                value = second.value if isinstance(second, Fixed) else second
                yield Case(kind, [x, second], OPERATORS[kind](x, value))


def _unsigned() -> Iterator[Case]:
    draw = _Draw(0)
    with np.errstate(over="ignore"):
        for dtype in (np.uint8, np.uint32, np.uint64):
            yield from _elementwise(("Max", "Min", "Mul", "Add", "Sub"), dtype, draw)
        for dtype in SHORT:
            yield from _elementwise(("Mul", "Add", "Sub"), dtype, draw)
        for dtype in (np.uint8, np.uint16):
            yield from _elementwise(("Greater", "Equal"), dtype, draw)
        yield from _elementwise(("Max", "Min"), np.int8, draw)
        yield from _elementwise(("BitwiseXor", "BitwiseAnd"), np.uint32, draw)
    sixteen = np.array(16, np.uint32)
    x = draw.any(np.uint32, 1000)
    yield Case("BitShift", [x, Fixed(sixteen)], x >> sixteen, {"direction": "RIGHT"})
    yield Case("BitShift", [x, Fixed(sixteen)], x << sixteen, {"direction": "LEFT"})
    casts = ((np.int32, np.uint16), (np.int32, np.uint8), (np.uint8, np.uint16), (np.uint16, np.int32), (np.uint32, np.int32))
    for source, target in (*casts, (np.int64, np.uint32), (np.int32, np.uint32), (np.uint8, np.int8), (np.int8, np.uint8)):
        x = draw.any(source, 1000)
        yield Case("Cast", [x], x.astype(target), {"to": helper.np_dtype_to_tensor_dtype(np.dtype(target))})


def _arithmetic() -> Iterator[Case]:
    draw = _Draw(1)
    yield from _elementwise(("Add", "Sub"), np.int32, draw, 2**30)
    yield from _elementwise(("Mul",), np.int32, draw, 46_000)
    yield from _elementwise(("Max", "Min", "Equal", "Greater", "GreaterOrEqual", "BitwiseAnd"), np.int32, draw)
    yield from _elementwise(("Add", "Sub"), np.int64, draw, 2**61)
    yield from _elementwise(("Mul",), np.int64, draw, 2**31)
    yield from _elementwise(("Equal", "Greater", "GreaterOrEqual", "Less", "BitwiseAnd", "BitwiseXor"), np.int64, draw)
    yield from _elementwise(("BitwiseXor",), np.uint8, draw)
    for dtype, most in ((np.int32, 2**31 - 1), (np.int64, 2**62)):
        for length in LENGTHS:
            x, y = draw.any(dtype, length, least=0, greatest=most), draw.any(dtype, length, least=1, greatest=2**20)
            yield Case("Div", [x, y], x // y)
            yield Case("Div", [x, Fixed(np.array(2**16, dtype))], x // 2**16)
    for length in LENGTHS:
        x, wide, is_true = draw.any(np.int32, length), draw.any(np.int64, length), draw.any(np.uint8, length) > 127
        ends = [Fixed(np.array(v, np.int32)) for v in (-127, 127)]
        yield Case("Clip", [x, *ends], np.clip(x, -127, 127))
        yield Case("Neg", [wide], -wide)
        for value in (x, wide, draw.any(np.uint8, length)):
            yield Case("Where", [is_true, value, value[::-1].copy()], np.where(is_true, value, value[::-1]))
    yield from _reductions(draw)
    yield from _moves(draw)


def _reductions(draw: _Draw) -> Iterator[Case]:
    channel = Fixed(np.array([0, 2, 3], np.int64))
    for shape in ((2, 3, 5, 7), (3, 17, 4, 4), (1, 64, 1, 9), (4, 16, 8, 8)):
        for dtype, most in ((np.int32, 2**20), (np.int64, 2**40)):
            x = draw.any(dtype, *shape, least=-most, greatest=most)
            yield Case("ReduceSum", [x, channel], x.sum((0, 2, 3), dtype, keepdims=True), {"keepdims": 1})
        for dtype in (np.int8, np.uint8, np.int32):
            x = draw.any(dtype, *shape)
            yield Case("ReduceMax", [x, channel], x.max((0, 2, 3), keepdims=True), {"keepdims": 1})
            yield Case("ReduceMax", [x], x.max(), {"keepdims": 0})
            if dtype != np.int32:
                yield Case("ReduceMin", [x, channel], x.min((0, 2, 3), keepdims=True), {"keepdims": 1})
        x = draw.any(np.uint8, *shape)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))
        yield Case("MaxPool", [x], seen, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4})


def _moves(draw: _Draw) -> Iterator[Case]:
    table = np.array([2**i for i in range(31)], np.int32)
    places = draw.any(np.int32, 5, 3, least=0, greatest=30)
    for values in (table, table.astype(np.int64)):
        yield Case("Gather", [Fixed(values), places], values[places])
    for dtype in (np.uint8, np.int8, np.int32):
        x = draw.any(dtype, 2, 3, 5, 4)
        ends = Fixed(np.array([0, 0, 1, 2, 0, 0, 3, 1], np.int64))
        filled = np.pad(x, ((0, 0), (0, 0), (1, 3), (2, 1)), constant_values=5)
        yield Case("Pad", [x, ends, Fixed(np.array(5, dtype))], filled)
        bounds = [Fixed(np.array(v, np.int64)) for v in ((1, 0), (5, 4), (2, 3), (2, 3))]
        yield Case("Slice", [x, *bounds], x[:, :, 1:5:2, 0:4:3])
        yield Case("Transpose", [x], x.transpose(1, 0, 2, 3), {"perm": [1, 0, 2, 3]})
    casts = ((np.int32, np.int8), (np.int32, np.int64), (np.int64, np.int32), (np.int16, np.int32), (np.int8, np.int32))
    for source, target in (*casts, (np.int8, np.uint8), (np.uint8, np.int8), (np.int32, np.int16)):
        x = draw.any(source, 1000, least=-127 if source != np.uint8 else 0, greatest=127)
        yield Case("Cast", [x], x.astype(target), {"to": helper.np_dtype_to_tensor_dtype(np.dtype(target))})


PROBES: dict[Kernel, Callable[[], Iterator[Case]]] = {
    Kernel.ARITHMETIC: _arithmetic,
    Kernel.MATMUL: _matmul,
    Kernel.WHOLE_MATMUL: _whole_matmul,
    Kernel.CONV: _conv,
    Kernel.WHOLE_CONV: _whole_conv,
    Kernel.UNSIGNED: _unsigned,
    Kernel.INT8: _int8,
    Kernel.SUMS: _sums,
    Kernel.QLINEAR_CONV: _qlinear_conv,
    Kernel.DEPTHWISE: _depthwise,
    Kernel.QLINEAR_MATMUL: _qlinear_matmul,
    Kernel.QLINEAR_ADD: _qlinear_add,
    Kernel.QLINEAR_MUL: _qlinear_mul,
    Kernel.POOL: _pool,
}
"""The cases of every kernel: a new one has its line here."""

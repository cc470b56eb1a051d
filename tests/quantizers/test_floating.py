"""The float functions equal the numpy references exactly, in float32 and as a float64 copy.

Both run on onnxruntime, the copy also in onnx's evaluator; magnitudes lie in the 2^-90..2^27 for which R has entries. Then float
and integer functions are compared on the same mantissas: value, step and saturation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from float64 import float64_copy
from kernels import EXACT, FEW, Array, Kernel, call_model, integers, tensors
from wageubn_onnx.graph import Model, Tensor, to_proto
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating, integer, reference, tables

WIDTHS = {"float32": 24, "float64": 53}  # bits of a mantissa
DTYPES = pytest.mark.parametrize("dtype", WIDTHS)
EXPONENTS = st.integers(-60, -1)  # of 28-bit mantissas
NARROW = 2**integer.SHIFT_LIMIT - 1


# -- kernels --------------------------------------------------------------------------------------------------------------


def build(dtype: str, count: int, quantize: Callable[..., Any], integers: int = 0) -> Kernel:
    """A model of ``quantize(g, *inputs)``: ``count`` float inputs of any length, then int32 ones."""
    g = Model.empty("quant_training", "quantizer")
    inputs = [g.input(f"x{i}", np.float32, [f"n{i}"]) for i in range(count)]
    more = [g.input(f"i{i}", np.int32, [f"n{i}"] if i else []) for i in range(integers)]
    result: Tensor | tuple[Tensor, ...] = quantize(g, *inputs, *more)
    results = result if isinstance(result, tuple) else (result,)
    model = to_proto(g, {f"y{i}": t for i, t in enumerate(results)})
    return Kernel(model if dtype == "float32" else float64_copy(model))


@functools.cache
def direct(
    dtype: str, exponent: int, bits: int, lo: int | None = None, hi: int | None = None, rounding: str = "half_even"
) -> Kernel:
    return build(dtype, 1, lambda g, x: floating.direct(g, x, "A", Format(bits, rounding=rounding), exponent, lo, hi))


@functools.cache
def grid(dtype: str, bits: int) -> Kernel:
    g = Model.empty("quant_training", "quantizer")
    x, step = g.input("x", np.float32, ["n"]), g.input("step", np.float32, [])
    model = to_proto(g, {"y": floating.grid(g, x, step, "E.acc", Format(bits))})
    return Kernel(model if dtype == "float32" else float64_copy(model))


@functools.cache
def shift(dtype: str, bits: int) -> Kernel:
    return build(dtype, 1, lambda g, x: floating.shift(g, x, "E1", Format(bits)))


@functools.cache
def flag(dtype: str) -> Kernel:
    return build(dtype, 1, lambda g, x: floating.flag(g, x, "E2", Format(8)))


@functools.cache
def align(dtype: str) -> Kernel:
    return build(dtype, 2, lambda g, a, b: floating.align(g, a, b, "E.sum", Format(16)))


@functools.cache
def constant(dtype: str) -> Kernel:
    return build(
        dtype,
        1,
        lambda g, x, dr, random: floating.constant(g, x, dr, "G.W", Format(8, 14, rounding="stochastic"), random),
        integers=2,
    )


# -- values ---------------------------------------------------------------------------------------------------------------


def value(m: Array, exponent: int) -> Array:
    """m * 2^exponent in float64, exact below 53 bits."""
    return np.ldexp(np.asarray(m).astype(np.float64), exponent)


def floats(dtype: str) -> st.SearchStrategy[Array]:
    """Arrays whose mantissas fill the dtype."""
    width = WIDTHS[dtype]
    return st.builds(value, tensors(2**width - 1), st.integers(-90, 27 - width))


def equal(actual: Array, expected: Array, message: str = "") -> None:
    np.testing.assert_array_equal(actual.astype(np.float64), expected, message)


def is_power_of_two(step: Array) -> bool:
    return bool(math.frexp(float(step))[0] == 0.5)


# -- each against its reference -------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(("bits", "lo", "hi"), [(8, None, None), (8, -128, 127), (8, 0, 127), (16, 1, 32767), (24, None, None)])
@EXACT
@given(data=st.data())
def test_direct(dtype: str, bits: int, lo: int | None, hi: int | None, data: st.DataObject) -> None:
    x, target = data.draw(floats(dtype)), data.draw(st.sampled_from([-23, -14, -7, 0, 3]))
    least, greatest = (-(2 ** (bits - 1)) + 1 if lo is None else lo), (2 ** (bits - 1) - 1 if hi is None else hi)
    q, exponent = reference.direct(*reference.dyadic(x), target, least, greatest)
    equal(direct(dtype, target, bits, lo, hi)(x)[0], value(q, exponent))


@DTYPES
def test_direct_exhaustively_around_ties(dtype: str) -> None:
    """Every quarter of a unit from -75 to 75."""
    m = np.arange(-300, 301)
    for exponent in (-9, -2, 3):
        q, target = reference.direct(m, exponent, exponent + 2, -64, 64)
        equal(direct(dtype, target, 8, -64, 64)(value(m, exponent))[0], value(q, target))


@DTYPES
@EXACT
@given(data=st.data(), target=st.integers(-60, 20))
def test_grid(dtype: str, data: st.DataObject, target: int) -> None:
    x = data.draw(floats(dtype))
    q, _ = reference.direct(*reference.dyadic(x), target, -32767, 32767)
    equal(grid(dtype, 16)(x, 2.0**target)[0], value(q, target))


@DTYPES
@pytest.mark.parametrize("bits", [8, 13, 16])
@EXACT
@given(data=st.data())
def test_shift(dtype: str, bits: int, data: st.DataObject) -> None:
    x = data.draw(floats(dtype))
    y, step = shift(dtype, bits)(x)
    q, exponent = reference.shift(*reference.dyadic(x), bits)
    equal(y, value(q, exponent))
    assert is_power_of_two(step)
    if x.any():
        assert float(step) == 2.0**exponent


@DTYPES
@EXACT
@given(data=st.data())
def test_flag(dtype: str, data: st.DataObject) -> None:
    x = data.draw(floats(dtype))
    y, step = flag(dtype)(x)
    high, low, exponent = reference.flag(*reference.dyadic(x))
    equal(y, value(128 * high + low, exponent))
    assert is_power_of_two(step)
    if x.any():
        assert float(step) == 2.0**exponent


@DTYPES
def test_flag_at_the_border_of_its_parts(dtype: str) -> None:
    border = np.arange(2**13 - 300, 2**13 + 300)
    m = np.concatenate([[2**20], border, -border])
    high, low, exponent = reference.flag(m, -30)
    equal(flag(dtype)(value(m, -30))[0], value(128 * high + low, exponent))


@DTYPES
@EXACT
@given(data=st.data())
def test_align(dtype: str, data: st.DataObject) -> None:
    a, b = data.draw(floats(dtype)), data.draw(floats(dtype))
    qa, qb, exponent = reference.align(*reference.dyadic(a), *reference.dyadic(b), 16)
    ya, yb, step = align(dtype)(a, b)
    equal(ya, value(qa, exponent))
    equal(yb, value(qb, exponent))
    assert is_power_of_two(step)
    if a.any() or b.any():
        assert float(step) == 2.0**exponent


@DTYPES
@EXACT
@given(data=st.data(), dr=st.sampled_from([2, 4, 8, 16, 32, 64, 128]))
def test_constant(dtype: str, data: st.DataObject, dr: int) -> None:
    x = data.draw(floats(dtype))
    random = np.array(data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=len(x), max_size=len(x))))
    q, exponent = reference.constant(reference.dyadic(x)[0], dr, random, 14)
    equal(constant(dtype)(x, dr, random)[0], value(q, exponent))


@DTYPES
def test_ranges_at_their_thresholds(dtype: str) -> None:
    """The least float not below 2^(j-1/2) opens the range 2^j; the float before it does not."""
    scalar = np.dtype(dtype).type
    for j in range(-90, 27):
        root = scalar(math.sqrt(0.5)) * scalar(2.0**j)
        for x in (np.nextafter(root, scalar(0)), root, np.nextafter(root, scalar(np.inf))):
            m, exponent = reference.dyadic([x])
            _, step = shift(dtype, 8)([x])
            assert float(step) == 2.0 ** (reference.guard(m, exponent + reference.range_log2(m)) - 7), (j, x)


@DTYPES
@pytest.mark.parametrize("rounding", ["half_up", "stochastic"])
@EXACT
@given(data=st.data())
def test_other_roundings(dtype: str, rounding: str, data: st.DataObject) -> None:
    """Direct, shift and constant quantization; flag and align where they have the rounding."""
    x = data.draw(floats(dtype))
    random = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=len(x), max_size=len(x)))
    more = [random] if rounding == "stochastic" else []
    chance = random if more else None
    m, unit = reference.dyadic(x)
    q, exponent = reference.direct(m, unit, -7, -127, 127, rounding, chance)
    equal(rounded("direct", dtype, rounding)(x, *more)[0], value(q, exponent))
    q, exponent = reference.shift(m, unit, 8, rounding, chance)
    y, step = rounded("shift", dtype, rounding)(x, *more)
    equal(y, value(q, exponent))
    assert float(step) == 2.0**exponent
    q, exponent = reference.constant(m, 128, chance, 14, rounding)
    equal(rounded("constant", dtype, rounding)(x, 128, *more)[0], value(q, exponent))
    if not more:
        high, low, exponent = reference.flag(m, unit, rounding)
        equal(rounded("flag", dtype, rounding)(x)[0], value(128 * high + low, exponent))


@functools.cache
def rounded(name: str, dtype: str, rounding: str) -> Kernel:
    """The quantizer of that name; its last operand is the random bits where the rounding is stochastic."""
    f = Format(8, 14 if name == "constant" else None, rounding=rounding)
    calls: dict[str, Callable[..., Any]] = {
        "direct": lambda g, x, *r: floating.direct(g, x, "A", f, -7, random=r[0] if r else None),
        "shift": lambda g, x, *r: floating.shift(g, x, "E1", f, *r),
        "flag": lambda g, x: floating.flag(g, x, "E2", f),
        "constant": lambda g, x, dr, *r: floating.constant(g, x, dr, "G.W", f, *r),
    }
    g = Model.empty("quant_training", "quantizer")
    inputs = [g.input("x", np.float32, ["n"])]
    inputs += [g.input("dr", np.int32, [])] if name == "constant" else []
    inputs += [g.input("random", np.int32, ["n"])] if rounding == "stochastic" else []
    result = calls[name](g, *inputs)
    model = to_proto(g, {f"y{i}": t for i, t in enumerate(result if isinstance(result, tuple) else (result,))})
    return Kernel(model if dtype == "float32" else float64_copy(model))


@DTYPES
def test_tables(dtype: str) -> None:
    t = -np.arange(0, 18 * 256)
    y, exponent = reference.exponential(t)
    exponential = build(dtype, 1, lambda g, x: floating.exponential(g, x))
    equal(exponential(value(t, -8))[0], value(y, exponent))
    x = np.concatenate([2**15 + np.arange(2000), *([2**k - 1, 2**k, 2**k + 1] for k in range(16, 24)), [2**24 - 1]])
    y, exponent = reference.logarithm(x)
    logarithm = build(dtype, 1, lambda g, x: floating.logarithm(g, x))
    equal(logarithm(value(x, -15))[0], value(y, exponent))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_zeros_are_an_explicit_case(dtype: str) -> None:
    """Zeros out, and a step that is a power of two."""
    zeros = np.zeros(3)
    for kernel, inputs in ((shift(dtype, 8), [zeros]), (flag(dtype), [zeros]), (align(dtype), [zeros, zeros])):
        *values, step = kernel(*inputs)
        assert not any(v.any() for v in values)
        assert is_power_of_two(step)
    assert not constant(dtype)(zeros, 128, [0, 1, 2**16 - 1])[0].any()


@FEW
@given(floats("float64"), floats("float64"), st.sampled_from([2, 32, 128]))
def test_the_evaluator_agrees(x: Array, other: Array, dr: int) -> None:
    """onnx's evaluator on the float64 copies returns what onnxruntime returns."""
    random = np.arange(len(x)) * 9973 % 2**16
    for kernel, inputs in (
        (direct("float64", -7, 8), [x]),
        (shift("float64", 8), [x]),
        (flag("float64"), [x]),
        (align("float64"), [x, other]),
        (constant("float64"), [x, dr, random]),
    ):
        for a, b in zip(kernel(*inputs), kernel.evaluated(*inputs), strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_array_equal(a, b)


# -- ratios and roots: the float graph divides first, the integer one never does --------------------------------------------


def test_float64_ratios_round_as_the_exact_ratio() -> None:
    """A float64 quotient of short mantissas is never nearer to a tie than the exact one is."""
    m, d = (v.ravel() for v in np.meshgrid(np.arange(-300, 301), np.arange(1, 41)))
    q, _ = reference.ratio(m, d, 0, 0, -127, 127)
    equal(direct("float64", 0, 8)(m / d)[0], value(q, 0))
    equal(direct("float32", 0, 8)((m / d).astype(np.float32))[0], value(q, 0))


def test_float64_roots_round_as_the_exact_root() -> None:
    """All quarters of a squared unit up to 1000, so all ties of 0..31."""
    n = np.arange(4001)
    q, _ = reference.root(n, 1, -2, 0, -32767, 32767)
    equal(direct("float64", 0, 16)(np.sqrt(n / 4))[0], value(q, 0))


# -- float against integer ------------------------------------------------------------------------------------------------


@functools.cache
def mantissa_kernel(name: str, inputs: tuple[Any, ...], **attrs: int) -> Kernel:
    rounding = "stochastic" if name == "CONSTANT" else "half_even"
    return Kernel(call_model(getattr(integer, name)[rounding], inputs, list(integer.LIBRARY.values()), **attrs))


@EXACT
@given(tensors(NARROW), EXPONENTS)
@example(np.array([NARROW]), -30)
def test_float_and_integer_errors_agree(m: Array, exponent: int) -> None:
    """SQ and flag quantization of the same tensor, float64 and int32."""
    y, step = shift("float64", 8)(value(m, exponent))
    q, moved = mantissa_kernel("SHIFT", (np.int32, np.int32), to=3, least=-127, greatest=127, fraction=7)(m, exponent)
    equal(y, value(q, int(moved)))
    high, low, flag_moved = mantissa_kernel("FLAG", (np.int32, np.int32))(m, exponent)
    y, flag_step = flag("float64")(value(m, exponent))
    equal(y, value(128 * high.astype(np.int64) + low, int(flag_moved)))
    assert float(step) == 2.0 ** int(moved)
    assert float(flag_step) == 2.0 ** (int(flag_moved))


@EXACT
@given(st.data(), tensors(NARROW), EXPONENTS, tensors(NARROW), EXPONENTS)
def test_float_and_integer_sums_and_gradients_agree(
    data: st.DataObject, a: Array, a_exponent: int, b: Array, b_exponent: int
) -> None:
    attrs = {"least": -32767, "greatest": 32767, "fraction": 14}
    qa, qb, exponent = mantissa_kernel("ALIGN", (np.int32,) * 4, **attrs)(a, a_exponent, b, b_exponent)
    ya, yb, _ = align("float64")(value(a, a_exponent), value(b, b_exponent))
    equal(ya, value(qa, int(exponent)))
    equal(yb, value(qb, int(exponent)))
    random = np.array(data.draw(st.lists(integers(2**16 - 1).map(abs), min_size=len(a), max_size=len(a))))
    dr = data.draw(st.sampled_from([2, 8, 32, 128]))
    (q,) = mantissa_kernel("CONSTANT", (np.int64, np.int32, np.int32))(a, dr, random)
    equal(constant("float64")(value(a, a_exponent), dr, random)[0], value(q, -14))


def test_thresholds_are_ceilings() -> None:
    """The integer tables hold ceil(2^(j+1/2)), the float ones the least float not below 2^(j-1/2)."""
    for j, t in enumerate(tables.WIDE_THRESHOLDS):
        assert t**2 > 2 ** (2 * j + 1) >= (t - 1) ** 2
    assert tables.WIDE_THRESHOLDS[:30] == tables.THRESHOLDS
    for dtype in (np.float32, np.float64):
        limits, powers = tables.float_thresholds(dtype)
        assert len(powers) == len(limits) + 1
        for limit, power in zip(limits, powers[1:], strict=True):
            for x, reaches in ((dtype(limit), True), (np.nextafter(dtype(limit), dtype(0)), False)):
                numerator, denominator = float(x).as_integer_ratio()
                above, below = float(power).as_integer_ratio()
                assert (2 * (numerator * below) ** 2 >= (above * denominator) ** 2) == reaches


# -- delayed exponents -----------------------------------------------------------------------------------------------------


@functools.cache
def delayed_step(bits: int, channels: int | None) -> Kernel:
    """One step of a delayed quantizer: x and the held exponent -> value and the next exponent; one, or one a channel."""
    g, form, shape = Model.empty("quant_training", "quantizer"), Format(bits), [] if channels is None else [1, channels, 1, 1]
    x = g.input("x", np.float32, ["n"] if channels is None else ["n", channels, 2, 2])
    held = g.input("held", np.int32, shape)
    step = floating.power(g, held, x)
    y = floating.grid(g, x, step, "C", form)
    return Kernel(to_proto(g, {"y": y, "next": floating.follow(g, y, step, held, form, 90, 2, -71, 57)}))


@functools.cache
def integer_follow(bits: int, channels: int | None) -> Kernel:
    called = integer.FOLLOW if channels is None else integer.FOLLOW_CHANNELS
    dtypes = (np.int8 if bits == 8 else np.int32, np.int32)
    return Kernel(call_model(called, dtypes, [], greatest=2 ** (bits - 1) - 1, small=90, up=2, lowest=-71, highest=57))


@pytest.mark.parametrize("bits", [8, 16])
@EXACT
@given(m=tensors(2**20), exponent=st.integers(-60, 30), off=st.integers(-30, 30))
@example(np.array([127]), 0, 0)
@example(np.array([-127]), 0, 0)
@example(np.array([126, -91]), 0, 0)
@example(np.array([90, -90]), 0, 0)
@example(np.array([0]), -70, -1)
@example(np.array([2**20]), 27, 30)
def test_a_delayed_exponent_follows(bits: int, m: Array, exponent: int, off: int) -> None:
    """Float, integers and the reference hold the same exponent for the next step, from any distance."""
    held = min(max(exponent + off, -71), 57)
    greatest = reference.signed(bits)
    q, _ = reference.direct(m, exponent, held, -greatest, greatest)
    following = reference.follow(q, held, greatest, 90, 2, -71, 57)
    y, after = delayed_step(bits, None)(value(m, exponent).astype(np.float32), held)
    equal(y, value(q, held))
    assert int(after) == int(integer_follow(bits, None)(q, held)[0]) == following


@FEW
@given(m=st.lists(st.integers(-300, 300), min_size=24, max_size=24), held=st.lists(st.integers(-3, 3), min_size=3, max_size=3))
def test_each_channel_follows_its_own_exponent(m: list[int], held: list[int]) -> None:
    x, exponents = np.reshape(m, (2, 3, 2, 2)), np.reshape(held, (1, 3, 1, 1)).astype(np.int32)
    y, after = delayed_step(8, 3)(x.astype(np.float32), exponents)
    whole = np.ldexp(y.astype(np.float64), -exponents).astype(np.int8)
    np.testing.assert_array_equal(integer_follow(8, 3)(whole, exponents)[0], after)
    for c, own in enumerate(held):
        q, _ = reference.direct(x[:, c], 0, own, -127, 127)
        equal(y[:, c], value(q, own))
        assert after[0, c, 0, 0] == reference.follow(q, own, 127, 90, 2, -71, 57)

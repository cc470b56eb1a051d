"""The integer functions equal the numpy references bit for bit, in onnxruntime and onnx's evaluator, up to the stated bounds."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernels import EXACT, FEW, Array, Kernel, arrays, call_model, integers, same, tensors
from wageubn_onnx.quantizers import floating, integer, reference, tables

NARROW, WIDE = 2**integer.SHIFT_LIMIT - 1, 2**integer.WIDE_LIMIT - 1  # greatest mantissas that lowering lets in
FORMATS = {  # dtype, least, greatest
    "int8": (np.int8, -127, 127),
    "int8_full": (np.int8, -128, 127),
    "uint8": (np.uint8, 0, 127),
    "sigma": (np.int16, 1, 32767),
    "int16": (np.int16, -32767, 32767),
    "int32": (np.int32, -(2**27) + 1, 2**27 - 1),
    "table": (np.int16, -4352, 0),
}
LIBRARY = list(integer.LIBRARY.values())
I32, I64 = np.int32, np.int64


@functools.cache
def plain(function: str, dtypes: tuple[Any, ...], rounding: str = "half_even", **attrs: Any) -> Kernel:
    called = getattr(integer, function)
    called = called[rounding] if isinstance(called, dict) else called
    return Kernel(call_model(called, dtypes, [f for f in LIBRARY if f.name != called.name], **attrs))


@functools.cache
def bounded(function: str, dtypes: tuple[Any, ...], form: str, rounding: str = "half_even", **attrs: int) -> Kernel:
    """The function with the output format of that name."""
    dtype, least, greatest = FORMATS[form]
    to = {np.int8: 3, np.uint8: 2, np.int16: 5, np.int32: 6}[dtype]
    return plain(function, dtypes, rounding, to=to, least=least, greatest=greatest, **attrs)


def shifts_within(m: Array, limit: int, lowest: int) -> int:
    """The furthest left that all of ``m`` can shift and stay at or below ``limit``, as a shift of at least ``lowest``."""
    greatest = int(abs(m).max())
    return max(-((limit // greatest).bit_length() - 1), lowest) if greatest else lowest


# -- RoundShift -----------------------------------------------------------------------------------------------------------


def test_round_shift_exhaustively() -> None:
    m = np.arange(-300, 301)
    narrow, wide = plain("ROUND_SHIFT", (I32, I32)), plain("ROUND_SHIFT_WIDE", (I64, I32, I64))
    for shift in range(-3, 11):
        expected = reference.rescale(m, shift)
        same(narrow(m, shift)[0], expected, f"shift {shift}")
        same(wide(m, shift, 2**40)[0], expected, f"shift {shift}")
        same(wide(m, shift, 100)[0], reference.clip(expected, -100, 100), f"shift {shift}")
        same(narrow.evaluated(m, shift)[0], expected, f"shift {shift}")
        same(wide.evaluated(m, shift, 100)[0], reference.clip(expected, -100, 100), f"shift {shift}")


@EXACT
@given(st.data(), tensors(NARROW))
def test_round_shift(data: st.DataObject, m: Array) -> None:
    shift = data.draw(st.integers(shifts_within(m, NARROW, -27), 40))
    same(plain("ROUND_SHIFT", (I32, I32))(m, shift)[0], reference.rescale(m, shift))


@pytest.mark.parametrize("shift", [28, 29, 30, 31, 32, 33, 63, 64, 4096, 2**31 - 1])
def test_far_right_shifts_give_zero(shift: int) -> None:
    m = np.array([NARROW, -NARROW, 2**27, -(2**27), 2**27 + 1, 1, 0])
    same(plain("ROUND_SHIFT", (I32, I32))(m, shift)[0], reference.rescale(m, min(shift, 100)))
    far = np.array([WIDE, -WIDE, 2**51, -(2**51), 2**51 + 1, 1, 0])
    same(plain("ROUND_SHIFT_WIDE", (I64, I32, I64))(far, shift, WIDE)[0], reference.rescale(far, min(shift, 100)))


@pytest.mark.parametrize("shift", [-28, -30, -31, -32, -64, -4096, -(2**31) + 1])
def test_zeros_shift_left_by_any_amount(shift: int) -> None:
    zeros = np.zeros(3, np.int64)
    same(plain("ROUND_SHIFT", (I32, I32))(zeros, shift)[0], zeros)
    same(plain("ROUND_SHIFT_WIDE", (I64, I32, I64))(zeros, shift, 127)[0], zeros)


@EXACT
@given(tensors(WIDE), st.integers(-60, 60), integers(2**53 - 1, positive=True))
@example(np.array([WIDE, -WIDE]), 52, 1)
@example(np.array([WIDE, -WIDE, 1, 0]), -1, 2**53 - 1)
@example(np.array([1, -1, 0]), -52, 2**53 - 1)
@example(np.array([1, -1, 0]), -53, 2**53 - 1)
@example(np.array([3, -3]), -51, 2**53 - 1)
def test_wide_round_shift_saturates(m: Array, shift: int, limit: int) -> None:
    expected = reference.clip(reference.rescale(m, shift), -limit, limit)
    same(plain("ROUND_SHIFT_WIDE", (I64, I32, I64))(m, shift, limit)[0], expected)


# -- the other roundings ---------------------------------------------------------------------------------------------------


def bits16(data: st.DataObject, count: int) -> Array:
    return np.array(data.draw(st.lists(integers(2**16 - 1).map(abs), min_size=count, max_size=count)))


def test_half_up_exhaustively() -> None:
    m, d = (v.ravel() for v in np.meshgrid(np.arange(-300, 301), np.arange(1, 41)))
    for name, dtype in (("DIRECT_RATIO", I32), ("DIRECT_RATIO_WIDE", I64)):
        q = bounded(name, (dtype, dtype), "int8", "half_up")(m, d)[0]
        same(q, reference.ratio(m, d, 0, 0, -127, 127, "half_up")[0])
    n = np.arange(4001)
    root = bounded("DIRECT_ROOT", (I64, I64, I64, I64), "int16", "half_up")(n, 1, 1, 0)[0]
    same(root, reference.root(n, 1, -2, 0, -32767, 32767, "half_up")[0])


@pytest.mark.parametrize("rounding", ["half_up", "stochastic"])
@EXACT
@given(data=st.data(), m=tensors(NARROW))
def test_round_shift_by(rounding: str, data: st.DataObject, m: Array) -> None:
    shift = data.draw(st.integers(shifts_within(m, NARROW, -27), 60))
    random = bits16(data, len(m)) if rounding == "stochastic" else None
    kernel = plain("ROUND_SHIFT", (I32, I32, I32)[: 3 if rounding == "stochastic" else 2], rounding)
    same(kernel(m, shift, *([] if random is None else [random]))[0], reference.rescale(m, shift, rounding, random))


@pytest.mark.parametrize("rounding", ["half_up", "stochastic"])
@EXACT
@given(data=st.data(), m=tensors(WIDE), shift=st.integers(-60, 100), limit=integers(2**35, positive=True))
def test_wide_round_shift_by(rounding: str, data: st.DataObject, m: Array, shift: int, limit: int) -> None:
    random = bits16(data, len(m)) if rounding == "stochastic" else None
    kernel = plain("ROUND_SHIFT_WIDE", (I64, I32, I64, I32)[: 4 if rounding == "stochastic" else 3], rounding)
    expected = reference.clip(reference.rescale(m, shift, rounding, random), -limit, limit)
    same(kernel(m, shift, limit, *([] if random is None else [random]))[0], expected)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "stochastic"])
@EXACT
@given(data=st.data(), m=tensors(NARROW), shift=st.integers(-200, 100))
def test_a_grid_found_at_run_time_saturates_before_it_shifts(rounding: str, data: st.DataObject, m: Array, shift: int) -> None:
    random = bits16(data, len(m)) if rounding == "stochastic" else None
    kernel = bounded("GRID", (I32, I32, I32)[: 3 if rounding == "stochastic" else 2], "int8", rounding)
    expected = reference.direct(m, 0, shift, -127, 127, rounding, random)[0]
    same(kernel(m, shift, *([] if random is None else [random]))[0], expected)


@pytest.mark.parametrize("rounding", ["half_up", "stochastic"])
@EXACT
@given(data=st.data(), m=tensors(NARROW))
def test_dynamic_quantizers_by(rounding: str, data: st.DataObject, m: Array) -> None:
    random = bits16(data, len(m)) if rounding == "stochastic" else None
    more = [] if random is None else [random]
    dtypes = (I32, I32, I32)[: 2 + len(more)]
    q, exponent = bounded("SHIFT", dtypes, "int8", rounding, fraction=7)(m, -9, *more)
    expected, expected_exponent = reference.shift(m, -9, 8, rounding, random)
    same(q, expected)
    assert int(exponent) == expected_exponent
    dr = data.draw(st.sampled_from([2, 8, 32, 128]))
    (g,) = plain("CONSTANT", (I64, I32, I32)[: 2 + len(more)], rounding)(m, dr, *more)
    same(g, reference.constant(m, dr, random, 14, rounding)[0])
    if random is None:
        high, low, exponent = plain("FLAG", (I32, I32), rounding)(m, -9)
        expected_high, expected_low, expected_exponent = reference.flag(m, -9, rounding)
        same(high, expected_high)
        same(low, expected_low)
        assert int(exponent) == expected_exponent


def test_limbs_are_the_number() -> None:
    m = np.arange(-(2**15), 2**15)
    high, low = plain("LIMBS", (np.int16,))(m)
    assert (high.dtype, low.dtype) == (np.int8, np.uint8)
    same(256 * high.astype(np.int64) + low, m)
    for part, expected in zip((high, low), reference.limbs(m), strict=True):
        same(part, expected)


# -- direct quantization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@EXACT
@given(st.data(), tensors(NARROW))
def test_direct(form: str, data: st.DataObject, m: Array) -> None:
    shift = data.draw(st.integers(shifts_within(m, NARROW, -27), 40))
    _, least, greatest = FORMATS[form]
    expected, _ = reference.direct(m, 0, shift, least, greatest)
    (q,) = bounded("DIRECT", (I32, I32), form)(m, shift)
    assert q.dtype == FORMATS[form][0]
    same(q, expected)


@pytest.mark.parametrize("form", FORMATS)
@EXACT
@given(m=tensors(WIDE), shift=st.integers(-60, 60))
@example(m=np.array([-WIDE, WIDE, 0, -1, 1]), shift=-60)
@example(m=np.array([-128, -129, 127]), shift=0)
def test_direct_wide(form: str, m: Array, shift: int) -> None:
    _, least, greatest = FORMATS[form]
    expected, _ = reference.direct(m, 0, shift, least, greatest)
    same(bounded("DIRECT_WIDE", (I64, I32), form)(m, shift)[0], expected)


@FEW
@given(st.data(), tensors(NARROW), tensors(WIDE), st.integers(-60, 60))
def test_direct_evaluated(data: st.DataObject, m: Array, far: Array, shift: int) -> None:
    near = data.draw(st.integers(shifts_within(m, NARROW, -27), 40))
    same(bounded("DIRECT", (I32, I32), "int8").evaluated(m, near)[0], reference.direct(m, 0, near, -127, 127)[0])
    same(bounded("DIRECT_WIDE", (I64, I32), "int16").evaluated(far, shift)[0], reference.direct(far, 0, shift, -32767, 32767)[0])


@EXACT
@given(st.data(), st.lists(st.integers(0, 255), min_size=1, max_size=12), st.integers(0, 14))
def test_image(data: st.DataObject, pixels: list[int], shift: int) -> None:
    most = NARROW // 2 // 255
    x = np.array(pixels).reshape(1, 1, 1, -1) * np.ones((1, 3, 1, 1), np.int64)
    factor, offset = (
        np.array(data.draw(st.lists(st.integers(-limit, limit), min_size=3, max_size=3))).reshape(1, 3, 1, 1)
        for limit in (most, NARROW // 2)
    )
    kernel = bounded("DIRECT_IMAGE", (np.uint8, I32, I32, I32), "int8")
    same(kernel(x, factor, offset, shift)[0], reference.image(x, factor, offset, -shift, 0, -127, 127)[0])


# -- ratios and roots -----------------------------------------------------------------------------------------------------


def test_ratios_exhaustively() -> None:
    m, d = (v.ravel() for v in np.meshgrid(np.arange(-300, 301), np.arange(1, 41)))
    for form in ("int8", "int8_full", "uint8", "int16"):
        _, least, greatest = FORMATS[form]
        expected, _ = reference.ratio(m, d, 0, 0, least, greatest)
        for function, dtype in (("DIRECT_RATIO", I32), ("DIRECT_RATIO_WIDE", I64)):
            kernel = bounded(function, (dtype, dtype), form)
            same(kernel(m, d)[0], expected, f"{function} {form}")
            same(kernel.evaluated(m, d)[0], expected, f"{function} {form}, evaluated")


@pytest.mark.parametrize("form", ["int8", "int8_full", "uint8", "int16", "sigma"])
@EXACT
@given(st.data())
def test_ratio(form: str, data: st.DataObject) -> None:
    """m over the whole of int32; (4 * greatest + 5) * divisor < 2^31."""
    _, least, greatest = FORMATS[form]
    m = data.draw(arrays(integers(2**31 - 1)))
    d = data.draw(st.lists(integers((2**31 - 1) // (4 * greatest + 5), positive=True), min_size=len(m), max_size=len(m)))
    same(bounded("DIRECT_RATIO", (I32, I32), form)(m, d)[0], reference.ratio(m, d, 0, 0, least, greatest)[0])


@pytest.mark.parametrize("form", FORMATS)
@EXACT
@given(st.data())
def test_ratio_wide(form: str, data: st.DataObject) -> None:
    """m and d below 2^52; a d that is a small multiple of m makes ties."""
    _, least, greatest = FORMATS[form]
    d = data.draw(arrays(integers(WIDE, positive=True)))
    tied = [
        min(abs(k) * v // 2 + e, WIDE) * (1 if k > 0 else -1)
        for v, k, e in zip(d.tolist(), *_multiples(data, len(d)), strict=True)
    ]
    m = (
        np.array(tied)
        if data.draw(st.booleans())
        else np.array(data.draw(st.lists(integers(WIDE), min_size=len(d), max_size=len(d))))
    )
    same(bounded("DIRECT_RATIO_WIDE", (I64, I64), form)(m, d)[0], reference.ratio(m, d, 0, 0, least, greatest)[0])


def _multiples(data: st.DataObject, count: int) -> list[list[int]]:
    return [data.draw(st.lists(st.integers(*b), min_size=count, max_size=count)) for b in ((-300, 300), (-1, 1))]


def root_expected(total: Any, count: Any, factor: int, offset: Any, least: int, greatest: int) -> Array:
    """round(sqrt(total/count * factor + offset) / 2)"""
    numerator = reference.exact(total) * factor + reference.exact(offset) * reference.exact(count)
    return reference.root(numerator, count, -2, 0, least, greatest)[0]


def test_roots_exhaustively() -> None:
    """Every radicand 0..4000 in quarters, halves of quarters and thirds of them: all ties of 0..31 among them."""
    kernel = bounded("DIRECT_ROOT", (I64, I64, I64, I64), "int16")
    total = np.arange(4001)
    for count, factor, offset in ((1, 1, 0), (2, 1, 0), (3, 1, 0), (1, 1, 5), (3, 2, 1), (7, 256, 1)):
        expected = root_expected(total, count, factor, offset, -32767, 32767)
        same(kernel(total, count, factor, offset)[0], expected, f"count {count}, factor {factor}, offset {offset}")
        same(kernel.evaluated(total, count, factor, offset)[0], expected, f"count {count}, factor {factor}, evaluated")


@EXACT
@given(st.data())
def test_root(data: st.DataObject) -> None:
    """total below 2^52; squares and half-way squares, one above and one below, where they fit."""
    squares = st.builds(lambda r, d: max(r * r + d, 0), st.integers(0, 2**17), st.integers(-1, 1))
    total = data.draw(arrays(st.one_of(squares, integers(WIDE, positive=True), st.just(0))))
    count = data.draw(st.one_of(st.just(1), st.integers(1, 2**24)))
    factor = data.draw(st.sampled_from([1, 4, 256, 2**24, 2**28 - 1]))
    offset = data.draw(st.one_of(st.integers(0, 5), st.integers(0, 2**32)))
    if data.draw(st.booleans()):
        total = np.minimum(total, WIDE // count) * count
    for form in ("int16", "sigma"):
        _, least, greatest = FORMATS[form]
        kernel = bounded("DIRECT_ROOT", (I64, I64, I64, I64), form)
        same(kernel(total, count, factor, offset)[0], root_expected(total, count, factor, offset, least, greatest))


# -- shift, flag and alignment --------------------------------------------------------------------------------------------


def test_range_at_its_thresholds() -> None:
    """ceil(2^(j+1/2)) is the least mantissa of range 2^(j+1); one below it has range 2^j."""
    kernel = plain("RANGE", (I32,))
    for j in range(28):
        threshold = math.isqrt(2 ** (2 * j + 1)) + 1
        assert threshold**2 > 2 ** (2 * j + 1) > (threshold - 1) ** 2
        for m, log in ((threshold, j + 1), (threshold - 1, j), (-threshold, j + 1)):
            assert reference.range_log2([m, 0]) == log
            found, greatest = kernel([m, 0])
            assert (int(found), int(greatest)) == (log, abs(m))


def test_range_of_zeros_is_zero() -> None:
    assert [int(v) for v in plain("RANGE", (I32,))([0, 0])] == [0, 0]
    assert reference.range_log2([0, 0]) == 0


def _thresholds(limit: int) -> list[Array]:
    """Tensors whose maxima lie at, and one below, each threshold, with smaller values beside."""
    return [np.array([t - d, 1, -t // 2, t // 128, 0]) for t in tables.WIDE_THRESHOLDS for d in (0, 1) if t <= limit]


def check_shift(m: Array, bits: int, form: str, evaluate: bool = False) -> None:
    kernel = bounded("SHIFT", (I32, I32), form, fraction=bits - 1)
    for unit in (0, -30, -200, 70):  # the last two leave the guard of R
        q, exponent = kernel.evaluated(m, unit) if evaluate else kernel(m, unit)
        expected, expected_exponent = reference.shift(m, unit, bits)
        same(q, expected, str(m))
        assert int(exponent) == expected_exponent


@EXACT
@given(tensors(NARROW))
@example(np.array([NARROW]))
@example(np.array([1]))
def test_shift(m: Array) -> None:
    check_shift(m, 8, "int8")
    check_shift(m, 16, "int16")


def test_shift_at_the_thresholds_of_its_range() -> None:
    for m in _thresholds(NARROW):
        check_shift(m, 8, "int8")


@FEW
@given(tensors(NARROW))
def test_shift_evaluated(m: Array) -> None:
    check_shift(m, 8, "int8", evaluate=True)


def check_flag(m: Array, evaluate: bool = False) -> None:
    kernel = plain("FLAG", (I32, I32))
    high, low, moved = kernel.evaluated(m, -9) if evaluate else kernel(m, -9)
    expected_high, expected_low, exponent = reference.flag(m, -9)
    same(high, expected_high, str(m))
    same(low, expected_low, str(m))
    assert int(moved) == exponent
    assert high.dtype == low.dtype == np.int8


@EXACT
@given(tensors(NARROW))
@example(np.array([NARROW]))
@example(np.array([2**20, 2**13, 2**13 - 1, 2**13 - 64, 2**13 - 33, 2**13 - 32, -(2**13) + 31, 1]))
def test_flag(m: Array) -> None:
    check_flag(m)


def test_flag_at_its_thresholds() -> None:
    """R's thresholds, and for a fixed R every mantissa around the border of high and low parts."""
    for m in _thresholds(NARROW):
        check_flag(m)
    border = np.arange(2**13 - 300, 2**13 + 300)
    check_flag(np.concatenate([[2**20], border, -border]))
    check_flag(np.arange(-(2**14), 2**14))


@FEW
@given(tensors(NARROW))
def test_flag_evaluated(m: Array) -> None:
    check_flag(m, evaluate=True)


def check_align(a: Array, a_exponent: int, b: Array, b_exponent: int, evaluate: bool = False) -> None:
    kernel = plain("ALIGN", (I32, I32, I32, I32), least=-32767, greatest=32767, fraction=14)
    qa, qb, moved = (kernel.evaluated if evaluate else kernel)(a, a_exponent, b, b_exponent)
    expected_a, expected_b, exponent = reference.align(a, a_exponent, b, b_exponent, 16)
    same(qa, expected_a)
    same(qb, expected_b)
    assert int(moved) == exponent


EXPONENTS = st.one_of(st.integers(-40, 40), st.integers(-1000, 1000))


@EXACT
@given(tensors(NARROW), EXPONENTS, tensors(NARROW), EXPONENTS)
@example(np.array([0]), 900, np.array([5]), -900)
@example(np.array([5]), -900, np.array([0, 0]), 900)
@example(np.array([0]), 7, np.array([0]), 900)
@example(np.array([NARROW]), -1000, np.array([1]), 1000)
def test_align(a: Array, a_exponent: int, b: Array, b_exponent: int) -> None:
    check_align(a, a_exponent, b, b_exponent)


@FEW
@given(tensors(NARROW), EXPONENTS, tensors(NARROW), EXPONENTS)
def test_align_evaluated(a: Array, a_exponent: int, b: Array, b_exponent: int) -> None:
    check_align(a, a_exponent, b, b_exponent, evaluate=True)


@pytest.mark.parametrize("drop", range(1, 7))
def test_pair_drops_the_low_bits(drop: int) -> None:
    """Odd and even high parts, all low parts of a range around its ties."""
    high, low = (v.ravel() for v in np.meshgrid(np.arange(-9, 10), np.arange(-300, 301)))
    kernel = plain("PAIR", (I32, I32), drop=drop, base=7)
    same(kernel(high, low)[0], reference.rescale(128 * high + low, drop))
    same(kernel.evaluated(high, low)[0], reference.rescale(128 * high + low, drop))


@EXACT
@given(st.data(), st.integers(1, 6))
def test_pair_at_its_bounds(data: st.DataObject, drop: int) -> None:
    low = data.draw(tensors(NARROW))
    most = min(NARROW, (2**31 - 1 - NARROW - 1) >> (7 - drop))
    high = np.array(data.draw(st.lists(integers(most), min_size=len(low), max_size=len(low))))
    same(plain("PAIR", (I32, I32), drop=drop, base=7)(high, low)[0], reference.rescale(128 * high + low, drop))


# -- constant quantization ------------------------------------------------------------------------------------------------


def check_constant(m: Array, dr: int, random: Any, evaluate: bool = False) -> None:
    kernel = plain("CONSTANT", (I64, I32, I32), "stochastic")
    (q,) = (kernel.evaluated if evaluate else kernel)(m, dr, random)
    same(q, reference.constant(m, dr, random, 14)[0], f"dr {dr}, m {m}, random {random}")
    assert q.dtype == np.int8


RANGES = st.sampled_from([2, 4, 8, 16, 32, 64, 128])


def bits_for(data: st.DataObject, count: int) -> Array:
    ends = st.sampled_from([0, 1, 2**15 - 1, 2**15, 2**16 - 2, 2**16 - 1])
    return np.array(data.draw(st.lists(st.one_of(ends, st.integers(0, 2**16 - 1)), min_size=count, max_size=count)))


@EXACT
@given(st.data(), tensors(WIDE), RANGES)
def test_constant(data: st.DataObject, m: Array, dr: int) -> None:
    check_constant(m, dr, bits_for(data, len(m)))


@FEW
@given(st.data(), tensors(WIDE), RANGES)
def test_constant_evaluated(data: st.DataObject, m: Array, dr: int) -> None:
    check_constant(m, dr, bits_for(data, len(m)), evaluate=True)


def test_constant_at_the_thresholds_of_its_range() -> None:
    for m in _thresholds(WIDE):
        for random in (0, 2**15, 2**16 - 1):
            check_constant(m, 128, np.full(len(m), random))


def test_constant_rounds_up_where_the_fraction_exceeds_the_random_bits() -> None:
    """R = 2^40, dr = 2: m = k*2^23 + d has the fraction k/2^16 and a little; k alone does not exceed k."""
    k = np.array([1, 5, 2**15, 2**16 - 1])
    for d in (-1, 0, 1):
        m = np.concatenate([k * 2**23 + d, [2**40]])
        for offset in (-1, 0):
            check_constant(m, 2, np.concatenate([k + offset, [0]]))


def test_the_maximum_is_found_beyond_2_to_31() -> None:
    """Both halves of the 52-bit maximum count: values that share one half, in every order."""
    for values in (
        [2**45 + 3, 2**45 + 2**20],
        [2**26, 2**26 - 1],
        [2**51, 2**31, -(2**52) + 1],
        [WIDE, -WIDE],
        [2**31, -(2**31)],
    ):
        for m in (values, values[::-1], [-v for v in values]):
            check_constant(np.array(m), 128, np.full(len(m), 2**15))


# -- tables and random bits -----------------------------------------------------------------------------------------------


def test_tables() -> None:
    assert reference.exponential_table() == tables.EXP_TABLE
    assert reference.logarithm_table() == tables.LOG_TABLE


def test_exponential() -> None:
    t = -np.concatenate([np.arange(0, 20 * 256), [2**20, 2**31 - 1]])
    kernel = plain("EXPONENTIAL", (I32,))
    same(kernel(t)[0], reference.exponential(np.maximum(t, -(2**14)))[0])
    same(kernel.evaluated(t)[0], reference.exponential(np.maximum(t, -(2**14)))[0])


def test_exponential_is_near_the_real_one() -> None:
    t = -np.arange(0, 16 * 256)
    y, exponent = reference.exponential(t)
    error = np.ldexp(y.astype(np.float64), exponent) - 2.0 ** (t / 256)
    assert error.max() <= 2.0**-16
    assert error.min() > -(2.0**-15) * 1.5


def test_logarithm() -> None:
    steps = [2**15 + np.arange(3000), *([2**k - 1, 2**k, 2**k + 1] for k in range(16, 30)), [2**30 - 1]]
    x = np.concatenate(steps)
    kernel = plain("LOGARITHM", (I32,))
    same(kernel(x)[0], reference.logarithm(x)[0])
    same(kernel.evaluated(x)[0], reference.logarithm(x)[0])
    y, exponent = reference.logarithm(x)
    error = np.ldexp(y.astype(np.float64), exponent) - np.log2(x / 2.0**15)
    assert abs(error).max() <= math.log2(1 + 0.5 / 1024) + 2.0**-13


@EXACT
@given(arrays(st.integers(2**15, 2**30 - 1)))
def test_logarithm_anywhere(x: Array) -> None:
    same(plain("LOGARITHM", (I32,))(x)[0], reference.logarithm(x)[0])


INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]))


@functools.cache
def random_kernel(tensor: int, count: int) -> Kernel:
    return Kernel(call_model(floating.RANDOM, (I32, I32), [floating.MIX], tensor=tensor, count=count))


@pytest.mark.parametrize("tensor", [0, 1, 0xDEADBEEF, 2**32 - 1])
@EXACT
@given(seed=INT32, step=st.one_of(st.integers(0, 2**31 - 1), st.integers(0, 5)))
def test_random_bits(tensor: int, seed: int, step: int) -> None:
    (bits,) = random_kernel(tensor, 40)(seed, step)
    assert bits.dtype == np.int32
    same(bits, reference.random_bits(seed, step, tensor, 40))


def test_random_bits_wrap_around() -> None:
    """A start so near 2^32 that the element index wraps."""
    step = next(s for s in range(10**7) if _start(3, s, 9) > 2**32 - 5000)
    (bits,) = random_kernel(9, 6000)(3, step)
    same(bits, reference.random_bits(3, step, 9, 6000))
    same(random_kernel(9, 6000).evaluated(3, step)[0], bits)


@functools.cache
def _starts(seed: int, tensor: int) -> Array:
    seed32, tensor32 = np.array([seed], np.uint32), np.array([tensor], np.uint32)
    return reference.mix(reference.mix(reference.mix(seed32) + np.arange(10**7, dtype=np.uint32)) + tensor32)


def _start(seed: int, step: int, tensor: int) -> int:
    return int(_starts(seed, tensor)[step])

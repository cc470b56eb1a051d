"""Random bits of stochastic rounding: uniform, different for every seed, step and tensor, and without bias in what they round.

Bounds are 4 or 5 standard deviations of the statistic under independent uniform bits; seeds are fixed, so a test never flickers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

from kernels import Array, Kernel, call_model
from wageubn_onnx.quantizers import floating, integer, reference

COUNT = 2**16
CASES = pytest.mark.parametrize(("seed", "step", "tensor"), [(0, 0, 0), (1, 0, 77), (0, 1, 77), (-5, 1000, 0xC0FFEE), (2, 3, 4)])


@functools.cache
def kernel(tensor: int) -> Kernel:
    return Kernel(call_model(floating.RANDOM, (np.int32, np.int32), [floating.MIX], tensor=tensor, count=COUNT))


@functools.cache
def drawn(seed: int, step: int, tensor: int) -> Array:
    """int64 [COUNT] in 0..2^16-1, by the ONNX function."""
    (bits,) = kernel(tensor)(seed, step)
    wide: Array = bits.astype(np.int64)
    return wide


def chi_square(values: Array, buckets: int) -> float:
    """sum((seen - expected)^2 / expected): for uniform values of mean buckets-1 and variance 2*(buckets-1)."""
    seen, expected = np.bincount(values, minlength=buckets), len(values) / buckets
    assert len(seen) == buckets
    return float(((seen - expected) ** 2 / expected).sum())


def assert_uniform(values: Array, buckets: int) -> None:
    freedom = buckets - 1
    assert abs(chi_square(values, buckets) - freedom) < 5 * math.sqrt(2 * freedom)


@CASES
def test_uniform(seed: int, step: int, tensor: int) -> None:
    """High byte, low byte, each single bit, and pairs of neighbours."""
    bits = drawn(seed, step, tensor)
    assert (bits == reference.random_bits(seed, step, tensor, COUNT)).all()
    assert 0 <= bits.min() <= bits.max() < 2**16
    assert_uniform(bits >> 8, 256)
    assert_uniform(bits & 255, 256)
    assert_uniform(bits[:-1:2] >> 12 << 4 | bits[1::2] >> 12, 256)
    for place in range(16):
        ones = (bits >> place & 1).sum()
        assert abs(ones - COUNT / 2) < 5 * math.sqrt(COUNT) / 2, f"bit {place}"


@CASES
def test_neighbours_are_uncorrelated(seed: int, step: int, tensor: int) -> None:
    """The correlation of n independent pairs has deviation 1/sqrt(n)."""
    bits = drawn(seed, step, tensor).astype(np.float64)
    for distance in (1, 2, 3, 9, 64, 576):
        correlation = np.corrcoef(bits[:-distance], bits[distance:])[0, 1]
        assert abs(correlation) < 5 / math.sqrt(COUNT - distance), f"distance {distance}"


@pytest.mark.parametrize(
    "other", [(1, 0, 0), (-1, 0, 0), (2**31 - 1, 0, 0), (0, 1, 0), (0, 2, 0), (0, 2**30, 0), (0, 0, 1), (0, 0, 2**31)]
)
def test_seed_step_and_tensor_all_matter(other: tuple[int, int, int]) -> None:
    """Of 16 bits an element 8 differ, with deviation 2; as many elements agree as by chance, COUNT / 2^16 with its root."""
    a, b = drawn(0, 0, 0), drawn(*other)
    differing = sum(int(((a ^ b) >> place & 1).sum()) for place in range(16))
    assert abs(differing - 8 * COUNT) < 5 * 2 * math.sqrt(COUNT)
    expected = COUNT / 2**16
    assert (a == b).sum() <= expected + 5 * math.sqrt(expected) + 1


def test_arguments_do_not_stand_in_for_each_other() -> None:
    """The hash is applied between seed, step and tensor: their sum alone decides nothing."""
    streams = [drawn(*key) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for i, a in enumerate(streams):
        for b in streams[i + 1 :]:
            assert (a == b).mean() < 0.001


def test_the_hash_loses_no_word() -> None:
    """A bijection of 32 bits, tried on a stretch of 2^20 words and on words of one bit."""
    words = np.concatenate([np.arange(2**20), 2 ** np.arange(20, 32)]).astype(np.uint32)
    assert len(np.unique(reference.mix(words))) == len(words)


# -- stochastic rounding --------------------------------------------------------------------------------------------------


@functools.cache
def constant_kernel() -> Kernel:
    return Kernel(call_model(integer.CONSTANT["stochastic"], (np.int64, np.int32, np.int32), list(integer.LIBRARY.values())))


@pytest.mark.parametrize("dr", [2, 8, 128])
@pytest.mark.parametrize("fraction", [0.001, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_is_unbiased(dr: int, fraction: float, sign: int) -> None:
    """The mean of n roundings of w + f is w + p: p = ceil(f*2^16)/2^16 of all 16-bit words lie below f*2^16.

    A rounding is w plus a Bernoulli variable of variance p*(1-p), so the mean's standard error is sqrt(p*(1-p)/n). The greatest
    element, which gives R = 2^40, is left out; so is p's own error, below 2^-16.
    """
    unit = 2**40 // dr
    whole = 0 if dr == 2 else dr // 4
    m = np.full(COUNT, sign * (whole * unit + round(fraction * unit)), np.int64)
    m[0] = 2**40
    (q,) = constant_kernel()(m, dr, drawn(7, dr, 3))
    exact = sign * m[1] / unit
    p = math.ceil((exact - whole) * 2**16) / 2**16
    error = math.sqrt(p * (1 - p) / (COUNT - 1))
    mean = sign * q[1:].astype(np.int64).mean()
    assert set(np.unique(sign * q[1:].astype(np.int64))) == {whole, whole + 1}
    assert abs(mean - (whole + p)) < 4 * error
    assert abs(p - (exact - whole)) < 2**-16


def test_a_tensor_of_many_values_keeps_its_sum() -> None:
    """Independent errors of variance f*(1-f) each: their sum stays within 4 deviations of 0."""
    generator = np.random.default_rng(5)
    m = generator.integers(-(2**40) + 2**34, 2**40 - 2**34, COUNT)
    m[0] = 2**40
    (q,) = constant_kernel()(m, 128, drawn(11, 0, 5))
    exact = m[1:] / 2**33
    fraction = abs(exact) % 1
    deviation = math.sqrt(float((fraction * (1 - fraction)).sum()))
    assert abs(float((q[1:].astype(np.float64) - exact).sum())) < 4 * deviation


@pytest.mark.parametrize("m", [0, 2**33, -(2**33), 127 * 2**33, -127 * 2**33])
def test_exact_values_are_never_moved(m: int) -> None:
    values: Any = np.full(COUNT, m, np.int64)
    values[0] = 2**40
    (q,) = constant_kernel()(values, 128, drawn(1, 1, 1))
    assert (q[1:].astype(np.int64) == m // 2**33).all()

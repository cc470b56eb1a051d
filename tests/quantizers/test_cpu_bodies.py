"""The functions that `passes/targets/cpu` puts in place of others equal the same references, up to the bounds that it checks."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import EXACT, Array, Kernel, call_model, same, tensors
from wageubn_onnx.passes.targets.cpu.maps.batchnorm_statistics import NORMALIZE, UNSIGNED
from wageubn_onnx.passes.targets.cpu.products.narrow_weight_gradients import LARGEST, LEAST, LIMIT, NARROW
from wageubn_onnx.passes.targets.cpu.products.split_weights_high_low import HIGH, LOW, ROUND
from wageubn_onnx.passes.targets.cpu.scalars.hash_in_uint32 import RANDOM, RANDOM_LONG, STEP
from wageubn_onnx.quantizers import floating, reference

I32 = np.int32
FACTOR = 3355  # of weight decay, 12 bits
INT8, UINT8 = 3, 2


@functools.cache
def narrow(factor: int) -> Kernel:
    residue = 64 if factor % 4 == 3 else 192
    return Kernel(call_model(NARROW, (np.uint8, np.uint16, I32, I32, I32, I32), factor=factor, residue=residue))


def in_halves(w: Array) -> tuple[Array, Array]:
    return np.asarray((w >> 16) + 128), np.asarray(w & 0xFFFF)


def check_narrow(w: Array, dw: Array, shift: int, dr: int, random: Array, factor: int = FACTOR) -> None:
    x = dw + reference.rescale(w.astype(np.int64) * factor, shift)
    assert abs(x).max() <= LIMIT
    expected, _ = reference.constant(x, dr, random, 14)
    same(narrow(factor)(*in_halves(w), dw, shift, dr, random)[0], expected, f"shift {shift}, dr {dr}")


@EXACT
@given(
    dw=tensors(LIMIT - 2**27),
    shift=st.integers(LEAST, 60),
    dr=st.sampled_from([2, 4, 8, 16, 32, 64, 128]),
    seed=st.integers(0, 99),
)
def test_narrow_gradients(dw: Array, shift: int, dr: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    w = random.integers(-(2**23) + 1, 2**23, dw.shape)
    check_narrow(w, dw, shift, dr, random.integers(0, 2**16, dw.shape))


@pytest.mark.parametrize("dr", [2, 128])
@pytest.mark.parametrize("greatest", [0, 1, 2, 181, 182, 2**16, 2**24 + 1, 2**30, LIMIT])
def test_narrow_gradients_at_their_ends(greatest: int, dr: int) -> None:
    """The least and the greatest random bits, and sizes on both sides of every power of two."""
    sizes = sorted({min(abs(2**k + d), greatest) for k in range(31) for d in (-1, 0, 1)} | {greatest})
    x = np.array([*sizes, *(-s for s in sizes)])
    for random in (0, 1, 2**15, 2**16 - 1):
        check_narrow(np.zeros_like(x), x, 20, dr, np.full(x.shape, random))


@pytest.mark.parametrize("factor", [1, FACTOR, FACTOR + 2, LARGEST - 1, LARGEST - 3])
@pytest.mark.parametrize("shift", [*range(LEAST, 27), 36, 45, 46, 57])
def test_weight_decay_at_its_ends_and_ties(factor: int, shift: int) -> None:
    """Decay alone, of weights whose products lie at and beside ties and whole numbers, and at the ends of their halves."""
    near = [n * 2**k for k in range(24) for n in (1, 2, 3, 5, 7)]
    sizes = np.array([0, 2**23 - 1, 2**23 - 2**16, *(min(n + d, 2**23 - 1) for n in near for d in (-1, 0, 1))])
    w = np.concatenate([sizes, -sizes])
    greatest = abs(reference.rescale(w.astype(np.int64) * factor, shift)).max()
    unit = max(1, 2 ** (int(greatest).bit_length() - 7))  # what one step of the result is worth, or less
    for random in (0, 2**16 - 1):
        check_narrow(w, np.zeros_like(w), shift, 128, np.full(w.shape, random), factor)
        check_narrow(w, np.full_like(w, -unit), shift, 128, np.full(w.shape, random), factor)


@pytest.mark.parametrize(("least", "greatest"), [(-127, 127), (-128, 127), (-3, 5)])
def test_rounded_halves(least: int, greatest: int) -> None:
    """Every upper half, with lower ones at and beside the middle and the ends."""
    low = np.array([0, 1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1])
    w = (np.arange(-128, 128)[:, None] * 2**16 + low).ravel()
    (high,), (rest,) = (Kernel(call_model(half, (I32,)))(w) for half in (HIGH, LOW))
    for found, expected in zip((high, rest), in_halves(w), strict=True):
        same(found, expected, "halves")
    kernel = Kernel(call_model(ROUND, (np.uint8, np.uint16), bottom=least + 128, top=greatest + 128))
    same(kernel(high, rest)[0], np.clip(reference.rescale(w, 16), least, greatest), "rounded")


def random_bits(body: onnx.FunctionProto, seed: int, step: int, tensor: int, count: int) -> Array:
    (hashed,) = Kernel(call_model(STEP, (I32, I32), [floating.MIX]))(seed, step)
    (bits,) = Kernel(call_model(body, (np.int64,), [floating.MIX], tensor=tensor, count=count))(hashed)
    return bits


def test_random_bits_run_by_run() -> None:
    """Counters that start anywhere in a run, and that pass the end of 32 bits."""
    count = 2 * 2**16 + 300
    for seed in range(12):
        bits = random_bits(RANDOM_LONG, seed, 3, seed, count)
        same(bits, reference.random_bits(seed, 3, seed, count), f"seed {seed}")
    wraps = next(seed for seed in range(10**6) if starts_at(seed) > 2**32 - 2**16)
    bits = random_bits(RANDOM_LONG, wraps, 3, 5, count)
    same(bits, reference.random_bits(wraps, 3, 5, count), f"seed {wraps}, which wraps")


def starts_at(seed: int) -> int:
    inner = reference.mix(np.array([seed], np.uint32)) + np.uint32(3)
    return int(reference.mix(reference.mix(inner) + np.uint32(5))[0])


def test_random_bits_without_masks() -> None:
    for seed, step, tensor, count in [(0, 0, 0, 5), (-1, 7, 2**32 - 1, 1000), (-(2**31), 2**31 - 1, 0x9E3779B9, 70_000)]:
        bits = random_bits(RANDOM, seed, step, tensor, count)
        same(bits, reference.random_bits(seed, step, tensor, count), f"{seed} {step}")


@pytest.mark.parametrize(("slope", "scale"), [(4096, 16), (16, 16), (1, 1)])
@pytest.mark.parametrize("sigma", [1, 2, 3, 255, 4096, 32767])
@pytest.mark.parametrize("mean", [-32767, -129, 0, 1, 32767])
def test_normalize(slope: int, scale: int, sigma: int, mean: int) -> None:
    x = np.arange(-128, 128).reshape(1, 1, 16, 16)
    attributes = {"slope": slope, "scale": scale, "lift": 128, "to": INT8, "least": -127, "greatest": 127}
    kernel = Kernel(call_model(NORMALIZE, (np.int8, I32, I32), **attributes))
    per_channel = [np.full((1, 1, 1, 1), v) for v in (mean, sigma)]
    expected = np.clip(reference.half_up(slope * x - scale * mean, sigma), -127, 127)
    same(kernel(x, *per_channel)[0], expected, "normalized")


@pytest.mark.parametrize("shift", [1, 5, 28])
def test_unsigned(shift: int) -> None:
    half, divisor = 2 ** (shift - 1), 2**shift
    steps = np.array([-(2**7), -3, -1, 0, 1, 2, 126, 127, 128])
    m = np.unique(
        np.clip((steps[:, None] * divisor + np.array([-half - 1, -half, -1, 0, 1, half - 1, half])).ravel(), -(2**29), 2**29)
    )
    kernel = Kernel(call_model(UNSIGNED, (I32,), half=half, divisor=divisor, to=UINT8, greatest=127))
    same(kernel(m)[0], np.clip(reference.half_up(m, divisor), 0, 127), f"shift {shift}")

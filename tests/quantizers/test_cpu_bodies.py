"""The functions that `passes/targets/cpu` puts in place of others equal the same references, up to the bounds that it checks."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import EXACT, Array, Kernel, call_model, same, tensors

from wageubn_onnx.passes.targets.cpu.hashing import RANDOM
from wageubn_onnx.passes.targets.cpu.moments import NORMALIZE, UNSIGNED
from wageubn_onnx.passes.targets.cpu.narrow import LIMIT, NARROW
from wageubn_onnx.quantizers import floating, reference

I32 = np.int32
FACTOR = 3355  # of weight decay, 12 bits
INT8, UINT8 = 3, 2


@functools.cache
def narrow() -> Kernel:
    return Kernel(call_model(NARROW, (I32, I32, I32, I32, I32), factor=FACTOR))


def check_narrow(w: Array, dw: Array, shift: int, dr: int, random: Array) -> None:
    x = dw + reference.rescale(w.astype(np.int64) * FACTOR, shift)
    assert abs(x).max() <= LIMIT
    expected, _ = reference.constant(x, dr, random, 14)
    same(narrow()(w, dw, shift, dr, random)[0], expected, f"shift {shift}, dr {dr}")


@EXACT
@given(
    dw=tensors(LIMIT - 2**27), shift=st.integers(8, 60), dr=st.sampled_from([2, 4, 8, 16, 32, 64, 128]), seed=st.integers(0, 99)
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


def test_random_bits_without_masks() -> None:
    mix = floating.MIX
    for seed, step, tensor, count in [(0, 0, 0, 5), (-1, 7, 2**32 - 1, 1000), (-(2**31), 2**31 - 1, 0x9E3779B9, 70_000)]:
        (bits,) = Kernel(call_model(RANDOM, (I32, I32), [mix], tensor=tensor, count=count))(seed, step)
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

"""What experiments do to a data set: shifts of its images, and the fixed part of it that a run trains on.

Everything is integer arithmetic on uint8 with a fixed seed: equal data gives equal bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.data import Dataset

Images = NDArray[np.uint8]  # [n, C, H, W]
NOISE = 12  # of `noisy`: uniform integers in -12..12


def same(images: Images, seed: int) -> Images:
    """Return the images as they are."""
    return images


def inverted(images: Images, seed: int) -> Images:
    """Return 255 - pixel."""
    return 255 - images


def noisy(images: Images, seed: int) -> Images:
    """Return half the contrast about 128, with noise: clip(64 + floor(pixel/2) + uniform(-12..12), 0, 255)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    noise = generator.integers(-NOISE, NOISE, images.shape, np.int16, endpoint=True)
    shifted: Images = np.clip(64 + images // 2 + noise, 0, 255).astype(np.uint8)
    return shifted


def halved(images: Images, seed: int) -> Images:
    """Return each 2x2 block's mean, rounded half up: [n, C, H, W] to [n, C, H/2, W/2]."""
    n, channels, height, width = images.shape
    if height % 2 or width % 2:
        raise WageubnError(f"images of {height}x{width} cannot be halved; both sizes must be even")
    blocks = images.reshape(n, channels, height // 2, 2, width // 2, 2).astype(np.uint16)
    means: Images = ((blocks.sum(axis=(3, 5)) + 2) // 4).astype(np.uint8)
    return means


TRANSFORMS: dict[str, Callable[[Images, int], Images]] = {f.__name__: f for f in (same, inverted, noisy, halved)}


def transformed(data: Dataset, name: str) -> Dataset:
    """Return ``data`` with `TRANSFORMS` [name] on all images; training and test images have noise of their own."""
    transform = TRANSFORMS[name]
    return replace(data, x_train=transform(data.x_train, 0), x_test=transform(data.x_test, 1))


def training_part(data: Dataset, images: int | None) -> Dataset:
    """Return ``data`` with ``images`` of its training images (None: all), the same drawn every time."""
    if images is None:
        return data
    chosen = _drawn(data, images)
    return replace(data, x_train=data.x_train[chosen], y_train=data.y_train[chosen])


def tuning_part(data: Dataset, images: int, held_out: int) -> Dataset:
    """Return ``images`` training images to train on and ``held_out`` others *of the training images* to test on.

    Rates are chosen by these, so that no test image has a say in them.
    """
    chosen = _drawn(data, images + held_out)
    learned, tested = chosen[:images], chosen[images:]
    arrays = data.x_train[learned], data.y_train[learned], data.x_train[tested], data.y_train[tested]
    return Dataset(*arrays, classes=data.classes)


def _drawn(data: Dataset, count: int) -> NDArray[Any]:
    available = len(data.x_train)
    if available < count:
        raise WageubnError(f"{available} training images: the experiment takes {count}; give its own data set")
    order: NDArray[Any] = np.random.Generator(np.random.PCG64(0)).permutation(available)
    return order[:count]

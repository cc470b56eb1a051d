"""Data sets: uint8 NCHW images with integer labels, from an .npz or from class folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.artifacts.files import atomic_write
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.terminal import printable
from wageubn_onnx.training.images import read_folders
from wageubn_onnx.training.npz import read_npz

Array = NDArray[Any]
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MAX_LABEL = 2**31 - 1
MANY = 20  # classes: more are not all shown


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [n, C, H, W] and labels int32 [n] to train on, and the same to test on.

    classes: what the labels 0, 1, ... stand for; None where the source, an .npz, does not say.
    """

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: tuple[str, ...] | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """The four arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}


def save_data(data: Dataset, path: str | os.PathLike[str]) -> None:
    """Write ``data`` as the .npz that `load_data` reads, atomically."""
    with atomic_write(path) as file:
        np.savez_compressed(file, **data.arrays)  # type: ignore[arg-type]


def load_data(path: str | os.PathLike[str]) -> Dataset:
    """Read DATA: an .npz with x_train, y_train, x_test, y_test, or a folder with train/CLASS/* and test/CLASS/* images.

    Images are uint8 [n, C, H, W], labels integers [n] >= 0 (returned as int32). Of folders, see `images.read_folders`.
    Raises WageubnError, naming the array or file, for whatever is missing, of another type or shape, or unequal.
    """
    source, classes = Path(path), None
    if source.is_dir():
        arrays, classes = read_folders(source)
    elif source.is_file():
        arrays = read_npz(source, ARRAYS)
    else:
        raise WageubnError(f"{source}: no such data; give an .npz file or a folder with train/ and test/")
    for images, labels in (("x_train", "y_train"), ("x_test", "y_test")):
        _check_pair(source, images, arrays[images], labels, arrays[labels])
    train, test = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if train != test:
        raise WageubnError(f"{source}: x_train holds images {list(train)} but x_test {list(test)}; make them equal")
    arrays |= {name: arrays[name].astype(np.int32) for name in ("y_train", "y_test")}
    return Dataset(**arrays, classes=classes)


def described(classes: Sequence[str]) -> str:
    """What the labels stand for, in a line: all of few classes, the first and the last of many."""
    shown = [f"{index} {printable(name)}" for index, name in enumerate(classes)]
    if len(shown) > MANY:
        shown = [*shown[: MANY - 2], "...", shown[-1]]
    return f"{len(classes)} classes: {', '.join(shown)}"


def batches(n: int, batch: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return the shuffled order of one epoch, int64 [n // batch, batch]: a row is the indices of one step.

    The order depends on (n, seed, epoch) only. The last ``n % batch`` images of the order are dropped in this epoch;
    the caller says so.
    """
    order = np.random.Generator(np.random.PCG64((seed, epoch))).permutation(n)
    steps = n // batch
    return order[: steps * batch].reshape(steps, batch)


def sample(images: Array, count: int) -> Array:
    """Return ``count`` of ``images`` (all where there are fewer), drawn the same way every time.

    Data from folders is sorted by class, so the first images would show one class only.
    """
    return images[batches(len(images), len(images), epoch=0, seed=0)[0, :count]]


def _check_pair(source: Path, images_name: str, images: Array, labels_name: str, labels: Array) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        found = f"{images.dtype} {list(images.shape)}"
        raise WageubnError(f"{source}: {images_name} is {found}; it must be uint8 [n, channels, height, width]")
    if images.size == 0:
        raise WageubnError(f"{source}: {images_name} {list(images.shape)} holds no images; give at least one")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise WageubnError(f"{source}: {labels_name} is {labels.dtype} {list(labels.shape)}; it must be integers [n]")
    if len(images) != len(labels):
        lengths = f"{images_name} has {len(images)} images but {labels_name} {len(labels)} labels"
        raise WageubnError(f"{source}: {lengths}; give one label for each image")
    wrong = np.flatnonzero((labels < 0) | (labels > MAX_LABEL))
    if wrong.size:
        first = int(wrong[0])
        raise WageubnError(f"{source}: {labels_name}[{first}] is {labels[first]}; labels count from 0")

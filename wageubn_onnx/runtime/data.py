"""Data sets: uint8 NCHW images with integer labels, from an .npz or from class folders."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.files import atomic_write

if TYPE_CHECKING:
    from types import ModuleType

Array = NDArray[Any]
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MAX_LABEL = 2**31 - 1


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [n, C, H, W] and labels int32 [n] to train on, and the same to test on."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def save_data(data: Dataset, path: str | os.PathLike[str]) -> None:
    """Write ``data`` as the .npz that `load_data` reads, atomically."""
    with atomic_write(path) as file:
        np.savez_compressed(file, x_train=data.x_train, y_train=data.y_train, x_test=data.x_test, y_test=data.y_test)


def load_data(path: str | os.PathLike[str]) -> Dataset:
    """Read DATA: an .npz with x_train, y_train, x_test, y_test, or a folder with train/CLASS/* and test/CLASS/* images.

    Images are uint8 [n, C, H, W], labels integers [n] >= 0 (returned as int32). In folders the classes are numbered by
    sorted name, grey images give C = 1 and all others C = 3.
    Raises WageubnError, naming the array or file, for whatever is missing, of another type or shape, or unequal.
    """
    source = Path(path)
    if source.is_dir():
        arrays = _read_folders(source)
    elif source.is_file():
        arrays = _read_npz(source)
    else:
        raise WageubnError(f"{source}: no such data; give an .npz file or a folder with train/ and test/")
    for images, labels in (("x_train", "y_train"), ("x_test", "y_test")):
        _check_pair(source, images, arrays[images], labels, arrays[labels])
    train, test = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if train != test:
        raise WageubnError(f"{source}: x_train holds images {list(train)} but x_test {list(test)}; make them equal")
    return Dataset(arrays["x_train"], arrays["y_train"].astype(np.int32), arrays["x_test"], arrays["y_test"].astype(np.int32))


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


def _read_npz(source: Path) -> dict[str, Array]:
    try:
        content = np.load(source, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise WageubnError(f"{source}: a single array; save {', '.join(ARRAYS)} together with numpy.savez")
        with content:
            missing = [name for name in ARRAYS if name not in content]
            if missing:
                raise WageubnError(f"{source}: array {missing[0]} is missing; DATA needs {', '.join(ARRAYS)}")
            return {name: content[name] for name in ARRAYS}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise WageubnError(f"{source}: not a readable .npz file ({error}); write it with numpy.savez") from error


def _read_folders(source: Path) -> dict[str, Array]:
    classes = {part: _class_names(source / part) for part in ("train", "test")}
    uneven = sorted(set(classes["train"]) ^ set(classes["test"]))
    if uneven:
        raise WageubnError(f"{source}: class {uneven[0]} is in only one of train/ and test/; give both the same classes")
    arrays: dict[str, Array] = {}
    for part, names in classes.items():
        files = [(file, label) for label, name in enumerate(names) for file in _visible(source / part / name)]
        if not files:
            raise WageubnError(f"{source / part}: no images in its class folders; put at least one there")
        arrays[f"x_{part}"] = _read_images([file for file, _ in files])
        arrays[f"y_{part}"] = np.array([label for _, label in files], dtype=np.int32)
    return arrays


def _class_names(folder: Path) -> list[str]:
    names = [entry.name for entry in _visible(folder) if entry.is_dir()] if folder.is_dir() else []
    if not names:
        raise WageubnError(f"{folder}: no class folders; a data folder holds train/CLASS/ and test/CLASS/ with images")
    return names


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read_images(files: list[Path]) -> Array:
    """Decode ``files`` to uint8 [n, C, H, W]; all must agree with the first in size and channels."""
    pillow = _import_pillow(files[0])
    first = _read_image(pillow, files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for index, file in enumerate(files):
        image = _read_image(pillow, file)
        if image.shape != first.shape:
            shapes = f"image is {list(image.shape)} but {files[0]} is {list(first.shape)}"
            raise WageubnError(f"{file}: {shapes}; bring all to one size and colour mode")
        images[index] = image
    return images


def _import_pillow(needed_by: Path) -> ModuleType:
    try:
        import PIL.Image
    except ImportError as error:
        raise WageubnError(f"{needed_by}: reading images needs Pillow; pip install 'wageubn-onnx[images]'") from error
    module: ModuleType = PIL.Image
    return module


def _read_image(pillow: ModuleType, file: Path) -> Array:
    try:
        with pillow.open(file) as image:
            grey = image.mode in ("1", "L")
            pixels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except (pillow.UnidentifiedImageError, pillow.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise WageubnError(f"{file}: not a readable image; remove or replace it") from error
    return pixels[np.newaxis] if grey else pixels.transpose(2, 0, 1)  # [C, H, W]

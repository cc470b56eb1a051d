"""Folders of images by class: sizes and colour modes of all are looked at first, then the pixels are decoded to uint8."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.memory import require_memory

Array = NDArray[Any]
Shape = tuple[int, int, int]  # [C, H, W]
PARTS = ("train", "test")

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow has more, some of which start other programs
GREY = ("1", "L", "LA", "La")
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTATION = 0x0112  # the tag of EXIF
TURNED = (5, 6, 7, 8)  # orientations in which width and height change places
UNREADABLE = (  # what Pillow's decoders raise for damaged files
    *(OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, NotImplementedError),
    *(KeyError, IndexError, TypeError, AttributeError, struct.error, zlib.error),
)


@dataclass(frozen=True)
class Images:
    """The files of one part with the index of their class, and the shape that all of them have."""

    files: list[Path]
    labels: list[int]
    shape: Shape


def read_folders(source: Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Images uint8 [n, C, H, W] and labels int32 [n] of ``source``/train and ``source``/test, and the names of the classes.

    Class i is the i-th folder, by number where all are named by numbers, else by name. Grey images give C = 1, all others C = 3.
    What is not a regular file (pipes, devices, links to nowhere) and hidden files are passed over. Raises WageubnError that names
    the file or folder at fault.
    """
    classes = {part: class_names(source / part) for part in PARTS}
    uneven = sorted(set(classes["train"]) ^ set(classes["test"]))
    if uneven:
        raise WageubnError(f"{source}: class {uneven[0]} is in only one of train/ and test/; give both the same classes")
    files = {part: _files(source / part, names) for part, names in classes.items()}
    pillow = _import_pillow(source)
    first = files["train"][0][0]
    shape = _shape(pillow, first)
    for file in (file for part in PARTS for file, _ in files[part]):
        found = _shape(pillow, file)
        if found != shape:
            shapes = f"image is {list(found)} but {first} is {list(shape)}"
            raise WageubnError(f"{file}: {shapes}; bring all to one size and colour mode")
    require_memory(source, sum(len(part) for part in files.values()) * int(np.prod(shape, dtype=np.int64)))
    arrays: dict[str, Array] = {}
    for part in PARTS:
        arrays[f"x_{part}"] = images = np.empty((len(files[part]), *shape), np.uint8)
        for index, (file, _) in enumerate(files[part]):
            images[index] = _pixels(pillow, file, shape)
        arrays[f"y_{part}"] = np.array([label for _, label in files[part]], dtype=np.int32)
    return arrays, tuple(classes["train"])


def class_names(folder: Path) -> list[str]:
    """The names of the class folders in ``folder``, in the order of their indices; raises WageubnError where there is none."""
    names = [entry.name for entry in _visible(folder) if entry.is_dir()] if folder.is_dir() else []
    if not names:
        raise WageubnError(f"{folder}: no class folders; a data folder holds train/CLASS/ and test/CLASS/ with images")
    if all(name.isascii() and name.isdecimal() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    return names


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _files(part: Path, names: list[str]) -> list[tuple[Path, int]]:
    """The images of a part, each with its label."""
    found = []
    for label, name in enumerate(names):
        for entry in _visible(part / name):
            if entry.is_dir():
                raise WageubnError(f"{entry}: a folder within a class; put its images into {part / name} itself")
            if entry.is_file():
                found.append((entry, label))
    if not found:
        raise WageubnError(f"{part}: no images in its class folders; put at least one there")
    return found


def _import_pillow(needed_by: Path) -> ModuleType:
    try:
        import PIL.Image

        PIL.Image.init()  # all formats; by themselves they come too late for a list of some
    except ImportError as error:
        raise WageubnError(f"{needed_by}: reading images needs Pillow; pip install 'wageubn-onnx[images]'") from error
    module: ModuleType = PIL.Image
    return module


@contextmanager
def _opened(pillow: ModuleType, file: Path) -> Iterator[Any]:
    """The image ``file``, of which Pillow has read the header alone; what goes wrong with it is one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(file, formats=[name for name in FORMATS if name in pillow.OPEN]) as image:
                yield image
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise WageubnError(f"{file}: claims more pixels than an image should have ({error}); remove or replace it") from error
    except UNREADABLE as error:
        raise WageubnError(f"{file}: not a readable image ({type(error).__name__}); remove or replace it") from error


def _shape(pillow: ModuleType, file: Path) -> Shape:
    """What `_pixels` will give, from the header; raises WageubnError for pixels whose scale is unknown."""
    with _opened(pillow, file) as image:
        width, height = image.size
        grey = image.mode in GREY or _is_16_bit(image)
        if not grey and image.mode[0] in "IF":
            raise WageubnError(f"{file}: mode {image.mode}: nothing says which number is white; save it with 8 or 16 bits")
        if _orientation(image) in TURNED:
            width, height = height, width
    return (1 if grey else 3, height, width)


def _is_16_bit(image: Any) -> bool:
    """Grey in 16 bits: some releases of Pillow have a mode for it, others give what PNG and PPM hold as 32 bits."""
    return image.mode in GREY_16 or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _orientation(image: Any) -> int:
    """How the camera was held, 1..8. Pillow turns TIFF itself; of a PNG it would decode the pixels to look for it at the end."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _pixels(pillow: ModuleType, file: Path, shape: Shape) -> Array:
    """The image ``file`` as uint8 [C, H, W], turned upright.

    16 bits are scaled by 1/257 and rounded, so that 65535 becomes 255. Raises WageubnError where a pixel is transparent.
    """
    with _opened(pillow, file) as image:
        orientation, grey = _orientation(image), image.mode in GREY
        transparent = image.mode in ALPHA or "transparency" in image.info
        if _is_16_bit(image):
            if transparent:
                raise WageubnError(f"{file}: has a transparent colour; lay the image on a background first")
            array = (np.asarray(image).astype(np.int32) + 128) // 257
        elif transparent:
            array = np.asarray(image.convert("LA" if grey else "RGBA"))
            if array[..., -1].min() < 255:
                raise WageubnError(f"{file}: has transparent pixels; lay the image on a background first")
            array = array[..., :-1]
        else:
            array = np.asarray(image.convert("L" if grey else "RGB"))
    upright = _turned(array.reshape(*array.shape[:2], -1), orientation).transpose(2, 0, 1)
    if upright.shape != shape or upright.min() < 0 or upright.max() > 255:
        found, promised = list(upright.shape), list(shape)
        raise WageubnError(f"{file}: Pillow reads {found}, where the header promised {promised}; save the image anew")
    pixels: Array = upright.astype(np.uint8)
    return pixels


def _turned(pixels: Array, orientation: int) -> Array:
    """``pixels`` [H, W, C] upright, from one of the eight orientations of EXIF (JEITA CP-3451, tag Orientation)."""
    turned = pixels.transpose(1, 0, 2) if orientation in TURNED else pixels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return turned

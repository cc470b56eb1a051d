"""Class folders of images: right pixels in every mode, classes in their order, and no byte decoded that was not looked at."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wageubn_onnx.artifacts.state import check_classes
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training import memory
from wageubn_onnx.training.data import described, load_data
from wageubn_onnx.training.images import class_names

Image = pytest.importorskip("PIL.Image")
Save = Callable[..., None]

RAMP = np.array([[0, 1, 100], [128, 254, 255]], np.uint8)  # [H, W]
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)  # [H, W, RGB]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders without images."""
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
    return tmp_path


def pixels(folder: Path, image: Any, name: str = "a.png", **options: Any) -> list[Any]:
    """What is read of ``image``, saved as ``name``: [C][H][W]."""
    for part in ("train", "test"):
        image.save(folder / part / "only" / name, **options)
    data = load_data(folder)
    assert data.x_train.dtype == np.uint8 and np.array_equal(data.x_train, data.x_test)
    return data.x_train[0].tolist()  # type: ignore[no-any-return]


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        load_data(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def planes(colours: Any) -> list[Any]:
    return np.asarray(colours).transpose(2, 0, 1).tolist()  # type: ignore[no-any-return]


# -- modes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_scaled(name: str, folder: Path) -> None:
    """value / 257, rounded: 65535 is 255. 128 / 257 is just below a half, 129 / 257 just above."""
    wide = np.array([[0, 128, 129], [257, 32768, 65535]], np.uint16)
    assert pixels(folder, Image.fromarray(wide), name) == [[[0, 0, 1], [1, 128, 255]]]


def test_floats_and_wide_integers_are_refused(folder: Path) -> None:
    for dtype, mode in ((np.float32, "F"), (np.int32, "I")):
        image = Image.fromarray(RAMP.astype(dtype) / 1) if dtype is np.float32 else Image.fromarray(RAMP.astype(dtype))
        assert image.mode == mode
        for part in ("train", "test"):
            image.save(folder / part / "only" / "a.tif")
        refused(folder, "train/only/a.tif", f"mode {mode}", "save it with 8 or 16 bits")


def test_one_bit_is_black_and_white(folder: Path) -> None:
    assert pixels(folder, Image.fromarray(RAMP >= 128)) == [[[0, 0, 0], [255, 255, 255]]]


def test_a_palette_is_looked_up(folder: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = planes([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]])
    for name in ("a.png", "b.gif"):
        for file in folder.rglob("*.*"):
            file.unlink()
        assert pixels(folder, image, name) == expected
    refused_transparent(folder, image, transparency=1)
    assert pixels(folder, image, "a.png", transparency=3) == expected  # a colour that no pixel has


def refused_transparent(folder: Path, image: Any, **options: Any) -> None:
    for file in folder.rglob("*.*"):
        file.unlink()
    for part in ("train", "test"):
        image.save(folder / part / "only" / "a.png", **options)
    refused(folder, "a.png", "transparent")


def test_alpha_goes_where_it_hides_nothing(folder: Path) -> None:
    opaque, half = np.full_like(RAMP, 255), np.full_like(RAMP, 255)
    half[1, 2] = 254
    grey, colour = Image.fromarray(RAMP), Image.fromarray(COLOURS)
    for image, expected in ((grey, [RAMP.tolist()]), (colour, planes(COLOURS))):
        image.putalpha(Image.fromarray(opaque))
        assert pixels(folder, image) == expected
        image.putalpha(Image.fromarray(half))
        refused_transparent(folder, image)
    refused_transparent(folder, Image.fromarray(COLOURS), transparency=tuple(COLOURS[0, 1].tolist()))
    refused_transparent(folder, Image.fromarray(RAMP), transparency=100)


def test_ink_is_turned_into_light(folder: Path) -> None:
    """(255 - c) * (255 - k) / 255."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 100, 0]], [[0, 0, 0, 255], [50, 100, 150, 51]]], np.uint8)
    light = [[[255, 255, 255], [0, 255, 155]], [[0, 0, 0], [164, 124, 84]]]
    assert pixels(folder, Image.fromarray(inks, "CMYK"), "a.tif") == planes(light)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_images_are_upright(name: str, orientation: int, upright: list[list[int]], folder: Path) -> None:
    """By the tag of EXIF: 6 is a camera turned to the left, whose first row is the right side of the scene."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    image = Image.fromarray(np.stack([stored] * 3, axis=2) if name == "a.webp" else stored)
    options = {"a.png": {}, "a.tif": {"compression": "tiff_lzw"}, "a.webp": {"lossless": True}}
    assert pixels(folder, image, name, exif=exif, **options[name])[0] == upright


def test_what_pillow_would_scramble_is_refused(folder: Path) -> None:
    """Of a TIFF that is turned and not compressed, Pillow 11 to 13 takes width for height before it reads the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("train", "test"):
        Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8)).save(folder / part / "only" / "a.tif", exif=exif)
    try:
        assert load_data(folder).x_train[0, 0].tolist() == [[4, 1], [5, 2], [6, 3]]
    except WageubnError as error:
        assert "a.tif: Pillow reads" in str(error)


# -- classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "2", "1", "0"], ["0", "1", "2", "10"]),
        (["007", "07", "10", "8"], ["007", "07", "8", "10"]),
        (["10", "2", "b"], ["10", "2", "b"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        (["2", "1", "\u00b2"], ["1", "2", "\u00b2"]),  # a superscript is a digit, but no number
        (["1" * 200, "5"], ["5", "1" * 200]),
    ],
)
def test_the_order_of_classes(names: list[str], order: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert class_names(tmp_path) == order


def test_labels_follow_the_order(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("10", "9"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (1, 1), int(name)).save(tmp_path / part / name / "a.png")
    data = load_data(tmp_path)
    assert data.classes == ("9", "10")
    assert data.y_train.tolist() == [0, 1] and data.x_train.ravel().tolist() == [9, 10]


def test_other_classes_are_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("ant", "cow"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (1, 1)).save(tmp_path / part / name / "a.png")
    data = load_data(tmp_path)
    for before, words in (
        (["ant", "bee", "cow"], "there: class 1 is 'bee', but in the data 'cow'"),
        (["ant"], "there: class 1 is none, but in the data 'cow'"),
        (["ant", "cow", "dog"], "there: class 2 is 'dog', but in the data none"),
    ):
        with pytest.raises(WageubnError, match=words):
            check_classes("there", before, data.classes)
    check_classes("there", ["ant", "cow"], data.classes)
    check_classes("there", None, data.classes)


def test_classes_in_a_line() -> None:
    assert described(["ant", "b\x1b[2Jee"]) == "2 classes: 0 ant, 1 b\\x1b[2Jee"
    assert described([f"c{i}" for i in range(1000)]).endswith("17 c17, ..., 999 c999") is True


# -- before a pixel is decoded ----------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG file that claims so many grey pixels, and holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_claimed_sizes_are_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, words in (((60_000, 60_000), "claims more pixels"), ((12_000, 12_000), "claims more pixels")):
        for part in ("train", "test"):
            (folder / part / "only" / "a.png").write_bytes(png_of(*size))
        refused(folder, "train/only/a.png", words)
    for part in ("train", "test"):
        for i in range(3):
            (folder / part / "only" / f"{i}.png").write_bytes(png_of(1000, 1000))
        (folder / part / "only" / "a.png").unlink()
    monkeypatch.setattr(memory, "memory_limit", lambda: 6_000_000 - 1)
    refused(folder, str(folder), "needs 0.0 GiB of memory")
    monkeypatch.setattr(memory, "memory_limit", lambda: 6_000_000)
    refused(folder, "train/only/0.png", "not a readable image")


def test_what_is_no_file_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened, a pipe would wait for ever for someone to write."""
    for part in ("train", "test"):
        Image.new("L", (1, 1), 7).save(folder / part / "only" / "b.png")
        os.mkfifo(folder / part / "only" / "a.png")
        os.mkfifo(folder / part / "fifo")
        (folder / part / "only" / "c.png").symlink_to("nowhere")
        (folder / part / "only" / "d.png").symlink_to("d.png")
        (folder / part / "only" / "e.png").symlink_to("/dev/zero")
        (folder / part / "only" / "f.png").symlink_to("b.png")  # a link to an image is one
        monkeypatch.chdir(folder / part / "only")  # the path of a socket has 108 bytes at most
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s.png")
    assert load_data(folder).x_train.tolist() == [[[[7]]], [[[7]]]]
    (folder / "test" / "only" / "deeper").mkdir()
    refused(folder, "test/only/deeper", "a folder within a class")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_damaged_images_are_named(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, and with any byte changed, an image is read or refused by name."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    for part in ("train", "test"):
        Image.fromarray(noise).save(folder / part / "only" / name)
    file = folder / "train" / "only" / name
    whole = file.read_bytes()
    draw, read = np.random.default_rng(1), 0
    for trial in range(60):
        content = bytearray(whole[: int(draw.integers(len(whole)))] if trial % 3 == 0 else whole)
        for place in draw.integers(len(content), size=3 if len(content) > 1 else 0):
            content[place if trial % 2 else min(place, place % 60)] = draw.integers(256)
        file.write_bytes(content)
        try:
            load_data(folder)
            read += 1
        except WageubnError as error:
            assert name in str(error) and "\n" not in str(error)
    assert read < 60
    assert capfd.readouterr() == ("", "")  # neither Pillow nor what it is built on says a word of its own

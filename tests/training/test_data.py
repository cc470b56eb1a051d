"""Data from .npz and from class folders, refusals, and the order of the batches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.data import Dataset, batches, load_data, sample


def refuse(path: Path, *words: str) -> None:
    """Ask for one line that names the file and every word."""
    with pytest.raises(WageubnError) as caught:
        load_data(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message


def save(path: Path, data: Dataset, **changes: Any) -> Path:
    arrays = {**vars(data), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz_comes_back_as_it_was(tmp_path: Path, data: Dataset) -> None:
    loaded = load_data(save(tmp_path / "d.npz", data, y_train=data.y_train.astype(np.uint8)))
    for name in vars(data):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(data, name))
    assert loaded.x_train.dtype == np.uint8
    assert loaded.y_train.dtype == np.int32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, ["x_test", "missing"]),
        ({"x_train": np.zeros((14, 1, 2, 2), np.float32)}, ["x_train", "float32", "uint8"]),
        ({"x_train": np.zeros((14, 4), np.uint8)}, ["x_train", "[14, 4]"]),
        ({"x_test": np.zeros((0, 1, 2, 2), np.uint8)}, ["x_test", "no images"]),
        ({"x_test": np.zeros((6, 1, 2, 3), np.uint8)}, ["x_test", "[1, 2, 3]", "[1, 2, 2]"]),
        ({"y_test": np.zeros(5, np.int64)}, ["x_test", "6", "y_test", "5"]),
        ({"y_train": np.zeros((14, 1), np.int64)}, ["y_train", "[14, 1]"]),
        ({"y_train": np.zeros(14, np.float64)}, ["y_train", "float64"]),
        ({"y_train": np.array([0] * 9 + [-3] * 5)}, ["y_train[9]", "-3"]),
        ({"y_train": np.array([0] * 13 + [2**31])}, ["y_train[13]"]),
        ({"y_train": np.array([object()] * 14)}, ["y_train", "object", "not numbers"]),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, data: Dataset, change: dict[str, Any], words: list[str]) -> None:
    refuse(save(tmp_path / "d.npz", data, **change), *words)


def test_wrong_files_are_named(tmp_path: Path, data: Dataset) -> None:
    refuse(tmp_path / "absent", "no such data")
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 but no more")
    refuse(tmp_path / "junk.npz", "not a readable .npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    refuse(tmp_path / "empty.npz", "not a readable .npz")
    np.save(tmp_path / "one.npy", data.x_train)
    refuse(tmp_path / "one.npy", "a single array")
    whole = save(tmp_path / "d.npz", data).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refuse(tmp_path / "cut.npz", "not a readable .npz")


def test_batches_are_a_shuffle_that_seed_and_epoch_decide() -> None:
    order = batches(14, 4, epoch=0, seed=1)
    assert order.shape == (3, 4)
    assert len(set(order.ravel().tolist())) == 12
    assert set(order.ravel().tolist()) <= set(range(14))
    np.testing.assert_array_equal(order, batches(14, 4, epoch=0, seed=1))
    assert not np.array_equal(order, batches(14, 4, epoch=1, seed=1))
    assert not np.array_equal(order, batches(14, 4, epoch=0, seed=2))
    assert batches(3, 4, epoch=0, seed=0).shape == (0, 4)


def test_sample_draws_from_everywhere(data: Dataset) -> None:
    by_class = np.repeat(np.arange(10, dtype=np.uint8), 20).reshape(-1, 1, 1, 1)
    assert len(np.unique(sample(by_class, 50))) > 5
    np.testing.assert_array_equal(np.sort(sample(by_class, 999), axis=0), by_class)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.full((2, 3, 3), [10 * label, 20, index], np.uint8)
                image.fromarray(pixels).save(tmp_path / "pictures" / part / name / f"{index}.png")
    (tmp_path / "pictures" / "train" / ".hidden").write_text("ignored")
    return tmp_path / "pictures"


def test_folders_number_classes_by_name(pictures: Path) -> None:
    data = load_data(pictures)
    assert data.x_train.shape == (4, 3, 2, 3)
    assert data.x_train.dtype == np.uint8
    assert data.y_train.tolist() == [0, 0, 1, 1]
    assert data.x_test[3, :, 0, 0].tolist() == [10, 20, 1]


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / part / "only" / "a.png")
    assert load_data(tmp_path).x_train.tolist() == [[[[7] * 3] * 2]]


def test_wrong_folders_are_named(pictures: Path) -> None:
    import PIL.Image

    extra = pictures / "train" / "ant" / "9.png"
    PIL.Image.new("RGB", (5, 5)).save(extra)
    refuse(pictures, "9.png", "[3, 5, 5]", "[3, 2, 3]")
    extra.write_text("no image")
    refuse(pictures, "9.png", "not a readable image")
    extra.unlink()
    (pictures / "test" / "cow").mkdir()
    refuse(pictures, "cow", "only one of train/ and test/")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    refuse(tmp_path, "train", "no class folders")
    for part in ("train", "test"):
        (tmp_path / part / "ant").mkdir(parents=True)
    refuse(tmp_path, "train", "no images")


def test_missing_pillow_names_the_extra(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    refuse(pictures, "Pillow", "wageubn-onnx[images]")

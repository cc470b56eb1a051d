"""Atomic writes and the tensor files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wageubn_onnx.artifacts.files import atomic_write, load_tensors, save_tensors, write_bytes, write_text
from wageubn_onnx.errors import WageubnError


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    write_bytes(file, "nëw".encode())
    assert file.read_text(encoding="utf-8") == "nëw"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_keeps_the_old_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(KeyError), atomic_write(file) as out:
        out.write(b"half")
        raise KeyError("power cut")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_tensors_keep_shapes_dtypes_and_metadata(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "scalar": np.array(5, np.int32),
        "columns": np.arange(6, dtype=np.int8).reshape(2, 3).T,
        "float": np.ones((1, 0), np.float32),
    }
    save_tensors(tmp_path / "s", tensors, {"a": [1, None], "b": {"c": 0.1}})
    loaded, metadata = load_tensors(tmp_path / "s")
    assert metadata == {"a": [1, None], "b": {"c": 0.1}}
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype
        assert loaded[key].shape == value.shape
        np.testing.assert_array_equal(loaded[key], value)


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tensors(tmp_path / name, {k: np.zeros(2, np.int8) for k in "xyz"}, {k: k for k in "pqrstuv"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("content", [b"", b"not tensors at all", (2**40).to_bytes(8, "little")])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(WageubnError, match="s: not a readable safetensors file"):
        load_tensors(tmp_path / "s")


def test_a_truncated_file_is_one_clear_error(tmp_path: Path) -> None:
    save_tensors(tmp_path / "s", {"a": np.zeros(100, np.int32)})
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-1])
    with pytest.raises(WageubnError, match="not a readable safetensors file"):
        load_tensors(tmp_path / "s")


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="no such file"):
        load_tensors(tmp_path / "absent")

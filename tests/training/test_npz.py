"""An .npz is held to its own size before anything of it is read."""

from __future__ import annotations

import io
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training import memory
from wageubn_onnx.training.npz import read_npz


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """An .npy file with any header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + content


def described(dtype: str, shape: str) -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


def save(path: Path, member: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", member)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        read_npz(path, ["x"])
    assert "\n" not in str(caught.value)
    for word in (path.name, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npy(described("'|u1'", "(1000000, 1024, 1024)"), b"abc"), ["x claims to be uint8 [1000000, 1024, 1024]", "has 3 bytes"]),
        (npy(described("'|u1'", "(-1,)"), b"abc"), ["[-1]"]),
        (npy(described("'|u1'", "(-1, -3)"), b"abc"), ["[-1, -3]"]),
        (npy(described("'|u1'", "(10000000000000000000000000, 0)")), []),
        (npy(described("'|u1'", "(2,)"), b"abc"), ["[2]", "has 3 bytes"]),
        (npy(described("'|O'", "(1,)"), b"abc"), ["holds object, not numbers"]),
        (npy(described("'<U1000'", "(1,)"), bytes(4000)), ["not numbers"]),
        (npy(described("[('a', '|u1'), ('b', '<f4')]", "(1,)"), bytes(5)), ["not numbers"]),
        (npy("(" * 900), ["not a readable .npz"]),
        (npy("{" + " " * 20_000), ["not a readable .npz"]),
        (npy(described("'|u1'", "(3,)"), b"abc", version=9), ["not a readable .npz"]),
        (b"", ["not a readable .npz"]),
        (b"\x93NUMPY", ["not a readable .npz"]),
    ],
)
def test_headers_that_lie_are_one_line(member: bytes, words: list[str], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    refused(save(tmp_path / "d.npz", member), *words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_arrays_of_any_layout_come_back(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(6, dtype=">i4").reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        "c": np.zeros((0, 3), np.uint8),
        "d": np.array(5),
    }
    for save_as in (np.savez, np.savez_compressed):
        save_as(tmp_path / "d.npz", **arrays)
        found = read_npz(tmp_path / "d.npz", list(arrays))
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_a_table_of_contents_that_lies_is_one_line(tmp_path: Path) -> None:
    """The sizes of a zip file stand in its table of contents, where anything can be written."""
    content = io.BytesIO()
    np.savez(content, x=np.zeros(100, np.uint8))
    whole, at = content.getvalue(), content.getvalue().index(b"PK\x01\x02")
    sizes = b"\xff\xff\xff\x7f"
    (tmp_path / "size.npz").write_bytes(whole[: at + 24] + sizes + whole[at + 28 :])
    refused(tmp_path / "size.npz", "x claims 2,147,483,647 bytes, more than its")
    (tmp_path / "both.npz").write_bytes(whole[: at + 20] + sizes + sizes + whole[at + 28 :])
    refused(tmp_path / "both.npz", "but its entry has 2,147,4")
    (tmp_path / "locked.npz").write_bytes(whole[: at + 8] + b"\x01" + whole[at + 9 :])
    refused(tmp_path / "locked.npz", "not a readable .npz")


def test_memory_is_asked_for_all_arrays_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros(3 * 2**20, np.uint8), y=np.zeros(2**20, np.uint8))
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**22)
    assert len(read_npz(tmp_path / "d.npz", ["x", "y"])) == 2
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**22 - 1)
    assert len(read_npz(tmp_path / "d.npz", ["x"])) == 1
    with pytest.raises(WageubnError, match="d.npz: needs 0.0 GiB of memory"):
        read_npz(tmp_path / "d.npz", ["x", "y"])


def test_the_limit_is_the_least_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory.memory_limit()
    assert 2**28 < machine < 2**50
    (tmp_path / "max").write_text("1048576\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "max")
    assert memory.memory_limit() == 2**20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, -1))
    assert memory.memory_limit() == 4096


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for save_as in (np.savez, np.savez_compressed):
        save_as(tmp_path / "d.npz", x=np.random.default_rng(0).integers(0, 256, 300, np.uint8))
        whole, draw = (tmp_path / "d.npz").read_bytes(), np.random.default_rng(1)
        for trial in range(200):
            content = bytearray(whole[: int(draw.integers(len(whole)))] if trial % 3 == 0 else whole)
            for place in draw.integers(len(content), size=2 if content else 0):
                content[place] = draw.integers(256)
            (tmp_path / "d.npz").write_bytes(content)
            try:
                read_npz(tmp_path / "d.npz", ["x"])
            except WageubnError as error:
                assert "d.npz" in str(error) and "\n" not in str(error)

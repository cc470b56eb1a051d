"""A folder is replaced whole, whenever the process is killed; leftovers are told from the work of a process that lives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wageubn_onnx.artifacts import replace
from wageubn_onnx.artifacts.contents import MANIFEST, listed, seal
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.artifacts.locks import lock, unlock
from wageubn_onnx.artifacts.replace import NEW, OLD, recover, replaced
from wageubn_onnx.errors import WageubnError

KILLS = Path(__file__).with_name("kills.py")


def write(folder: Path | str, **contents: str) -> None:
    """A folder of these files, with its manifest."""
    with replaced(folder, lambda found: (found / MANIFEST).is_file()) as made:
        for name, text in contents.items():
            (made / name).write_text(text)
        seal(made, {"format": 2})


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir() if entry.name != MANIFEST}


@pytest.mark.parametrize("mode", ["exchange", "steps", "inside"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(mode: str, tmp_path: Path) -> None:
    """In one step of the kernel, in two where it has none, and file by file, where a mix must be refused when it is opened."""
    done = subprocess.run([sys.executable, str(KILLS), str(tmp_path), mode], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_what_is_not_listed_moves_over(tmp_path: Path) -> None:
    write(tmp_path / "net", a="1", b="1")
    (tmp_path / "net/notes.txt").write_text("mine")
    (tmp_path / "net/run").symlink_to("nowhere")
    write(tmp_path / "net", a="2", c="2")
    assert (tmp_path / "net/run").is_symlink()
    (tmp_path / "net/run").unlink()
    assert contents(tmp_path / "net") == {"a": "2", "c": "2", "notes.txt": "mine"}
    assert os.listdir(tmp_path) == ["net"]


def test_by_a_link_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    write(tmp_path / "far/net", a="1")
    (tmp_path / "link").symlink_to("far/net")
    write(tmp_path / "link", a="2")
    assert contents(tmp_path / "far/net") == {"a": "2"}
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "far") == ["net"]


def test_the_folder_that_one_stands_in_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(".", a="1", b="1")
    before = tmp_path.stat().st_ino
    write(".", a="2")
    assert contents(tmp_path) == {"a": "2"}
    assert tmp_path.stat().st_ino == before


@pytest.mark.parametrize("known", [True, False])
def test_a_mount_point_is_filled(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that Python knows for a mount point, and one that only the kernel does, which then gives EBUSY (of a bind mount)."""
    (tmp_path / "net").mkdir()
    if known:
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "net"))
    rename = os.rename

    def busy(one: Path, other: Path) -> None:
        if str(other) == str(tmp_path / "net"):
            raise OSError(errno.EBUSY, "busy")
        rename(one, other)

    monkeypatch.setattr(os, "rename", busy)
    monkeypatch.setattr(replace, "_exchange_at_once", busy)
    before = (tmp_path / "net").stat().st_ino
    write(tmp_path / "net", a="1", b="1")
    write(tmp_path / "net", a="2")
    ArtifactFolder(tmp_path / "net")
    assert contents(tmp_path / "net") == {"a": "2"}
    assert (tmp_path / "net").stat().st_ino == before
    assert os.listdir(tmp_path) == ["net"]


def test_leftovers_go_unless_their_process_lives(tmp_path: Path) -> None:
    dead, living = (tmp_path / f".net-{word}{NEW}" for word in ("deaddead", "living00"))
    foreign = [tmp_path / name for name in (f".net-x{NEW}", f".net-more-deaddead{NEW}", ".net-deaddead")]
    for folder in (dead, living, *foreign):
        folder.mkdir()
        (folder / "half").write_text("")
    held = lock(living)
    write(tmp_path / "net", a="1")
    assert {entry.name for entry in tmp_path.iterdir()} == {"net", living.name, *(folder.name for folder in foreign)}
    unlock(held)
    write(tmp_path / "net", a="2")
    assert not living.exists()


def test_an_old_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / f".net-00000000{OLD}", a="1")
    (tmp_path / f".net-00000000{OLD}/run").mkdir()
    held = lock(tmp_path / f".net-00000000{OLD}")
    recover(tmp_path / "net")
    assert not (tmp_path / "net").exists()
    unlock(held)
    recover(tmp_path / "net")
    assert set(os.listdir(tmp_path / "net")) == {"a", "run", MANIFEST}


def test_a_reader_without_rights_still_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "net", a="1")
    write(tmp_path / f".net-00000000{OLD}", a="0")
    (tmp_path / f".net-00000000{OLD}/run").mkdir()

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "rename", denied)
    assert ArtifactFolder(tmp_path / "net").files.keys() == {"a"}


def test_a_failing_block_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "net", a="1")
    with pytest.raises(KeyError), replaced(tmp_path / "net", lambda _: True) as made:
        (made / "a").write_text("2")
        raise KeyError("full")
    assert contents(tmp_path / "net") == {"a": "1"} and os.listdir(tmp_path) == ["net"]


def test_foreign_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WageubnError, match="file: is a file"):
        write(tmp_path / "file", a="1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis").write_text("")
    with pytest.raises(WageubnError, match="full: holds other files"):
        write(tmp_path / "full", a="1")
    assert os.listdir(tmp_path / "full") == ["thesis"] and sorted(os.listdir(tmp_path)) == ["file", "full"]


# -- what is in it ----------------------------------------------------------------------------------------------------------


def test_every_change_of_a_listed_file_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "net"

    def refused(words: str) -> None:
        with pytest.raises(WageubnError, match=words) as caught:
            ArtifactFolder(folder)
        assert "\n" not in str(caught.value) and str(caught.value).endswith("convert the model again")

    write(folder, a="first", b="second")
    assert listed(folder) == {"a", "b", MANIFEST}
    (folder / "b").write_text("sEcond")
    refused("net/b: not the file that manifest.json was written with")
    (folder / "b").unlink()
    refused("net/b: missing")
    os.mkfifo(folder / "b")
    refused("net/b: missing")
    (folder / "b").unlink()
    (folder / "b").write_text("second")
    assert ArtifactFolder(folder).files.keys() == {"a", "b"}
    text = (folder / MANIFEST).read_text()
    for before, after in (('"format": 2', '"format": 3'), ('"a"', '"A"'), ('"sha256"', '"sha512"'), ('"files"', '"file"')):
        (folder / MANIFEST).write_text(text.replace(before, after))
        refused("changed since it was written|has no hashes of the files")
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b'{"format": ' + b"1" * 5000 + b"}", b"[1]", b"null"):
        (folder / MANIFEST).write_bytes(content)
        refused("manifest.json: (not JSON|holds no JSON object)")


def test_a_folder_of_format_1_is_to_be_converted_again(tmp_path: Path) -> None:
    with replaced(tmp_path / "net", lambda _: True) as made:
        seal(made, {"format": 1})
    with pytest.raises(WageubnError, match="manifest.json: format 1, but this version reads 2; convert the model again$"):
        ArtifactFolder(tmp_path / "net")


def test_an_export_is_to_be_exported_again(tmp_path: Path) -> None:
    with replaced(tmp_path / "net", lambda _: True) as made:
        (made / "a").write_text("1")
        seal(made, {"format": 2, "target": {"name": "web", "options": {}}})
    (tmp_path / "net/a").write_text("2")
    with pytest.raises(WageubnError, match="differs.; export it again$"):
        ArtifactFolder(tmp_path / "net")

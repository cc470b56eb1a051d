"""Kill a process at each step that it takes in the file system: python kills.py WORK exchange|steps|inside

The work is done over and over in a forked process that dies by SIGKILL at its first, second, third step, until one comes through.
What a step is Python's audit events say: they are raised before a file is opened, renamed, removed, and so on.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from wageubn_onnx.artifacts import replace
from wageubn_onnx.artifacts.contents import MANIFEST, peek, seal
from wageubn_onnx.artifacts.folder import ArtifactFolder

EVENTS = ("open", "os.", "shutil.", "fcntl.", "ctypes.dlsym", "tempfile.")
NEW = {"step.onnx": "new step", "state": "new state", "added": "new"}
OLD = {"step.onnx": "old step", "state": "old state", "dropped": "old"}


def kills(work: Callable[[], None], check: Callable[[int], None]) -> int:
    """How often ``work`` was killed; ``check`` looks after each time, with its number, and once after it came through."""
    count = 0
    while True:
        count += 1
        child = os.fork()
        if child == 0:
            _die_at(count)
            work()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        check(count)
        if not os.WIFSIGNALED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit(f"kill {count}: the work failed")
            return count - 1


def _die_at(step: int) -> None:
    left = step

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event.startswith(EVENTS):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def write(folder: Path, contents: dict[str, str]) -> None:
    with replace.replaced(folder, lambda _: True) as made:
        for name, text in contents.items():
            (made / name).write_text(text)
        seal(made, {"format": 2})


def found(folder: Path) -> dict[str, str]:
    """The files that the manifest lists."""
    return {name: (folder / name).read_text() for name in ArtifactFolder(folder).files}


def main(work: Path, mode: str) -> None:
    folder = work / "net"
    if mode == "steps":  # as where the kernel or the file system cannot exchange

        def unable(one: Path, other: Path) -> None:
            raise OSError(errno.ENOSYS, "no exchange")

        replace._exchange_at_once = unable
    if mode == "inside":  # as where the folder is a mount point
        replace._is_fixed = lambda place: place.is_dir()

    def begin() -> None:
        write(folder, OLD)

    seen: list[dict[str, str]] = []

    def check(kill: int) -> None:
        if mode == "exchange":  # whatever opens it, and sees to what was left
            assert peek(folder)["files"] in digests, kill
        if mode == "inside":
            try:
                seen.append(found(folder))
            except replace.WageubnError as error:
                assert "convert the model again" in str(error), kill
        elif kill % 2:  # else the next conversion is the first to come
            seen.append(found(folder))
            assert seen[-1] in (OLD, NEW), kill
            assert {entry.name for entry in folder.iterdir()} == {*seen[-1], MANIFEST, "run"}, kill
        begin()  # removes what the killed one left
        assert [entry.name for entry in work.iterdir()] == ["net"], kill
        assert {entry.name for entry in folder.iterdir()} == {*OLD, MANIFEST, "run"}, kill
        assert (folder / "run" / "checkpoint").read_text() == "mine", kill

    os.fsync = lambda _: None  # of use when the power fails, not here
    begin()
    (folder / "run").mkdir()
    (folder / "run" / "checkpoint").write_text("mine")
    digests = [peek(folder)["files"]]
    write(folder, NEW)
    digests.append(peek(folder)["files"])
    begin()
    count = kills(lambda: write(folder, NEW), check)
    assert OLD in seen and NEW in seen
    print(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

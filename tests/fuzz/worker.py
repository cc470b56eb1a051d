"""One command in a process of its own, with limits: a fork of this one, which has imported everything already."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
BYTES = 4 * 2**30
ADDRESSES = 16 * 2**30  # of a child: protects the machine from what takes memory faster than it is looked at
CRASHED = 70  # exit code of a child that raised


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: its exit code, or minus the signal that ended it; peak: bytes; output: of both streams."""

    arguments: tuple[str, ...]
    code: int
    seconds: float
    peak: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


def preload() -> None:
    """Import what commands import only when they run, so that a fork has it."""
    import onnxruntime  # noqa: F401
    import PIL.Image  # noqa: F401

    import wageubn_onnx.export.table
    import wageubn_onnx.export.verify
    import wageubn_onnx.graphdiff.page
    import wageubn_onnx.graphdiff.report
    import wageubn_onnx.inspect.tables
    import wageubn_onnx.pipeline
    import wageubn_onnx.training.train  # noqa: F401


def command(arguments: Sequence[str], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Run `wageubn-onnx --debug ARGUMENTS` in ``folder``: a fault then shows where it is."""

    def run() -> None:
        from wageubn_onnx.cli import cli

        cli.main(args=["--debug", *arguments], prog_name="wageubn-onnx")

    return forked(run, folder, tuple(arguments), seconds)


def forked(run: Callable[[], None], folder: Path, arguments: tuple[str, ...] = (), seconds: float = SECONDS) -> Outcome:
    """Call ``run`` in a child process whose working folder is ``folder``; its output goes to files there."""
    out, err = folder / ".stdout", folder / ".stderr"
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _child(run, folder, out, err)
    code, peak, timed_out = _wait(child, start + seconds)
    taken = time.monotonic() - start
    return Outcome(arguments, code, taken, peak, out.read_bytes(), err.read_bytes(), timed_out)


def _child(run: Callable[[], None], folder: Path, out: Path, err: Path) -> None:
    code = CRASHED
    try:
        os.setsid()
        os.chdir(folder)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001 (a child ends here, whatever happened)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, deadline: float) -> tuple[int, int, bool]:
    """Exit code, peak bytes, and whether it was stopped."""
    pause, timed_out = 0.001, False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, timed_out
        if not timed_out and (time.monotonic() > deadline or _resident(child) > BYTES):
            timed_out = time.monotonic() > deadline
            os.killpg(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _resident(process: int) -> int:
    """Bytes of memory that the process has now."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0

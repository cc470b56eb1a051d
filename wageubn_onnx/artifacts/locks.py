"""Locks that end with the process that holds them, however it ends: `flock` on a file or a folder.

Windows has no such locks, and some file systems have none: there nothing is held, and nothing is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wageubn_onnx.errors import WageubnError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def lock(path: Path, wait: bool = False) -> int | None:
    """Lock what lies at ``path``, and return a descriptor: closing it, or the end of the process, gives the lock back.

    None where another process holds it (``wait``: wait for that one). Raises FileNotFoundError where nothing lies there, OSError
    where the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(path))
    while True:
        held = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(held, path):
                return held
        except BlockingIOError:
            os.close(held)
            return None
        except OSError as error:
            os.close(held)
            raise OSError(error.errno, error.strerror, str(path)) from None
        os.close(held)  # meanwhile something else has come to lie there


def lock_if_possible(path: Path, wait: bool = False) -> int | None:
    """`lock`, and None also where nothing lies there or the file system has no locks."""
    try:
        return lock(path, wait)
    except OSError:
        return None


def new_and_locked(make: Callable[[], Path]) -> tuple[Path, int | None]:
    """What ``make`` makes, a new file or folder, and its lock (None where the file system has none).

    Until it is locked another process may take it for a leftover, and remove it; then another one is made.
    """
    while True:
        path = make()
        held = lock_if_possible(path, wait=True)
        if path.exists():
            return path, held


def unlock(held: int | None) -> None:
    """Give back what `lock` returned."""
    if held is not None:
        os.close(held)


@contextmanager
def only_one(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the folder's lock, a file ``.lock`` in it; raises WageubnError, ``refusal``, where another process does."""
    file = folder / ".lock"
    try:
        held = _locked(file, refusal)
    except OSError:  # no locks here
        held = None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is locked: whoever opened it by then sees that it is gone, and tries again
        unlock(held)


def _locked(file: Path, refusal: str) -> int:
    while True:
        file.touch()
        with contextlib.suppress(FileNotFoundError):  # the process before has just ended, and removed it
            held = lock(file)
            if held is None:
                raise WageubnError(refusal)
            return held


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

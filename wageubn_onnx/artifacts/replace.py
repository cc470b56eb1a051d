"""Folders that are replaced whole: whenever the process is killed, the old one lies there or the new one, and never a mix.

The new folder is made beside the old one as ``.NAME-xxxxxxxx.new`` and changes places with it in one step of the kernel. What the
old one held beside the files of its manifest (runs, notes) then moves over. A killed process may leave behind

* ``.NAME-xxxxxxxx.new``: of no use. The next `replaced` removes it.
* ``.NAME-xxxxxxxx.old``: the folder that was replaced, with what should still have moved over. `recover` does it, at the next
  `replaced` or when the folder is opened.

Both are told from those of a process that lives by their locks. A folder that cannot change places, since it is a mount point,
is filled file by file; there the hashes of the manifest give a mix away.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wageubn_onnx.artifacts.contents import MANIFEST, listed
from wageubn_onnx.artifacts.files import sync_folder
from wageubn_onnx.artifacts.locks import lock_if_possible, new_and_locked, unlock
from wageubn_onnx.errors import WageubnError

NEW, OLD = ".new", ".old"
FIXED = (errno.EBUSY, errno.EXDEV)  # what a rename of a mount point gives
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL)  # by the kernel, by the file system
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def replaced(folder: str | os.PathLike[str], is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when the block ends, and vanishes if the block raises.

    is_ours: whether a folder that is not empty may be replaced. Raises WageubnError where it may not, or a file is in the way.
    """
    place = Path(os.path.realpath(folder))
    if place.exists() and not place.is_dir():
        raise WageubnError(f"{folder}: is a file; give a folder to write to")
    recover(place)
    for left in (*_leftovers(place.parent, place.name, NEW), *_leftovers(place, place.name, NEW)):
        _remove(left)
    if place.is_dir() and any(place.iterdir()) and not is_ours(place):
        raise WageubnError(f"{folder}: holds other files; give an empty or a new folder")
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place if _is_fixed(place) else place.parent
    scratch, held = new_and_locked(lambda: _new_folder(beside, place.name))
    try:
        yield scratch
        scratch.chmod(0o755)
        _sync(scratch)
        if beside == place or not _change_places(scratch, place):
            _fill(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        unlock(held)


def recover(place: Path) -> None:
    """End what a killed `replaced` had begun: what the old folder keeps moves over; where ``place`` is missing, all of it."""
    for left in _leftovers(place.parent, place.name, OLD):
        held = lock_if_possible(left)
        if held is None:
            continue
        try:
            if place.is_dir():
                _move_over(left, place)
            else:
                os.rename(left, place)
        finally:
            unlock(held)


def _leftovers(where: Path, name: str, kind: str) -> list[Path]:
    pattern = re.compile(re.escape(f".{name}-") + "[a-z0-9_]{8}" + re.escape(kind))
    return [entry for entry in where.iterdir() if pattern.fullmatch(entry.name)] if where.is_dir() else []


def _remove(left: Path) -> None:
    """Remove a leftover, unless its process lives."""
    held = lock_if_possible(left)
    if held is not None:
        shutil.rmtree(left, ignore_errors=True)
        unlock(held)


def _new_folder(where: Path, name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=NEW, dir=where))


def _is_fixed(place: Path) -> bool:
    """Whether ``place`` must stay what it is: a mount point, in a folder that is read-only, or where this process stands."""
    if not place.is_dir():
        return False
    return os.path.ismount(place) or not os.access(place.parent, os.W_OK) or Path.cwd().is_relative_to(place)


def _sync(folder: Path) -> None:
    """Flush ``folder`` to the disk, with all that is in it."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


# -- in one step ----------------------------------------------------------------------------------------------------------


def _change_places(scratch: Path, place: Path) -> bool:
    """Put ``scratch`` in the place of ``place``; False, with nothing changed, where that cannot be renamed."""
    held = lock_if_possible(place, wait=True)  # nobody takes the old folder for a leftover before it has been emptied
    old = scratch.with_suffix(OLD)
    try:
        if not place.is_dir():
            os.rename(scratch, place)
        else:
            os.rename(scratch, old)
            try:
                _exchange(old, place, scratch)
            except OSError as error:
                os.rename(old, scratch)
                if error.errno in FIXED:
                    return False
                raise
            _move_over(old, place)
        sync_folder(place.parent)
    finally:
        unlock(held)
    return True


def _exchange(old: Path, place: Path, free: Path) -> None:
    """Let the folders at ``old`` and ``place`` change places; by way of ``free`` where it cannot be done in one step."""
    try:
        _exchange_at_once(old, place)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        os.rename(old, free)
        try:
            os.rename(place, old)  # from here to the next line there is no folder: `recover` puts this one back
            os.rename(free, place)
        except OSError:
            if not place.exists():
                os.rename(old, place)
            os.rename(free, old)
            raise


def _exchange_at_once(one: Path, other: Path) -> None:
    """renameat2 of Linux with RENAME_EXCHANGE; raises OSError, ENOSYS where there is none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other))
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def _move_over(old: Path, place: Path) -> None:
    """Move into ``place`` what ``old`` holds beside its listed files, and remove the rest."""
    known = listed(old)
    for entry in old.iterdir():
        if entry.name not in known and not os.path.lexists(place / entry.name):
            os.rename(entry, place / entry.name)
    rest = old.with_suffix(NEW)
    os.rename(old, rest)  # first, so that no part of it is taken for something to keep
    shutil.rmtree(rest, ignore_errors=True)


# -- file by file ---------------------------------------------------------------------------------------------------------


def _fill(scratch: Path, place: Path) -> None:
    """Move the contents of ``scratch`` into ``place``, the manifest first.

    With its hashes, whatever is not there yet is missed by every reader, and the next conversion knows the folder as one of ours.
    """
    before, inner = listed(place), scratch
    if scratch.parent != place:  # on another file system, for all that is known
        inner = _new_folder(place, place.name)
        shutil.copytree(scratch, inner, dirs_exist_ok=True)
        _sync(inner)
    try:
        names = sorted(listed(inner), key=lambda name: (name != MANIFEST, name))
        for name in names:
            if (place / name).is_dir():
                shutil.rmtree(place / name)
            os.replace(inner / name, place / name)
        for name in before.difference(names):
            (place / name).unlink(missing_ok=True)
        sync_folder(place)
    finally:
        shutil.rmtree(inner, ignore_errors=True)

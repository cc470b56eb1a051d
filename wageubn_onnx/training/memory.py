"""How much memory there is, asked before a data set that claims more is read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wageubn_onnx.errors import WageubnError

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

CGROUP = Path("/sys/fs/cgroup/memory.max")  # of a container, by cgroup version 2


def require_memory(where: str | os.PathLike[str], size: int) -> None:
    """Raise WageubnError that starts with ``where`` if ``size`` bytes are more than this process may ever hold."""
    limit = memory_limit()
    if size > limit:
        raise WageubnError(
            f"{where}: needs {size / 2**30:,.1f} GiB of memory, and there are {limit / 2**30:,.1f}; give fewer images"
        )


def memory_limit() -> int:
    """Bytes: of the machine, or fewer where the process or its container is limited.

    Any number on Windows, where neither is known.
    """
    if resource is None:
        return sys.maxsize
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    if CGROUP.is_file():
        text = CGROUP.read_text().strip()
        limits += [int(text)] if text.isdecimal() else []  # "max" where there is none
    return min(limits)

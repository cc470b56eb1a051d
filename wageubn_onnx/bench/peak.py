"""The greatest resident memory of a process. Workers import it by its name alone, in environments without this package."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Return the greatest resident memory of this process, on Linux since `forget_peak`.

    Linux's ru_maxrss survives exec, so that it may be the parent's; VmHWM is this program's own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Start the peak anew (proc(5), clear_refs); where that cannot be, stages have the peak up to their end."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return

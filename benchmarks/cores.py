"""How long a number takes to another core and back: `python -m benchmarks.cores`, in nanoseconds, on Linux.

Python's loops are most of it; still, cores that share a cache take about half as long as cores that do not. The host of a virtual
machine may move them at any time, and what two threads do together is as fast as the two are near each other.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

TURNS, TRIES = 200, 20  # the shortest try counts: in others something else may have had the core


def round_trip() -> int:
    """Nanoseconds, measured in a process of its own, on the first two cores that this one may use; 0 where it has but one, or on
    another system than Linux."""
    return int(subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print it."""
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        print(0)
        return
    cell = mmap.mmap(-1, mmap.PAGESIZE)
    if not os.fork():
        os.sched_setaffinity(0, cores[1:])
        for turn in range(TURNS * TRIES):
            while cell[0] != 1 + turn % 100:
                pass
            cell[0] = 101 + turn % 100
        os._exit(0)
    os.sched_setaffinity(0, cores[:1])
    tries = []
    for _ in range(TRIES):
        start = time.perf_counter_ns()
        for turn in range(TURNS):
            cell[0] = 1 + turn % 100
            while cell[0] != 101 + turn % 100:
                pass
        tries.append((time.perf_counter_ns() - start) // TURNS)
    print(min(tries))


if __name__ == "__main__":
    main()

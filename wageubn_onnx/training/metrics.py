"""Metrics of a run as JSON lines, cut back to the checkpoint on resume so that no line ever appears twice."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from wageubn_onnx.errors import WageubnError


class MetricsFile:
    """An open metrics file; ``size`` is its length in bytes, which a checkpoint records."""

    def __init__(self, path: Path, size: int) -> None:
        """Open ``path`` (made if absent) and cut it to its first ``size`` bytes.

        Raises WageubnError where it is shorter than that: lines that the checkpoint counts on are gone.
        """
        check_metrics(path, size)
        self._file = open(path, "ab")  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(size)
        self.size = size

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; numbers that JSON lacks (a diverged float loss) become null."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.size += self._file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush what was written to the disk: a checkpoint is about to count on it."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def check_metrics(path: Path, size: int) -> None:
    """Raise WageubnError where ``path`` holds fewer than ``size`` bytes."""
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise WageubnError(f"{path}: has {found} bytes, the checkpoint counts {size}; restore it or start a new run")

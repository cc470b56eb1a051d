"""Releases of onnxruntime that were tried, for messages: `make test-releases` tries them, docs/runtimes.md has what it found.

pyproject.toml names no release that is too new: sessions ask their kernels, and test themselves.
"""

from __future__ import annotations

TRIED = (
    "1.20.1", "1.21.1", "1.22.1", "1.23.2", "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1",
    "1.32.0",
)  # fmt: skip
"""The newest patch of every minor release that pyproject.toml allows."""

WRONG = {"1.21.1", "1.22.1", "1.23.2", "1.24.4"}
"""Those with a MatMulInteger that is wrong on processors with AMX; all others are right about what every step needs."""

RIGHT = f"1.20.1, and 1.25.1 to {TRIED[-1]}"
"""What a message calls the others."""

RIGHT_AND_COMPLETE = f"1.25.1 to {TRIED[-1]}"
"""Those of them that have every kernel, too."""

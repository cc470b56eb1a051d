"""What only a checkout of the repository has, beside the package: benchmarks/, which measures the project itself."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from wageubn_onnx.errors import WageubnError

ROOT = Path(__file__).resolve().parents[1]


def has_benchmarks() -> bool:
    """Whether this package lies in a checkout."""
    return (ROOT / "benchmarks" / "__init__.py").is_file()


def benchmarks(name: str) -> ModuleType:
    """The module benchmarks/``name``.py. Raises WageubnError where the package was installed without it."""
    if not has_benchmarks():
        raise WageubnError(f"{ROOT}: no checkout of wageubn-onnx, whose benchmarks/ this needs; pip install -e a checkout")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")

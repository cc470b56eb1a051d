"""wageubn-onnx: from a trained FP32 ResNet as ONNX to a training step in integers only.

The Python interface: `convert`, `Config`, `Artifacts`, `audit`, `diff`, `TrainingSession`, `FloatSession`, `WageubnError`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wageubn_onnx.version import __version__ as __version__

if TYPE_CHECKING:
    from wageubn_onnx.artifacts.artifacts import Artifacts
    from wageubn_onnx.config import Config
    from wageubn_onnx.errors import WageubnError
    from wageubn_onnx.graphdiff import diff
    from wageubn_onnx.pipeline import convert
    from wageubn_onnx.proofs.audit import audit
    from wageubn_onnx.runtime.session import FloatSession, TrainingSession

__all__ = ["Artifacts", "Config", "FloatSession", "TrainingSession", "WageubnError", "audit", "convert", "diff"]

_HOMES = {
    "Artifacts": "artifacts.artifacts",
    "Config": "config",
    "FloatSession": "runtime.session",
    "TrainingSession": "runtime.session",
    "WageubnError": "errors",
    "audit": "proofs.audit",
    "convert": "pipeline",
    "diff": "graphdiff",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import wageubn_onnx` and `wageubn-onnx --help` stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'wageubn_onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wageubn_onnx.{_HOMES[name]}"), name)

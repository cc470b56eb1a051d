"""What only a checkout of the repository has, beside the package: the scripts of models/."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from wageubn_onnx.errors import WageubnError

ROOT = Path(__file__).resolve().parents[2]


def models_module(name: str) -> ModuleType:
    """The module models/``name``.py. Raises WageubnError where the package was installed without it."""
    file = ROOT / "models" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"models_{name}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise WageubnError(f"{file}: no such file; run this from a checkout, or give models of your own")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module

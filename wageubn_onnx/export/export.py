"""`export`: an artifact folder, and a target, to a folder that the target's runtime can train from by itself."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Bundle, Target
from wageubn_onnx.export.table import TARGETS
from wageubn_onnx.runtime.folder import MANIFEST

FLOAT_SECTIONS = ("fp_step", "fp_eval", "fp_state", "quant_step", "quant_eval", "quant_state")  # stay in the artifact folder


def export(
    folder: str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Export the integer step of the artifact folder ``folder``, with its initial state or the one in the file ``state``.

    ``out`` is written whole or not at all: the target's files, manifest.json (that of ``folder``, with a section ``target``) and
    README.md. Raises WageubnError, one line, for an unknown or unavailable target, a target that cannot take the network, an
    option that it does not have, or a folder that holds something else.
    """
    chosen, path = find_target(target), Path(out)
    reason = chosen.missing()
    if reason:
        raise WageubnError(f"target {target}: {reason}")
    unknown = [name for name in options if name not in chosen.options]
    if unknown:
        raise WageubnError(f"target {target} has no option {unknown[0]!r}; it has: {', '.join(chosen.options) or 'none'}")
    _check_place(path)
    bundle = Bundle.of(folder, state)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        write(chosen, bundle, made, options)
        if path.is_dir():
            shutil.rmtree(path)
        made.chmod(0o755)
        os.rename(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return path


def write(target: Target, bundle: Bundle, folder: Path, options: Mapping[str, Any]) -> None:
    """Fill the empty ``folder`` with the target's files, manifest and README."""
    said = target.write(bundle, folder, **options)
    kept = {key: value for key, value in bundle.manifest.items() if key not in FLOAT_SECTIONS}
    named = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    manifest = kept | {"target": {"name": target.name, "options": named}} | said
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(target.readme(manifest), encoding="utf-8")


def find_target(name: str) -> Target:
    """The target ``name``; raises WageubnError, listing all, where there is none."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise WageubnError(f"target {name}: unknown; choose one of {', '.join(target.name for target in TARGETS)}")


def _check_place(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise WageubnError(f"{path}: is a file; give a folder to write to")
    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        is_export = "target" in json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        is_export = False
    if not is_export:
        raise WageubnError(f"{path}: holds other files; give an empty or a new folder")

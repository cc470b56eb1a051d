"""`export`: an artifact folder, and a target, to a folder that the target's runtime can train from by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wageubn_onnx.artifacts.contents import peek, seal
from wageubn_onnx.artifacts.replace import replaced
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Bundle, Target
from wageubn_onnx.export.table import TARGETS

FLOAT_SECTIONS = ("fp_step", "fp_eval", "fp_state", "quant_step", "quant_eval", "quant_state")  # stay in the artifact folder


def export(
    folder: str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    state: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Export the integer step of the artifact folder ``folder``, with its initial state or the one in the file ``state``.

    ``out`` is written whole or not at all: the target's files, README.md and manifest.json (that of ``folder``, with a section
    ``target``). An export that lies there is replaced, and other files in it stay. Raises WageubnError for an unknown or
    unavailable target, a target that cannot take the network, an option that it does not have, or a folder of something else.
    """
    chosen, path = find_target(target), Path(out)
    unknown = [name for name in options if name not in chosen.options]
    if unknown:
        raise WageubnError(f"target {target} has no option {unknown[0]!r}; it has: {', '.join(chosen.options) or 'none'}")
    reason = chosen.missing()
    if reason:
        raise WageubnError(f"target {target}: {reason}")
    bundle = Bundle.of(folder, state)
    with replaced(path, _is_export) as made:
        write(chosen, bundle, made, options)
    return path


def write(target: Target, bundle: Bundle, folder: Path, options: Mapping[str, Any]) -> None:
    """Fill the empty ``folder`` with the target's files, manifest and README."""
    if target.passes is not None:
        bundle = replace(bundle, lowered=target.passes(bundle, **options).whole)
    write_lowered(target, bundle, folder, options, is_tried=True)


def write_lowered(target: Target, bundle: Bundle, folder: Path, options: Mapping[str, Any], is_tried: bool = False) -> None:
    """The same of a bundle that is lowered already; without what a run says, unless it ``is_tried``."""
    said = target.write(bundle, folder, **options)
    said |= target.tried(bundle, folder, said) if is_tried else {}
    kept = {key: value for key, value in bundle.manifest.items() if key not in FLOAT_SECTIONS}
    given = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    manifest = kept | {"target": {"name": target.name, "options": given}} | said
    (folder / "README.md").write_text(target.readme(manifest), encoding="utf-8")
    seal(folder, manifest)


def find_target(name: str) -> Target:
    """The target ``name``; raises WageubnError, listing all, where there is none."""
    for target in TARGETS:
        if target.name == name:
            return target
    raise WageubnError(f"target {name}: unknown; choose one of {', '.join(target.name for target in TARGETS)}")


def _is_export(folder: Path) -> bool:
    return "target" in peek(folder)

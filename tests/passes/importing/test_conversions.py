"""Every dialect to its integer step: one conversion for each sequence of operators that a dialect leaves in `forward`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import test_affine
import test_layout
import test_spelling
import test_windows
from sources import save

from networks import MEAN, STD, Net, images
from wageubn_onnx.config import Config
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import audit_model

Build = Callable[[Net], str]


def sources() -> dict[str, tuple[Build, dict[str, object]]]:
    """By name: the builder of one of the dialects that leave the same operators, and what its file is made with."""
    found: dict[tuple[str, ...], tuple[str, Build, dict[str, object]]] = {}
    for name, (opset, build, operators) in test_spelling.DIALECTS.items():
        found.setdefault(tuple(operators), (name, build, {"opset": opset}))
    for table, made_with in (
        (test_windows.DIALECTS, {"batch": 2}),
        (test_affine.DIALECTS, {}),
        (test_layout.DIALECTS, {"dims": test_layout.LAST}),
    ):
        for name, (build, operators) in table.items():
            found.setdefault(tuple(operators), (name, build, dict(made_with)))
    return {name: (build, made_with) for name, build, made_with in found.values()}


@pytest.mark.parametrize("name", sources())
def test_its_integer_step_and_inference_pass_the_audit(name: str, tmp_path: Path) -> None:
    build, made_with = sources()[name]
    n = Net(seed=len(name))
    model: onnx.ModelProto = n.model(build(n), **made_with)  # type: ignore[arg-type]
    made = convert(save(model, tmp_path), Config(batch=2, mean=MEAN, std=STD, calibrate=images(8)))
    for stage in ("int_training", "int_eval"):
        assert audit_model(made.files[stage]).findings == []

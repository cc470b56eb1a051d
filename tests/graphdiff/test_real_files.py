"""Files that others made, and networks of real size."""

from __future__ import annotations

import random
import time
from pathlib import Path

import onnx
import pytest

from benchmarks.convert import built
from benchmarks.mutations import renamed, reordered
from wageubn_onnx.config import Config
from wageubn_onnx.graphdiff import diff
from wageubn_onnx.pipeline import convert


@pytest.mark.parametrize(
    "name",
    [
        "resnet20_cifar10_opset9.onnx",
        "resnet8_mlperf_tiny_nchw_opset15.onnx",
        "ort_training_resnet20/training_model.onnx",
        "ort_training_resnet20/optimizer_model.onnx",
    ],
)
def test_disguised_files_are_the_same(name: str, shared_data: Path) -> None:
    model, draw = onnx.load(shared_data / name), random.Random(0)
    found = diff(shared_data / name, reordered(renamed(model, draw, ends=True), draw))
    assert found.same, found.differences[:5]


def test_what_the_importer_did_to_a_file(shared_data: Path, tmp_path: Path) -> None:
    """Its names and its opset are gone, its parameters became inputs; the four nodes of PyTorch's flatten are one."""
    source = shared_data / "resnet20_cifar10_opset9.onnx"
    convert(source, Config(batch=4), tmp_path / "out")
    found = diff(source, tmp_path / "out" / "forward.onnx")
    assert len(found.pairs) == found.b.nodes and not found.only_b
    assert {n.op for n in found.only_a} == {"Shape", "Gather", "Unsqueeze", "Concat"}
    assert [(d.a, d.b) for d in found.differences if d.kind == "op"] == [("Reshape", "Flatten")]
    assert not [d for d in found.differences if d.kind == "initializer"]  # no value was changed


@pytest.mark.slow
def test_the_training_steps_of_resnet50_in_ten_seconds(tmp_path: Path) -> None:
    (source,) = built(tmp_path, ("resnet50",))
    convert(source, Config(batch=16), tmp_path / "out")
    start = time.process_time()
    found = diff(tmp_path / "out" / "fp_training.onnx", tmp_path / "out" / "int_training.onnx")
    assert time.process_time() - start < 10
    assert sum(p.b.nodes for p in found.paths) == found.b.nodes > 9000

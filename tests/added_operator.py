"""The operator that CONTRIBUTING.md adds, from import to export: tests/test_operators.py runs this in a copy that has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from networks import BATCH, CLASSES, MEAN, STD, Array, Net, images, labels, relative, run_ort, to_float, with_own_statistics
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.bench.torch_step import TorchStep
from wageubn_onnx.config import Config
from wageubn_onnx.errors import UnsupportedOperator
from wageubn_onnx.export.export import export
from wageubn_onnx.passes.targets.tensorrt import require_tensorrt
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import audit_folder, audit_model
from wageubn_onnx.runtime.session import FloatSession, TrainingSession

RATE = 0.05


def network(slope: float = 0.25) -> onnx.ModelProto:
    """One between BN and a pool, one after a residual sum, and one between two convolutions, whose channels are reordered."""
    n = Net()

    def leaky(x: str) -> str:
        return n.node("LeakyRelu", x, alpha=slope)

    x = n.node("MaxPool", leaky(n.bn(n.conv("x", "stem", 3, 6), "stem_bn", 6)), kernel_shape=[2, 2], strides=[2, 2])
    y = n.bn(n.conv(n.relu(n.bn(n.conv(x, "a1", 6, 6), "a1_bn", 6)), "a2", 6, 6), "a2_bn", 6)
    x = n.conv(leaky(n.node("Add", x, y)), "head", 6, 8, k=1)
    x = leaky(n.node("Gather", x, n.tensor("order", [3, 1, 2, 0, 7, 6, 5, 4], np.int64), axis=1))
    x = n.node("Flatten", n.node("GlobalAveragePool", n.conv(x, "last", 8, 8, k=1)))
    return with_own_statistics(n.model(n.gemm(x, 8, CLASSES)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("added")
    onnx.save(network(), path / "net.onnx")
    convert(path / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD), path / "net")
    return path / "net"


def test_it_is_imported_as_what_it_is(folder: Path) -> None:
    x = images(normalised=True)
    forward = onnx.load(folder / "forward.onnx")
    assert [node.op_type for node in forward.graph.node].count("LeakyRelu") == 3
    (expected,), (found,) = (run_ort(model, feeds).values() for model, feeds in ((network(), {"x": x}), (forward, {"images": x})))
    assert relative(found, expected) < 1e-6


def test_what_integers_cannot_do_is_refused(tmp_path: Path) -> None:
    onnx.save(network(0.3), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedOperator, match="slope 0.3"):
        convert(tmp_path / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD))


def test_it_trains_in_integers_and_passes_the_audit(folder: Path) -> None:
    """On average as the float step does: the same loss at first, and less of it after a few steps."""
    integer, floating, by_torch = (
        TrainingSession(folder, threads=1),
        FloatSession(folder, threads=1),
        TorchStep(ArtifactFolder(folder), lr=RATE),
    )
    losses = [[session.step(images(), labels(), lr=RATE).loss for _ in range(8)] for session in (integer, floating)]
    losses.append([by_torch.step(images(), labels()) for _ in range(8)])
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.1)
    assert all(each[-1] < 0.8 * each[0] for each in losses)
    assert [report.findings for _, report in audit_folder(ArtifactFolder(folder), with_session=False)] == [[], []]


def test_it_is_exported_for_inference(folder: Path, tmp_path: Path) -> None:
    """Both forms compute the same bits, near to what the float network computes."""
    found: list[Array] = []
    for form in ("qoperator", "qdq"):
        out = export(folder, "inference", tmp_path / form, form=form)
        model, exponent = onnx.load(out / "model.onnx"), ArtifactFolder(out).manifest["exponents"]["logits"]
        found.append(np.ldexp(run_ort(model, {"images": images(32)})["logits"].astype(float), exponent))
        if form == "qoperator":
            assert audit_model(model).findings == []
        else:
            require_tensorrt(model, "model.onnx")
    assert np.array_equal(*found)
    (expected,) = run_ort(
        onnx.load(export(folder, "fp32", tmp_path / "fp32") / "model.onnx"), {"images": to_float(images(32))}
    ).values()
    assert relative(found[0], expected) < 0.1

"""Networks of real size: what conversion must not lose, and that the integer step trains them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import audit
from wageubn_onnx.proofs.ranges import prove
from wageubn_onnx.runtime.session import FloatSession, TrainingSession

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
ROOT = Path(__file__).resolve().parents[1]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> dict[str, Array]:
    return dict(np.load(shared_data / "cifar10_subset.npz"))


@pytest.fixture(scope="module")
def resnet20(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifacts]:
    folder = tmp_path_factory.mktemp("resnet20") / "out"
    config = Config(batch=32, mean=MEAN, std=STD)
    return folder, convert(shared_data / "resnet20_cifar10_opset9.onnx", config, folder)


@pytest.fixture(scope="module")
def evaluated(resnet20: tuple[Path, Artifacts], cifar: dict[str, Array]) -> tuple[Any, Any]:
    """The test images by the integer and by the float network."""
    folder, _ = resnet20
    return tuple(kind(folder).evaluate(cifar["x_test"], cifar["y_test"]) for kind in (TrainingSession, FloatSession))  # type: ignore


def test_resnet20_passes_the_audit(resnet20: tuple[Path, Artifacts]) -> None:
    for stage in ("int_training", "int_eval"):
        report = audit(resnet20[0] / f"{stage}.onnx")
        assert report.ok, report.findings
        assert report.coverage["products"] >= 22


def test_conversion_does_not_lose_resnet20(evaluated: tuple[Any, Any]) -> None:
    """The file's FP32 accuracy is 92.2 % of 932 images; integers stay within a point, and nearly every answer is the same."""
    integer, floating = evaluated
    assert floating.accuracy == pytest.approx(0.922, abs=0.001)
    assert integer.accuracy >= 0.912
    assert (integer.predictions == floating.predictions).mean() > 0.97


def test_near_dead_channels_make_no_garbage(evaluated: tuple[Any, Any], resnet20: tuple[Path, Artifacts]) -> None:
    """One BN of this file has channels with gamma 1e-6 and variance 6e-11: nothing divides by them, no logit saturates."""
    variances = [v for k, v in resnet20[1].fp_state.items() if k.endswith("running_var")]
    assert min(float(v.min()) for v in variances) < 1e-9  # it is that file
    integer, floating = evaluated
    logits = integer.logits * 2.0 ** resnet20[1].manifest["exponents"]["logits"]
    assert abs(integer.logits.astype(np.int64)).max() < 32767
    gap = logits - floating.logits
    assert np.linalg.norm(gap) / np.linalg.norm(floating.logits) < 0.2
    assert abs(gap).max() < 0.3 * abs(floating.logits).max()


def test_a_new_head_learns_on_a_frozen_resnet20(
    resnet20: tuple[Path, Artifacts], shared_data: Path, cifar: dict[str, Array], tmp_path: Path
) -> None:
    """Two classes, animals and machines, four passes over 512 images; the old network is a quarter of the nodes and no state."""
    config = Config(batch=32, mean=MEAN, std=STD, num_classes=2, train_last=1)
    artifacts = convert(shared_data / "resnet20_cifar10_opset9.onnx", config, tmp_path / "out")
    assert len(artifacts.state) == 5
    assert 4 * len(artifacts.files["int_training"].graph.node) < len(resnet20[1].files["int_training"].graph.node)
    assert audit(tmp_path / "out" / "int_training.onnx").ok
    session, is_animal = TrainingSession(tmp_path / "out"), np.isin(np.arange(10), [2, 3, 4, 5, 6, 7]).astype(np.int32)
    for start in [*range(0, 512, 32)] * 4:
        chosen = slice(start, start + 32)
        session.step(cifar["x_train"][chosen], is_animal[cifar["y_train"][chosen]], lr=0.4)
    assert session.evaluate(cifar["x_test"], is_animal[cifar["y_test"]]).accuracy > 0.95


@pytest.mark.slow
def test_training_resnet20_lowers_the_loss_of_a_repeated_batch(resnet20: tuple[Path, Artifacts], cifar: dict[str, Array]) -> None:
    """Wrong labels, which it must learn: four integer steps, and the float step beside them."""
    folder, _ = resnet20
    x, y = cifar["x_train"][:32], (cifar["y_train"][:32] + 1) % 10
    losses = {}
    for kind, lr in ((TrainingSession, 0.02), (FloatSession, 0.01)):
        session = kind(folder)
        losses[kind] = [session.step(x, y, lr=lr).loss for _ in range(4)]
    integer, floating = losses[TrainingSession], losses[FloatSession]
    assert integer[0] == pytest.approx(floating[0], rel=0.1)
    assert integer == sorted(integer, reverse=True)
    assert integer[-1] < integer[0] - 0.5


@pytest.mark.slow
def test_training_keeps_the_dead_channels_harmless(resnet20: tuple[Path, Artifacts], cifar: dict[str, Array]) -> None:
    """Four steps on true labels leave the network as good as it was."""
    folder, artifacts = resnet20
    session = TrainingSession(folder)
    for i in range(4):
        session.step(cifar["x_train"][32 * i : 32 * i + 32], cifar["y_train"][32 * i : 32 * i + 32], lr=0.004)
    for key, value in session.state().items():
        entry = artifacts.manifest["tensors"][key]
        assert entry["min"] <= value.min() and value.max() <= entry["max"]
        if key.endswith("running_var"):
            assert np.ldexp(value.astype(np.float64), entry["exponent"]).max() < 1e4
    assert session.evaluate(cifar["x_test"], cifar["y_test"]).accuracy > 0.85


@pytest.mark.slow
def test_resnet18_at_224_trains(tmp_path: Path) -> None:
    """The model script's file at full size: convert, audit, and three steps on one batch of two images."""
    script = ROOT / "models/resnet18.py"
    if not script.is_file():
        pytest.skip("models/resnet18.py is absent")
    model = tmp_path / "resnet18.onnx"
    subprocess.run([sys.executable, str(script), str(model)], check=True, cwd=ROOT)
    convert(model, Config(batch=2), tmp_path / "out")
    for stage in ("int_training", "int_eval"):
        report = audit(tmp_path / "out" / f"{stage}.onnx")
        assert report.ok, report.findings
    session = TrainingSession(tmp_path / "out")
    assert session.image_shape == (2, 3, 224, 224)
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8)
    y = np.array([1, 3], np.int32)
    losses = [session.step(x, y, lr=0.05).loss for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("groups", [{}, {"groups": 32, "width_per_group": 4}], ids=["resnet50", "resnext50_32x4d"])
def test_50_layers_at_224_never_overflow(groups: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch 64: every tensor of both stages is proven, and run-time exponents stay inside their guard at any depth."""
    monkeypatch.syspath_prepend(str(ROOT / "models"))
    from resnet import Architecture, build

    widths, image = (64, 128, 256, 512), (3, 224, 224)
    architecture = Architecture((3, 4, 6, 3), widths, 1000, image, bottleneck=True, large_stem=True, **groups)
    onnx.save(build(architecture), tmp_path / "net.onnx")
    artifacts = convert(tmp_path / "net.onnx", Config(batch=64))
    for stage, least in (("int_training", 70_000), ("int_eval", 15_000)):
        proof = prove(artifacts.files[stage])
        assert proof.doubts == []
        assert proof.tensors > least
        exponents = [r for r in proof.ranges if "exponent" in r.tensor]
        assert all(-128 <= r.least <= r.greatest <= 128 for r in exponents)
        assert len(exponents) > 100 or stage == "int_eval"


@pytest.mark.slow
def test_no_error_is_lost_in_110_layers(tmp_path: Path) -> None:
    """The deepest CIFAR ResNet, untrained: three steps in which no error is all zero and every exponent stays far from its guard.

    onnxruntime takes some minutes to load the step: its 170,000 nodes, functions inlined.
    """
    sys.path.insert(0, str(ROOT / "models"))
    resnet = pytest.importorskip("resnet", reason="models/resnet.py is absent")
    model = resnet.build(resnet.Architecture((18, 18, 18), (16, 32, 64), 10, (3, 32, 32)), 0)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    resnet.fit_statistics(model, (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25))
    onnx.save(model, tmp_path / "resnet110.onnx")
    convert(tmp_path / "resnet110.onnx", Config(2, (0.5,), (0.25,), health=True), tmp_path / "out")
    session = TrainingSession(tmp_path / "out", threads=1)
    rows = session.folder.manifest["step"]["health"]
    errors = [i for i, row in enumerate(rows) if row["role"] in ("E1", "E2", "E.sum")]
    assert len(errors) > 3 * 54  # E1, E2 and a sum a block
    losses = []
    for step in range(3):
        chosen = slice(2 * step, 2 * step + 2)
        result = session.step(pixels[chosen], np.arange(2, dtype=np.int32), lr=0.1)
        losses.append(result.loss)
        assert result.health is not None
        saturated, all_zero, exponent = result.health[errors].T
        assert not all_zero.any()
        assert exponent.min() > -50 and exponent.max() < 50
    assert losses[-1] < losses[0]

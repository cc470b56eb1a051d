"""Both sessions on the miniature folder: a step's arithmetic, the state, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import images, labels
from wageubn_onnx.artifacts.contents import peek, seal
from wageubn_onnx.artifacts.files import load_tensors, save_tensors
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.session import FloatSession, QuantizedSession, Session, TrainingSession
from wageubn_onnx.training.data import Dataset

Edit = Callable[..., None]

BATCH, CLASSES = 4, 3  # of the miniature in conftest.py
SCALE, MEAN, STD = np.float32(1 / 255), np.float32(0.25), np.float32(0.5)
SESSIONS = [TrainingSession, FloatSession]


def batch(data: Dataset, index: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows = slice(index * BATCH, (index + 1) * BATCH)
    return data.x_train[rows], data.y_train[rows]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def refused(message: str, call: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(WageubnError, match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_integer_steps_follow_their_definition(folder: Path, data: Dataset) -> None:
    session = TrainingSession(folder, threads=1)
    weight = session.state()["linear.weight"]
    for count in range(3):
        images, labels = batch(data, count)
        result = session.step(images, labels, lr=0.01, gradient_range=32, seed=11, fetch=["gradient"])
        mixed = int(images.sum()) + 5 * int(labels.sum()) + 11 * count
        weight = (weight + mixed + 32) % 1000
        assert result.loss == mixed % 1000 / 16
        assert result.correct == labels.sum() % BATCH
        assert result.extra["gradient"] == mixed + 32
        np.testing.assert_array_equal(session.state()["linear.weight"], weight)
        assert session.state()["step"] == count + 1


def test_float_steps_follow_their_definition(folder: Path, data: Dataset) -> None:
    session = FloatSession(folder)
    images, labels = batch(data)
    weight = session.state()["linear.weight"]
    x = ((images.astype(np.float32) * SCALE - MEAN) / STD).reshape(BATCH, -1)
    logits = x @ weight
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(likelihood[np.arange(BATCH), labels]).mean()
    result = session.step(images, labels, lr=0.5)
    assert result.correct is None
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(session.state()["linear.weight"], weight - 0.5 * loss, rtol=1e-5)


@pytest.mark.parametrize("kind", SESSIONS)
def test_evaluation_uses_the_current_state(kind: type[Session], folder: Path, data: Dataset) -> None:
    session = kind(folder)
    session.step(*batch(data), lr=0.5)
    weight = session.state()["linear.weight"]
    pixels = data.x_test.astype(weight.dtype)
    x = (pixels * SCALE - MEAN) / STD if kind is FloatSession else pixels
    logits = x.reshape(len(x), -1) @ weight
    result = session.evaluate(data.x_test, data.y_test, batch=4)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.predictions, result.logits.argmax(axis=1))
    assert result.correct == (result.predictions == data.y_test).sum()
    assert result.accuracy == (result.predictions == data.y_test).mean()
    assert session.evaluate(data.x_test).accuracy is None
    assert session.classes == CLASSES


@pytest.mark.parametrize("kind", SESSIONS)
def test_saving_and_loading_goes_on_to_the_same_bits(kind: type[Session], folder: Path, data: Dataset, tmp_path: Path) -> None:
    first, second = kind(folder), kind(folder, optimize=False)
    first.step(*batch(data), seed=3)
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    for index in (1, 2):
        a, b = (session.step(*batch(data, index), seed=3) for session in (first, second))
        assert a == b
    assert same(first.state(), second.state())
    assert not same(first.state(), kind(folder).state())


def test_a_returned_state_is_a_copy(folder: Path, data: Dataset) -> None:
    session = TrainingSession(folder)
    before = session.state()
    kept = {key: value.copy() for key, value in before.items()}
    for index in range(3):
        session.step(*batch(data, index))
    assert same(before, kept)
    session.state()["linear.weight"][:] = 0
    assert session.state()["linear.weight"].any()


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_step_reads_one_set_of_buffers_and_writes_the_other(kind: type[Session], folder: Path, data: Dataset) -> None:
    session = kind(folder)
    for index in range(3):
        current, following = session._buffers
        before = session.state()
        session.step(*batch(data, index), lr=0.5)
        assert session._buffers[0] is following
        assert session._buffers[1] is current
        assert not any(np.shares_memory(current[key], following[key]) for key in current)
        assert same(current, before)
        assert not same(following, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear.weight": None}, "lacks the tensor linear.weight"),
        ({"other": np.zeros(1, np.int32)}, "unknown tensor other"),
        ({"linear.weight": np.zeros((4, 3), np.int64)}, "linear.weight is int64, expected int32"),
        ({"linear.weight": np.zeros((4, 2), np.int32)}, r"linear.weight has shape \[4, 2\], expected \[4, 3\]"),
        ({"step": np.zeros(1, np.int32)}, r"step has shape \[1\], expected \[\]"),
        (
            {"linear.weight": np.full((4, 3), 1001, np.int32)},
            "holds 1001 at flat index 0, outside its range -1000..1000",
        ),
    ],
)
def test_a_state_of_another_network_is_refused(
    folder: Path, tmp_path: Path, data: Dataset, change: dict[str, Any], message: str
) -> None:
    session = TrainingSession(folder)
    session.step(*batch(data))
    before = session.state()
    changed = {key: value for key, value in {**before, **change}.items() if value is not None}
    save_tensors(tmp_path / "other.safetensors", changed)
    refused(f"other.safetensors: .*{message}", session.load, tmp_path / "other.safetensors")
    assert same(session.state(), before)


def test_a_state_on_another_grid_is_refused(folder: Path, edit_manifest: Edit, tmp_path: Path) -> None:
    TrainingSession(folder).save(tmp_path / "s.safetensors")
    edit_manifest(tensors={"linear.weight": {"dtype": "int32", "exponent": -9, "min": -1000, "max": 1000}})
    refused(
        "linear.weight is on the grid exponent -7, expected exponent -9",
        TrainingSession(folder).load,
        tmp_path / "s.safetensors",
    )


def test_a_saved_state_records_its_signature(folder: Path, tmp_path: Path) -> None:
    TrainingSession(folder).save(tmp_path / "s.safetensors", {"note": 1})
    _, metadata = load_tensors(tmp_path / "s.safetensors")
    assert metadata == {
        "note": 1,
        "signature": {"linear.weight": ["int32", [4, 3], "exponent -7"], "step": ["int32", [], None]},
    }


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (2**-10, "rounds to 0; the smallest representable rate is 0.001953125"),
        (-0.1, "rounds to 0"),
        (float("nan"), "learning rate nan"),
        (4.0, "too great; the greatest representable rate is 3.998046875"),
    ],
)
def test_unrepresentable_integer_rates_are_refused(folder: Path, data: Dataset, lr: float, message: str) -> None:
    session = TrainingSession(folder)
    refused(message, session.step, *batch(data), lr=lr)
    assert session.state()["step"] == 0


def test_rates_round_half_to_even(folder: Path) -> None:
    session = TrainingSession(folder)
    assert [session.effective_rate(x / 512) for x in (1.5, 2.5, 3.49, 2047.4)] == [x / 512 for x in (2, 2, 3, 2047)]


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), 1e-60])
def test_unusable_float_rates_are_refused(folder: Path, data: Dataset, lr: float) -> None:
    refused("must be a finite number above 0", FloatSession(folder).step, *batch(data), lr=lr)


@pytest.mark.parametrize("kind", SESSIONS)
def test_wrong_batches_are_refused(kind: type[Session], folder: Path, data: Dataset) -> None:
    session = kind(folder)
    before = session.state()
    images, labels = batch(data)
    refused(
        r"images are uint8 \[3, 1, 2, 2\]; this network takes uint8 \[4, 1, 2, 2\]",
        session.step,
        images[:3],
        labels[:3],
    )
    refused("images are float32", session.step, images.astype(np.float32), labels)
    refused(r"images are uint8 \[4, 2, 2\]", session.step, images[:, 0], labels)
    refused(r"takes uint8 \['n', 1, 2, 2\]", session.evaluate, images[:, :, :1])
    refused(r"labels are int32 \[3\]; they must be integers \[4\]", session.step, images, labels[:3])
    refused("labels are float64", session.step, images, labels.astype(float))
    refused(r"labels\[2\] is 3; this network knows the classes 0..2", session.step, images, np.array([0, 1, 3, 9]))
    refused(r"labels\[0\] is -1", session.step, images, np.array([-1, 0, 0, 0]))
    refused("fetch weight_out: not an extra output", session.step, images, labels, fetch=["weight_out"])
    refused("batch 0", session.evaluate, images, batch=0)
    assert same(session.state(), before)


def test_wrong_scalars_are_refused(folder: Path, data: Dataset) -> None:
    session = TrainingSession(folder)
    for value in (0, 1, 3, 256):
        refused(f"gradient range {value}: must be a power of two", session.step, *batch(data), gradient_range=value)
    refused("seed 2147483648", session.step, *batch(data), seed=2**31)
    refused("threads 0", TrainingSession, folder, threads=0)


def test_a_folder_that_is_none_is_refused(tmp_path: Path, folder: Path, edit_manifest: Edit) -> None:
    refused("no such folder", TrainingSession, tmp_path / "absent")
    refused("has no manifest.json", TrainingSession, tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    refused("manifest.json: not JSON", TrainingSession, tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    refused("holds no JSON object", TrainingSession, tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    refused("has no hashes of the files: damaged, or written by an older version", TrainingSession, tmp_path)
    edit_manifest(format=3)
    refused("format 3, but this version reads 2", TrainingSession, folder)


def test_a_folder_that_contradicts_itself_is_refused(folder: Path, edit_manifest: Edit) -> None:
    step = ArtifactFolder(folder).section("step")
    edit_manifest(step=None)
    refused("has no 'step'", TrainingSession, folder)
    assert FloatSession(folder).state()  # the float models serve without the integer ones
    edit_manifest(step={**step, "lr": "rate"})
    refused("int_training.onnx: lacks rate, 'lr' of the manifest", TrainingSession, folder)
    edit_manifest(step={"model": "int_training.onnx"})
    refused("'step' lacks 'images'", TrainingSession, folder)
    edit_manifest(step=step, state=[{"in": "weight", "key": "w"}])
    refused(r"'state\[0\]' lacks 'out'", TrainingSession, folder)
    edit_manifest(state=[{"in": "weight", "out": "gone", "key": "w"}])
    refused("lacks weight -> gone", TrainingSession, folder)
    (folder / "fp_training.onnx").write_bytes(b"junk")
    refused("fp_training.onnx: not the file that manifest.json was written with", TrainingSession, folder)
    seal(folder, peek(folder))
    refused("fp_training.onnx: onnxruntime cannot load it", FloatSession, folder)
    (folder / "fp_training.onnx").unlink()
    refused("fp_training.onnx: missing", FloatSession, folder)
    seal(folder, peek(folder))
    refused("fp_training.onnx: named in manifest.json, which has no hash of it", FloatSession, folder)


def test_the_quantized_step_in_float_is_the_integer_step(tiny_folder: Path) -> None:
    """Both start from one network; float32 rounds a few values to a neighbour, no more (see tests/test_bits.py)."""
    integer, quantized = TrainingSession(tiny_folder), QuantizedSession(tiny_folder)
    pixels, truth = images(64), labels(64)
    agree = integer.evaluate(pixels).predictions == quantized.evaluate(pixels).predictions
    assert agree.mean() > 0.95
    steps = [session.step(pixels[:4], truth[:4], 0.1, seed=3) for session in (integer, quantized)]
    assert steps[1].loss == pytest.approx(steps[0].loss, rel=0.02)
    assert quantized.smallest_rate == integer.smallest_rate
    exponent = integer.folder.manifest["tensors"]["stem.weight"]["exponent"]
    moved = np.ldexp(integer.state()["stem.weight"].astype(np.float64), exponent)
    np.testing.assert_allclose(quantized.state()["stem.weight"], moved, atol=0.002)
    with pytest.raises(WageubnError, match="power of two"):
        quantized.step(pixels[:4], truth[:4], 0.1, gradient_range=3)

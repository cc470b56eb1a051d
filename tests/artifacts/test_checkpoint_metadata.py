"""What a state file says beside its tensors: every damage of it is one line that names the file and the entry."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import save_file

from wageubn_onnx.artifacts.checkpoint import CHECKPOINT, fault, load_state
from wageubn_onnx.artifacts.files import METADATA_KEY, load_tensors, save_tensors
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.session import TrainingSession
from wageubn_onnx.training.data import Dataset
from wageubn_onnx.training.train import CHECKPOINT as FILE
from wageubn_onnx.training.train import METRICS, Plan, train

PLAN = Plan(epochs=2, lr=0.05, log_every=1)


@pytest.fixture
def checkpoint(folder: Path, data: Dataset, tmp_path: Path) -> Path:
    """That of a finished run."""
    train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=Console(file=io.StringIO()))
    return tmp_path / "run" / FILE


@pytest.fixture
def refused(folder: Path, data: Dataset, checkpoint: Path) -> Callable[..., str]:
    """Ask that neither a resumed run nor, with ``state``, a session takes the checkpoint; the state and the metrics stay."""

    def ask(state: bool = True) -> str:
        session, said = TrainingSession(folder), set()
        before = session.state()
        metrics = (checkpoint.parent / METRICS).read_bytes()
        takers: list[Callable[[], Any]] = [lambda: train(session, data, PLAN, checkpoint.parent, resume=True)]
        takers += [lambda: session.load(checkpoint)] * state
        for take in takers:
            with pytest.raises(WageubnError) as caught:
                take()
            said.add(str(caught.value))
            assert "\n" not in str(caught.value) and str(checkpoint.parent) in str(caught.value)
        for key, value in session.state().items():
            np.testing.assert_array_equal(value, before[key])
        assert (checkpoint.parent / METRICS).read_bytes() == metrics
        return " ".join(said)

    return ask


def written(checkpoint: Path, metadata: Any) -> None:
    """The checkpoint with other metadata, and its hash, so that it is the entries that are refused."""
    tensors, _ = load_tensors(checkpoint)
    save_tensors(checkpoint, tensors, metadata)


def raw(checkpoint: Path, text: str) -> None:
    """The checkpoint with this text in place of its metadata."""
    tensors, _ = load_tensors(checkpoint)
    save_file(tensors, checkpoint, {METADATA_KEY: text})


HUGE = 10**30
DAMAGES = [
    (["position"], [None, 3, [], "x", {}], True),
    (["run"], [None, 3, [], "x"], True),
    (["signature"], [None, 3, [], {"step": 3}, {"step": ["int32", [-1], None]}, {"step": ["int32", [], 3, 4]}], True),
    (["classes"], [None, 3, "ab", [1], [None]], True),
    (["position", "step"], [None, -1, 1.5, "3", True, HUGE, [3], math.nan], True),
    (["position", "step"], [7, 2**62], False),
    (["position", "loss_sum"], [None, "0", HUGE, [], True], True),
    (["position", "correct"], [-1, 0.5, "1", HUGE, False], True),
    (["position", "test_accuracy"], ["1", [], True], True),
    (["position", "metrics_bytes"], [None, -1, 0.5, HUGE], True),
    (["position", "metrics_bytes"], [10_000_000], False),
    (["run", "epochs"], [None, 3, HUGE, math.nan, "2", [2], {}], False),
    (["run", "data"], ["0" * 64, 3, None], False),
    (["run", "step"], ["0" * 64, 3, None], False),
    (["health"], [3, {"steps": 1}, {"steps": 0, "saturated": [HUGE], "all_zero": [], "least": [], "greatest": []}], True),
]


@pytest.mark.parametrize(
    ("path", "value", "state"), [(path, value, state) for path, values, state in DAMAGES for value in values], ids=repr
)
def test_a_wrong_entry_is_named(path: list[str], value: Any, state: bool, checkpoint: Path, refused: Callable[..., str]) -> None:
    _, metadata = load_tensors(checkpoint)
    entry = metadata
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    written(checkpoint, metadata)
    assert path[-1].split("_")[0] in refused(state)


@pytest.mark.parametrize("key", ["step", "loss_sum", "correct", "test_accuracy", "metrics_bytes"])
def test_a_missing_entry_is_named(key: str, checkpoint: Path, refused: Callable[..., str]) -> None:
    _, metadata = load_tensors(checkpoint)
    del metadata["position"][key]
    written(checkpoint, metadata)
    assert f"position lacks '{key}'" in refused()


def test_a_missing_run_is_named(checkpoint: Path, refused: Callable[..., str]) -> None:
    _, metadata = load_tensors(checkpoint)
    for key in metadata["run"]:
        less = copy.deepcopy(metadata)
        del less["run"][key]
        written(checkpoint, less)
        assert f"the run has {key} None" in refused(state=False)
    written(checkpoint, {key: value for key, value in metadata.items() if key != "run"})
    assert "lacks 'run'" in refused()
    written(checkpoint, {key: value for key, value in metadata.items() if key != "position"})
    assert "--state" in refused(state=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "too deeply nested"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ("3", "no JSON object"),
    ],
    ids=range(7),
)
def test_metadata_that_is_no_object_is_one_line(text: str, said: str, checkpoint: Path, refused: Callable[..., str]) -> None:
    raw(checkpoint, text)
    assert said in refused()


def test_what_was_changed_is_refused_by_its_hash(checkpoint: Path, refused: Callable[..., str]) -> None:
    with safe_open(checkpoint, framework="np") as file:
        text = file.metadata()[METADATA_KEY]
    whole = checkpoint.read_bytes()
    for before, after in (('"step": 6', '"step": 5'), ('"loss_sum": 0.0', '"loss_sum": NaN'), ('"sha256": "', '"sha256": "0')):
        assert text.count(before) == 1
        raw(checkpoint, text.replace(before, after))
        assert "changed since it was written" in refused()
        checkpoint.write_bytes(whole)
    changed = bytearray(whole)
    changed[-1] ^= 1  # the last byte of a tensor, in range
    checkpoint.write_bytes(changed)
    assert "changed since it was written" in refused()


@pytest.mark.parametrize("length", [0, 7, 8, 9, 500, -1])
def test_a_truncated_file_is_one_line(length: int, checkpoint: Path, refused: Callable[..., str]) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    assert "not a readable safetensors file" in refused()


def test_a_dtype_that_numpy_lacks_is_one_line(checkpoint: Path, refused: Callable[..., str]) -> None:
    header = json.dumps({"step": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    checkpoint.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    assert "not a readable safetensors file" in refused()


def test_the_state_of_another_program_is_a_state(folder: Path, checkpoint: Path) -> None:
    tensors, _ = load_state(checkpoint)
    save_file(tensors, checkpoint)
    session = TrainingSession(folder)
    assert session.load(checkpoint) == {}
    assert session.state()["step"] == 6


def test_metadata_of_a_diverged_run_is_right(checkpoint: Path) -> None:
    """In float a loss may be NaN: that is no damage."""
    _, metadata = load_tensors(checkpoint)
    metadata["position"]["loss_sum"] = math.nan
    written(checkpoint, metadata)
    assert math.isnan(load_state(checkpoint)[1]["position"]["loss_sum"])


def test_rules() -> None:
    assert fault({"run": {}, "position": 3}, CHECKPOINT, "it") == "it.position is 3, not an object"
    assert fault([1, 2], (CHECKPOINT, CHECKPOINT, CHECKPOINT), "it") == "it is [1, 2], not a list of 3"
    assert fault("x" * 99, CHECKPOINT, "it") == f"it is '{'x' * 39}..., not an object"

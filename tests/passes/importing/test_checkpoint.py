"""A checkpoint's values come back to the bit; no damage to the file ends in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts import checkpoint
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.passes.importing.checkpoint import Checkpoint, Group, read_checkpoint

TRAINED = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7, "scale": np.array(0.5, np.float64)}
FROZEN = {"bn.running_mean": np.array([-1.5, 0.25], np.float32), "bn.num_batches": np.array(7, np.int64)}
GROUPS = [("group0", 1234567890123, 0.125)]
PROPERTIES = {"epoch": -3, "best": 0.75, "note": "grün"}


def written(folder: Path, **options: Any) -> Path:
    (folder / "checkpoint").write_bytes(checkpoint(TRAINED, FROZEN, GROUPS, PROPERTIES, **options))
    return folder / "checkpoint"


def assert_whole(found: Checkpoint) -> None:
    for values, expected in ((found.trained, TRAINED), (found.frozen, FROZEN)):
        assert list(values) == list(expected)
        for name, value in values.items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_array_equal(value, expected[name])
    assert found.groups == [Group(*GROUPS[0])]
    assert found.properties == PROPERTIES


def refused(path: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path.parent}/") and "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("version", [1, 2])
def test_everything_comes_back(version: int, tmp_path: Path) -> None:
    assert_whole(read_checkpoint(written(tmp_path, version=version)))


def test_tensors_in_a_file_of_their_own(tmp_path: Path) -> None:
    external = bytearray()
    path = written(tmp_path, external=external)
    refused(path, "checkpoint.data: no such file")
    data = tmp_path / "checkpoint.data"
    data.write_bytes(external)
    assert_whole(read_checkpoint(path))
    data.write_bytes(external[:-1])
    refused(path, "damaged or truncated")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such file")
    refused(tmp_path, f"{tmp_path.name}: no such file")
    for content in (b"", b"ODTC", b"\x00" * 64):
        (tmp_path / "other").write_bytes(content)
        refused(tmp_path / "other", "'ODTC'")


def test_other_versions_and_names_without_values(tmp_path: Path) -> None:
    refused(written(tmp_path, version=3), "checkpoint version 3")
    refused(written(tmp_path, nominal=True), "names without values")


def test_the_trained_resnet20(shared_data: Path) -> None:
    found = read_checkpoint(shared_data / "ort_training_resnet20" / "checkpoint")
    assert (len(found.trained), len(found.frozen)) == (65, 42)
    assert all("running" in name for name in found.frozen)
    assert found.trained["fc.weight"].shape == (10, 64)


def reads_or_refuses(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except WageubnError as error:
        assert "\n" not in str(error)


SOUND = checkpoint(TRAINED, FROZEN, GROUPS, PROPERTIES)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for length in range(len(SOUND)):
        path.write_bytes(SOUND[:length])
        try:
            assert_whole(read_checkpoint(path))  # but for padding at the end
        except WageubnError as error:
            assert "\n" not in str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.integers(0, 8 * len(SOUND) - 1), min_size=1, max_size=8))
def test_no_flipped_bits_end_in_a_traceback(tmp_path: Path, flips: list[int]) -> None:
    content = bytearray(SOUND)
    for bit in flips:
        content[bit // 8] ^= 1 << bit % 8
    reads_or_refuses(tmp_path / "checkpoint", bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_other_bytes_end_in_a_traceback(tmp_path: Path, content: bytes) -> None:
    reads_or_refuses(tmp_path / "checkpoint", content[:4] + b"ODTC" + content[4:])

"""What is not a sound ONNX file is refused in one line that names it; every opset from 9 on is brought to the project's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sources import assert_same_function, save

from networks import images, tiny
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import OPSET
from wageubn_onnx.passes.importing.read import read_source


def refused(path: Path, *words: str) -> None:
    """The message is one line, opens with the file, and holds the words."""
    with pytest.raises(WageubnError) as caught:
        read_source(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", "no such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "no training_model.onnx in this folder")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "not an ONNX model")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(range(64)), b"just a text\n", b"PK\x03\x04" + b"\0" * 30])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    refused(tmp_path / "other.onnx", "not an ONNX")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    data = tiny().SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / "cut.onnx", "truncated")


def test_a_model_without_a_graph(tmp_path: Path) -> None:
    onnx.save(onnx.ModelProto(ir_version=8, producer_name="nobody"), tmp_path / "bare.onnx")
    refused(tmp_path / "bare.onnx", "no graph in it")


def test_an_invalid_model(tmp_path: Path) -> None:
    model = tiny()
    model.graph.node[0].input[0] = "nowhere"
    refused(save(model, tmp_path), "not a valid ONNX model", "nowhere")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    model = tiny()
    (tensor,) = (t for t in model.graph.initializer if t.name == "a2.weight")
    value = numpy_helper.to_array(tensor).copy()
    value[1, 2, 0, 1] = bad
    tensor.CopyFrom(numpy_helper.from_array(value, "a2.weight"))
    refused(save(model, tmp_path), "'a2.weight'", "NaN or infinity")


def test_missing_external_data(tmp_path: Path) -> None:
    onnx.save(tiny(), tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_source(tmp_path / "outside.onnx").model.graph.node
    (tmp_path / "weights.bin").unlink()
    refused(tmp_path / "outside.onnx", "external data cannot be read")


def test_an_opset_that_cannot_be_brought_over(tmp_path: Path) -> None:
    model = tiny()
    model.opset_import[0].version = 99
    refused(save(model, tmp_path), "opset 99 cannot be brought to 18", "export it with opset 18")


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset_from_9_on(tmp_path: Path, opset: int) -> None:
    model = tiny()
    model.opset_import[0].version = opset
    forward = assert_same_function(model, tmp_path, images(5, seed=opset, normalised=True))
    assert [(o.domain, o.version) for o in forward.opset_import] == [("", OPSET)]


def test_the_project_s_own_opset_is_left_alone(tmp_path: Path) -> None:
    model = tiny()
    source = read_source(save(model, tmp_path))
    assert source.model == model
    assert not source.weights  # none is large

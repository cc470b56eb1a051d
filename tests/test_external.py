"""What lies beside a model is looked at first: one line that names the file, from every command that reads models."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from networks import tiny
from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.cli import cli
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose tensors lie in ``weights.bin``."""
    path = tmp_path / "outside.onnx"
    onnx.save(tiny(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_sound_external_data(model: Path) -> None:
    assert load_model(model).graph == load_model(model).graph
    assert {t.name for t in load_model(model).graph.initializer} == {t.name for t in tiny().graph.initializer}


def test_data_that_ends_too_early(model: Path) -> None:
    data = model.with_name("weights.bin")
    data.write_bytes(data.read_bytes()[:-1])
    refused(model, str(model), "external data cannot be read", "weights.bin, which has", "truncated")


@pytest.mark.parametrize("command", [["convert", "{}", "-o", "{}.out"], ["inspect", "{}"], ["diff", "{}", "{}"], ["audit", "{}"]])
def test_every_command_says_it_in_one_line(command: list[str], model: Path) -> None:
    model.with_name("weights.bin").write_bytes(b"short")
    result = CliRunner().invoke(cli, [word.format(model) for word in command])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {model}: tensor '") and result.output.count("\n") == 1
    assert "weights.bin" in result.output


def test_a_symbolic_link(model: Path) -> None:
    """As Hugging Face's cache keeps its files."""
    data = model.with_name("weights.bin")
    data.rename(model.with_name("blob"))
    data.symlink_to("blob")
    refused(model, "weights.bin is a symbolic link", "cp -L")


def test_a_pointer_of_git_lfs(model: Path) -> None:
    model.with_name("weights.bin").write_text(POINTER)
    refused(model, "weights.bin: a pointer of Git LFS", "git lfs pull")
    model.write_text(POINTER)
    refused(model, f"{model}: a pointer of Git LFS", "git lfs pull")
    model.with_suffix(".safetensors").write_text(POINTER)
    with pytest.raises(WageubnError, match="pointer of Git LFS.*git lfs pull"):
        load_tensors(model.with_suffix(".safetensors"))


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("location", "/etc/passwd", "'/etc/passwd'"),
        ("location", "../weights.bin", "'../weights.bin'"),
        ("location", "absent.bin", "absent.bin is missing"),
        ("location", "", "at ''"),
        ("offset", "-4", "bytes -4"),
        ("offset", "many", "no place in a file"),
        ("offset", "99999999", "bytes 99999999"),
        ("length", "4", "4 bytes, and its shape"),
        ("length", "-1", "bytes"),
    ],
)
def test_facts_that_cannot_be(key: str, value: str, word: str, model: Path) -> None:
    proto = onnx.load(model, load_external_data=False)
    tensor = proto.graph.initializer[3]
    kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    for name, fact in [*kept, (key, value)]:
        tensor.external_data.add(key=name, value=fact)
    model.write_bytes(proto.SerializeToString())
    refused(model, f"tensor {tensor.name!r}", "external data cannot be read", word)

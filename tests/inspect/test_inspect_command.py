"""`wageubn-onnx inspect`: tables for people, JSON for programs, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wageubn_onnx.cli import cli


def run(*args: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["inspect", *map(str, args)])


def test_tables(tiny_folder: Path) -> None:
    result = run(tiny_folder / "int_training.onnx", "--layers")
    assert result.exit_code == 0, result.output
    for text in ("int_training", "ConvInteger", "quantizers, backward", "flag/8", "constant/8/stochastic", "kept for backward"):
        assert text in result.output
    assert "half_even" not in result.output and "GAP" not in result.output
    assert "result bytes" in result.output and "result bytes" not in run(tiny_folder / "int_training.onnx").output


def test_a_users_file(tiny_file: Path) -> None:
    result = run(tiny_file)
    assert result.exit_code == 0 and "with N = 1" in result.output and "quantizers" not in result.output


def test_a_folder_is_a_line_a_stage(tiny_folder: Path) -> None:
    result = run(tiny_folder)
    assert result.exit_code == 0
    for stage in ("forward", "fp_training", "quant_training", "int_training", "quant_eval", "int_eval"):
        assert result.output.count(stage) == 1


def test_json(tiny_folder: Path) -> None:
    found = json.loads(run(tiny_folder / "int_training.onnx", "--json").output)
    assert found["stage"] == "int_training" and "layers" not in found
    assert found["quantizers"]["gaps"] == [] and found["quantizers"]["cells"]["a1"]["W"] == ["direct/8/half_even"]
    assert "layers" in json.loads(run(tiny_folder / "int_training.onnx", "--json", "--layers").output)
    assert len(json.loads(run(tiny_folder, "--json").output)) == 6


@pytest.mark.parametrize("name", ["absent.onnx", "text.onnx", "empty"])
def test_refusals(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / name)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and name in result.stderr

"""An exported step is timed beside PyTorch's, from its manifest alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from models.resnet import Architecture, build
from wageubn_onnx import Config, convert
from wageubn_onnx.checkout import ROOT
from wageubn_onnx.cli import cli


def test_an_exported_step_is_timed_beside_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    onnx.save(build(Architecture((1, 2), (4, 8), 5, (3, 16, 16))), tmp_path / "basic.onnx")
    convert(tmp_path / "basic.onnx", Config(batch=4)).save(tmp_path / "folder")
    runner = CliRunner().invoke(
        cli, ["export", str(tmp_path / "folder"), "--target", "onnxruntime", "-o", str(tmp_path / "exported")]
    )
    assert runner.exit_code == 0, runner.output
    command = [sys.executable, "-m", "benchmarks.exported", tmp_path / "folder", tmp_path / "exported", "--rounds", "2"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "times PyTorch's speed" in printed and "over 2 rounds" in printed

"""The conversion benchmark: what it measures adds up, and whoever fails is named."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks import convert as bench_convert
from benchmarks.convert_worker import KINDS, STAGES, Clock
from wageubn_onnx import checkout
from wageubn_onnx.cli import cli
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.pipeline import STAGES as PIPELINE

DIGITS = Path(__file__).parents[2] / "models/digits_resnet.onnx"


def test_every_stage_is_timed() -> None:
    arguments = ["bench", "convert", str(DIGITS), "--rounds", "1", "--batch", "2", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    ((answer,), names) = json.loads(result.stdout), ["wageubn-onnx", *(["onnxsim"] if find_spec("onnxsim") else [])]
    assert answer["model"] == DIGITS.name
    assert [contender["name"] for contender in answer["contenders"]] == names
    assert [ratio["against"] for ratio in answer["ratios"]] == names[1:]
    ours, stages = answer["contenders"][0], {stage["name"]: stage for stage in answer["stages"]}
    assert tuple(stages) == STAGES == (*(s.name for s in PIPELINE), "proof", "writing", "rest")
    assert all(stage["seconds"] > 0 and 2**20 < stage["peak_bytes"] <= ours["peak_bytes"] for stage in stages.values())
    spent = sum(stage["seconds"] for stage in stages.values())
    assert spent == pytest.approx(ours["seconds"], abs=0.05)  # the clock's own few readings apart
    assert ours["nodes"] > 1000


def test_the_clock_gives_each_moment_to_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()  # 0: imports
    with clock.on("a"):  # 10
        with clock.on("b"):  # 20
            pass  # 30
        with clock.on("b"):  # 40
            pass  # 50
    assert clock.seconds == {"imports": 10, "a": 30, "b": 20}  # 60


def test_the_clock_wraps_what_it_times() -> None:
    clock, owner = Clock(), SimpleNamespace(double=lambda x, add=0: 2 * x + add)
    clock.time(owner, "double", lambda x: f"of {x}")
    assert owner.double(2, add=1) == 5
    assert set(clock.seconds) == {"imports", "of 2"} and clock.peaks["of 2"] > 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_fails_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    if kind == "onnxsim" and not find_spec("onnxsim"):
        pytest.skip("onnxsim is not installed")
    with pytest.raises(WageubnError, match=f"conversion of junk.onnx by {bench_convert.NAMES[kind]}: "):
        bench_convert.run_once(kind, tmp_path / "junk.onnx", tmp_path / "out", 2, sys.executable)


def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WageubnError, match="absent.onnx: no such file"):
        bench_convert.bench_convert([tmp_path / "absent.onnx"])
    with pytest.raises(WageubnError, match="python: cannot be run"):
        bench_convert.bench_convert([DIGITS], 1, 2, tmp_path / "python")
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    result = CliRunner().invoke(cli, ["bench", "convert"])
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {tmp_path}: no checkout of wageubn-onnx")


def test_the_default_models_are_those_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_convert, "BUILT", {"resnet18": bench_convert.BUILT["resnet18"]})
    (file,) = bench_convert.built(tmp_path)
    assert file.name == "resnet18.onnx"
    assert file.stat().st_size == pytest.approx(4 * 11_699_112, rel=0.01)  # parameters and statistics of torchvision's

"""The diff benchmark: our verdicts are right, who fails is said to, and the page keeps its marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import diff as bench_diff
from benchmarks.diff import Answer, DiffResult, PairResult, markdown, write_report
from benchmarks.diff_worker import KINDS
from wageubn_onnx.cli import cli
from wageubn_onnx.errors import WageubnError

PAGE = Path(__file__).parents[2] / "docs" / "diff.md"


@pytest.fixture
def ours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_diff.worker, "KINDS", {"wageubn-onnx": KINDS["wageubn-onnx"]})


def test_every_verdict_of_ours_is_right(ours_only: None, tiny_file: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "diff", str(tiny_file), "--json"])
    assert result.exit_code == 0, result.output
    pairs = json.loads(result.stdout)["pairs"]
    assert len(pairs) == 7
    for pair in pairs:
        (answer,) = pair["answers"]
        assert answer["same"] is pair["same"], pair
        assert answer["seconds"] > 0
    words = {pair["pair"].split(": ")[1]: pair["answers"][0]["text"] for pair in pairs}
    assert words["one changed weight"].endswith("correspond, initializer 1")
    assert words["one changed attribute"].endswith("correspond, attribute 1")
    assert words["one inserted node"].endswith("correspond, 1 only in B, operand 1")


def test_who_fails_or_is_too_slow(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    command = [sys.executable, "-m", bench_diff.worker.__name__]
    failed = bench_diff._answer("wageubn-onnx", command, damaged, damaged, 60)
    assert failed.same is None and failed.text.startswith("fails: wageubn_onnx.errors.WageubnError: ")
    slow = bench_diff._answer("wageubn-onnx", command, damaged, damaged, 0.01)
    assert slow.same is None and slow.text == "no answer in 0.01 s"
    with pytest.raises(WageubnError, match="cannot be run"):
        bench_diff._home("onnxdiffer", ["/nowhere/python"])


def test_the_page(tmp_path: Path) -> None:
    answers = [Answer("wageubn-onnx", True, "3 nodes correspond", 0.25), Answer("diffonnx", None, "no answer in 60 s", None)]
    result = DiffResult({"wageubn-onnx": "", "diffonnx": "1.0", "onnxsim": None}, [PairResult("copy", True, answers)])
    page = tmp_path / "diff.md"
    page.write_text(PAGE.read_text())
    write_report(page, result)
    text = page.read_text()
    assert "| copy | same | same, 0.2 s | none |" in text and "Not installed: onnxsim." in text
    assert "  * diffonnx: no answer in 60 s" in text
    before = PAGE.read_text()
    assert text.split(bench_diff.BEGIN)[0] == before.split(bench_diff.BEGIN)[0]
    assert text.split(bench_diff.END)[1] == before.split(bench_diff.END)[1]
    write_report(page, result)
    assert page.read_text() == text
    page.write_text("nothing here")
    with pytest.raises(WageubnError, match="lacks the marks"):
        write_report(page, result)
    assert markdown(result) in text


def test_the_documented_table_holds_our_verdicts() -> None:
    rows = [line for line in PAGE.read_text().split(bench_diff.BEGIN)[1].splitlines() if line.startswith("| resnet")]
    assert len(rows) == 8
    for row in rows:
        _, _, truth, ours, *_ = (cell.strip() for cell in row.split("|"))
        assert ours.startswith(truth)

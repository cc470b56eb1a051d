"""`wageubn-onnx diff`: exit codes, filters, JSON, folders, refusals; and what a reader learns of our own stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

import wageubn_onnx
from wageubn_onnx.artifacts.contents import peek, seal
from wageubn_onnx.cli import cli
from wageubn_onnx.graphdiff import diff, diff_folder
from wageubn_onnx.pipeline import STAGES


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["diff", *map(str, args)])


def answer(*args: str | Path) -> dict[str, Any]:
    found = run(*args, "--json")
    assert found.exit_code in (0, 1), found.output
    value: dict[str, Any] = json.loads(found.stdout)
    return value


def test_the_same(tiny_file: Path) -> None:
    found = run(tiny_file, tiny_file)
    assert found.exit_code == 0
    assert "nodes correspond, and nothing differs" in found.stdout
    assert answer(tiny_file, tiny_file)["same"] is True


def test_different(tiny_file: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_file)
    model.graph.node[1].name = "another"
    model.graph.initializer[0].raw_data = b"\0" * len(model.graph.initializer[0].raw_data)
    onnx.save(model, tmp_path / "other.onnx")
    found = run(tiny_file, tmp_path / "other.onnx")
    assert found.exit_code == 1
    for words in ("initializer 1", "stem.weight", "1 node named differently", "162 of 162 differ, by 0."):
        assert words in " ".join(found.stdout.split()), found.stdout
    summary = run(tiny_file, tmp_path / "other.onnx", "--summary")
    assert summary.exit_code == 1 and "stem.weight" not in summary.stdout
    assert run(tiny_file, tmp_path / "other.onnx", "--only", "fc").exit_code == 0


def test_the_schema(tiny_folder: Path) -> None:
    """docs/diff.md names every key."""
    found = answer(tiny_folder / "fp_training.onnx", tiny_folder / "int_training.onnx")
    assert found["schema"] == 1 and found["same"] is False
    page = (Path(__file__).parents[2] / "docs" / "diff.md").read_text()

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        inner = {k: v for k, v in value.items() if k not in ("ops", "dtypes")}  # their keys are operators and dtypes
        return {*value, *set().union(*map(keys, inner.values()))}

    assert not {key for key in keys(found) if f"`{key}`" not in page}
    kinds = {d["kind"] for stage in diff_folder(tiny_folder) for d in stage.to_json()["differences"]}
    assert not {kind for kind in kinds if f"`{kind}`" not in page}


def test_every_node_is_in_a_path(tiny_folder: Path) -> None:
    for found in diff_folder(tiny_folder):
        assert sum(p.a.nodes for p in found.paths) == found.a.nodes
        assert sum(p.b.nodes for p in found.paths) == found.b.nodes
        assert sum(p.kept for p in found.paths) == len(found.pairs)
        assert [n for p in found.paths for n in p.only_a] and len(found.only_a) == sum(len(p.only_a) for p in found.paths)
        assert len(found.only_b) == sum(len(p.only_b) for p in found.paths)


def test_a_folder_is_walked_in_the_order_of_the_pipeline(tiny_folder: Path) -> None:
    steps = [(found.a.stage, found.b.stage) for found in diff_folder(tiny_folder)]
    assert [after for _, after in steps] == [stage.name for stage in STAGES][1:]
    assert {after: before for before, after in steps}["quant_eval"] == "forward"
    found = answer(tiny_folder, "--summary")
    assert found["same"] is False and len(found["steps"]) == 5


def test_a_folder_without_integers(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "float")
    for name in ("int_training", "int_eval"):
        (tmp_path / "float" / f"{name}.onnx").unlink()
    seal(tmp_path / "float", peek(tmp_path / "float"))
    (tmp_path / "float" / "int_eval.onnx").write_text("what lies beside the files of the manifest is not looked at")
    assert [found.b.stage for found in diff_folder(tmp_path / "float")] == ["fp_training", "quant_training", "quant_eval"]


def test_filters(tiny_folder: Path) -> None:
    files = tiny_folder / "fp_training.onnx", tiny_folder / "int_training.onnx"
    found = diff(*files)
    paths = found.only("a1", "E2").paths
    assert [(p.layer, p.path) for p in paths] == [("a1", "E2")]
    assert {p.path for p in found.only("", "BN").paths} >= {"BN.mu", "BN.sigma", "BN.x"}
    assert {p.layer for p in found.only("a*").paths} >= {"a1", "a1_bn", "a2", "a2_bn"}
    text = run(*files, "--only", "a1", "--path", "E2")
    assert text.exit_code == 1 and "b1" not in text.stdout
    for words in ("only in A: 1 nodes", "a1/slot_E2", "only in B: ", "a1/Q_E2"):  # every node is named
        assert words in text.stdout
    whole = run(*files)
    assert "are listed by --only, --path and --json" in whole.stdout and "only in B: " not in whole.stdout


def test_a_reader_learns_what_became_of_a_layer(tiny_folder: Path) -> None:
    """Which pass turned its error to 8 bits, what exponent its weights have, where its gradient goes."""
    found = diff(tiny_folder / "fp_training.onnx", tiny_folder / "int_training.onnx")
    by_path = {p.path: p for p in found.only("a1").paths if p.path}
    assert "quantize-errors" in " ".join(by_path["E2"].passes)
    assert by_path["E2"].change == "replaced"
    assert set(by_path["E2"].b.dtypes) >= {"int8"} and set(by_path["E2"].a.dtypes) == {"float32"}
    assert "DirectQuantize int8*2^-7" in by_path["W"].b.quantizers
    assert "a1 G.W" in by_path["E2"].goes_to
    assert "a1 U.W" in by_path["G.W"].goes_to or "a1 M.W" in by_path["G.W"].goes_to
    assert "output a1.weight.next" in by_path["U.W"].goes_to


def test_it_is_deterministic(tiny_folder: Path) -> None:
    files = tiny_folder / "quant_training.onnx", tiny_folder / "int_training.onnx"
    assert run(*files, "--json").stdout == run(*files, "--json").stdout


def test_in_python(tiny_file: Path) -> None:
    assert wageubn_onnx.diff(tiny_file, onnx.load(tiny_file)).same


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["MODEL"], "give two ONNX files, or one artifact folder"),
        (["FOLDER", "MODEL"], "give two ONNX files, or one artifact folder"),
        (["MODEL", "absent.onnx"], "absent.onnx: no such file"),
        (["MODEL", "TEXT"], "not an ONNX file"),
        (["EMPTY"], "has no manifest.json"),
        (["MODEL", "MODEL", "--only", "nowhere"], "no node belongs to layer 'nowhere'"),
        (["FOLDER", "--path", "Q"], "data path 'Q'"),
    ],
)
def test_refusals(arguments: list[str], message: str, tiny_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"This is no model.")
    (tmp_path / "empty").mkdir()
    places = {"MODEL": tiny_file, "FOLDER": tiny_folder, "TEXT": tmp_path / "text.onnx", "EMPTY": tmp_path / "empty"}
    found = run(*(places.get(a, a) for a in arguments))
    assert found.exit_code == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert message in found.stderr

"""The docs that run: the generated page is fresh, links lead somewhere, and the README's commands do what they say."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner

from benchmarks.accuracy import final_runs, read_records
from benchmarks.accuracy_report import updated
from benchmarks.experiments import EXPERIMENTS
from wageubn_onnx.cli import cli
from wageubn_onnx.runtime.releases import TRIED, WRONG
from wageubn_onnx.training.data import save_data

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "accuracy"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_page_is_fresh():
    generate = load(ROOT / "docs" / "generate.py")
    assert (ROOT / "docs" / "passes.md").read_text() == generate.page(), "run python docs/generate.py"


def test_accuracy_page_says_what_the_results_say():
    page = ROOT / "docs" / "accuracy.md"
    assert page.read_text() == updated(page, RESULTS), "run wageubn-onnx bench accuracy --report"


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_accuracy_results_are_consistent(experiment):
    records = read_records(experiment, RESULTS)
    files = {file.stem for file in (RESULTS / experiment.name).glob("*.json")}
    assert files == {record["key"] for record in records}
    tuned = {run.key for arm in experiment.arms for run in final_runs(experiment, arm, records)}
    for record in records:
        epochs, batch, images = record["epochs"], record["batch"], record["train_images"]
        assert record["images_seen"] == epochs * (images // batch * batch)
        assert [line["epoch"] for line in record["curve"]] == list(range(1, epochs + 1))
        assert record["test_accuracy"] == record["curve"][-1]["test_accuracy"]
        correct = record["test_accuracy"] * record["test_images"]
        assert correct == pytest.approx(round(correct), abs=1e-6)
        assert record["images"] in (None, images)
        assert record["phase"] == "tune" or record["key"] in tuned
    for phase in ("tune", "final"):  # arms differ in nothing but how they train
        part = [record for record in records if record["phase"] == phase]
        assert len({record["data_sha256"] for record in part}) <= 1
        assert len({(r["seed"], r["source_sha256"]) for r in part}) == len({r["seed"] for r in part})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_the_table_of_releases_has_all_that_were_tried():
    """And none with other bits: `make test-releases`, whose option --page writes the table."""
    page = (ROOT / "docs" / "runtimes.md").read_text()
    table = page.partition("<!-- releases")[2].partition("<!-- end of releases")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == list(TRIED)
    assert all(cell == "same" or cell.startswith("refused") for row in rows for cell in row[1:])


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the README's commands expect: the digits as digits.npz, and models/."""
    pytest.importorskip("sklearn", reason="the digits come from scikit-learn (extra demo)")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models").symlink_to(ROOT / "models")
    digits = load(ROOT / "models" / "digits.py")
    save_data(digits.digits(), folder / "digits.npz")
    return folder


def test_readme_commands_run_and_the_driver_trains(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    commands = [line for block in blocks("README.md", "sh") for line in block.splitlines() if line.startswith("wageubn-onnx")]
    assert len(commands) >= 4
    for command in commands:
        result = CliRunner().invoke(cli, shlex.split(command.split("#")[0])[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"
    (driver,) = (b for b in blocks("docs/artifacts.md", "python") if "InferenceSession" in b)
    capsys.readouterr()
    if WRONG & {onnxruntime.__version__}:
        with pytest.raises(SystemExit, match="computes integers wrong"):
            exec(compile(driver, "docs/artifacts.md", "exec"), {})
        return
    exec(compile(driver, "docs/artifacts.md", "exec"), {})
    losses = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 1437 // 32
    assert sum(losses[-10:]) <= sum(losses[:10])

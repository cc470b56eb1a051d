"""The accuracy runner on a network of seconds: what is done is not done again, and the page says what the files say."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import accuracy, accuracy_report, experiments
from benchmarks.accuracy import Place, Run
from benchmarks.experiments import Arm, Experiment, Normalisation, ResNet, Tuning
from benchmarks.transforms import TRANSFORMS, training_part, transformed, tuning_part
from wageubn_onnx.cli import cli
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.data import Dataset, save_data

QUIET = Console(quiet=True)
TOY = Experiment(
    "toy",
    "A toy",
    ResNet((1,), (4,), (1, 8, 8), classes=2),
    Normalisation((0.5,), (0.25,)),
    images=24,
    epochs=2,
    batch=8,
    seeds=(0, 1),
    tuning=Tuning(16, 8, 1),
    arms=(Arm("full8", (0.05, 0.1)), Arm("quant:full8", (0.1,)), Arm("fp32", (0.01,), ("constant", "cosine"))),
    transform="inverted",
)


def toy_data(train: int = 40, test: int = 16) -> Dataset:
    """Bright and dark images."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, train + test, dtype=np.int32)
    pixels = random.integers(0, 128, (train + test, 1, 8, 8)) + 100 * labels.reshape(-1, 1, 1, 1)
    images = pixels.astype(np.uint8)
    return Dataset(images[:train], labels[:train], images[train:], labels[train:])


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"toy": TOY})
    monkeypatch.setattr(accuracy_report, "EXPERIMENTS", {"toy": TOY})
    return TOY


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("accuracy")
    save_data(toy_data(), folder / "toy.npz")
    return Place(folder / "toy.npz", None, folder / "results", folder / "scratch")


@pytest.fixture(scope="module")
def done(place: Place) -> Place:
    """The whole toy experiment, in this process."""
    for phase in accuracy.PHASES:
        for run in accuracy.pending(TOY, TOY.arms, phase, accuracy.read_records(TOY, place.results)):
            assert accuracy.execute(TOY, place, run)
    return place


# -- data -----------------------------------------------------------------------------------------------------------------


def test_transforms_are_exact():
    images = np.array([[0, 1], [254, 255]], np.uint8).reshape(1, 1, 2, 2)
    assert TRANSFORMS["inverted"](images, 0).ravel().tolist() == [255, 254, 1, 0]
    assert TRANSFORMS["halved"](images, 0).ravel().tolist() == [128]  # 127.5
    many = np.full((50, 1, 8, 8), 100, np.uint8)
    noisy = TRANSFORMS["noisy"](many, 0).astype(int)
    assert (noisy.min(), noisy.max()) == (114 - 12, 114 + 12)
    with pytest.raises(WageubnError, match="even"):
        TRANSFORMS["halved"](np.zeros((1, 1, 3, 2), np.uint8), 0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_repeat_and_stay_uint8(name):
    data = toy_data()
    once, twice = transformed(data, name), transformed(data, name)
    assert once.x_train.dtype == np.uint8
    np.testing.assert_array_equal(once.x_test, twice.x_test)


def test_parts_are_fixed_and_tuning_sees_no_test_image():
    data = toy_data()
    data = replace(data, x_train=np.arange(40, dtype=np.uint8).reshape(-1, 1, 1, 1), y_train=np.arange(40, dtype=np.int32))
    part, tuning = training_part(data, 24), tuning_part(data, 16, 8)
    assert len(set(part.y_train.tolist())) == 24
    assert set(tuning.y_train.tolist()).isdisjoint(tuning.y_test.tolist())
    np.testing.assert_array_equal(tuning.x_test.ravel(), tuning.y_test)
    np.testing.assert_array_equal(part.y_train[:16], tuning.y_train)
    assert training_part(data, None) is data
    with pytest.raises(WageubnError, match="40 training images"):
        training_part(data, 41)


# -- running --------------------------------------------------------------------------------------------------------------


def test_every_run_leaves_one_file_with_all_that_repeats_it(done):
    records = accuracy.read_records(TOY, done.results)
    assert len(records) == 2 + 1 + 2 + 3 * 2
    finals = [record for record in records if record["phase"] == "final"]
    for record in finals:
        assert record["images_seen"] == 2 * 24
        assert len(record["curve"]) == 2
        assert record["curve"][-1]["test_accuracy"] == record["test_accuracy"]
        assert str(done.data.parent) not in json.dumps(record)  # names, not this machine's paths
    sources = {(record["seed"], record["source_sha256"]) for record in finals}
    assert len(sources) == 2  # a network a seed, the same for all arms
    assert len({record["data_sha256"] for record in finals}) == 1
    assert not list((done.scratch / "toy").iterdir())


def test_nothing_is_done_twice(done):
    records = accuracy.read_records(TOY, done.results)
    assert not accuracy.pending(TOY, TOY.arms, "tune", records) and not accuracy.pending(TOY, TOY.arms, "final", records)
    missing = [record for record in records if record["phase"] != "final" or record["seed"] != 1]
    assert [run.seed for run in accuracy.pending(TOY, TOY.arms, "final", missing)] == [1, 1, 1]


def test_the_best_rate_goes_on():
    arm = TOY.arms[0]
    runs = accuracy.tuning_runs(TOY, arm)
    scores = [{"key": run.key, "test_accuracy": score} for run, score in zip(runs, (0.5, 0.75), strict=True)]
    assert accuracy.best_run(TOY, arm, scores[:1]) is None
    assert [run.rate for run in accuracy.final_runs(TOY, arm, scores)] == [0.1, 0.1]
    with pytest.raises(WageubnError, match="--phase tune first"):
        accuracy.pending(TOY, TOY.arms, "final", scores)


def test_an_arm_may_train_at_the_rate_of_another():
    shared = replace(TOY, arms=(*TOY.arms, Arm("sq8", rates_of="full8")))
    arm = shared.arms[-1]
    accuracies = {0.05: 0.5, 0.1: 0.75}
    records = [{"key": Run("tune", "full8", "cosine", rate, 0).key, "test_accuracy": a} for rate, a in accuracies.items()]
    assert accuracy.tuning_runs(shared, arm) == []
    assert accuracy.final_runs(shared, arm, records) == [Run("final", "sq8", "cosine", 0.1, seed) for seed in (0, 1)]
    with pytest.raises(WageubnError, match="the rate of full8 is not tuned yet"):
        accuracy.pending(shared, [arm], "final", records[:1])


def test_a_result_of_another_definition_is_refused(done):
    with pytest.raises(WageubnError, match="epochs 2, but the experiment says 3"):
        accuracy.read_records(replace(TOY, epochs=3), done.results)


def test_an_arm_may_leave_paths_in_float(done, tmp_path):
    run, data = Run("tune", "quant:full8-M-U", "cosine", 0.1, 0), toy_data()
    session = accuracy.open_arm(TOY, None, run, data, tmp_path / "converted")
    assert session.folder.manifest["profile"] == "full8-M-U" and session.folder.manifest["step"] is None
    assert np.isfinite(session.step(data.x_train[:8], data.y_train[:8], 0.1).loss)
    with pytest.raises(WageubnError, match="no integer form"):
        accuracy.open_arm(TOY, None, replace(run, arm="full8-M-U"), data, tmp_path / "integers")


def test_processes_give_the_same_results(done, place, tmp_path):
    elsewhere = replace(place, results=tmp_path / "results", scratch=tmp_path / "scratch")
    accuracy.run_experiment(TOY, elsewhere, TOY.arms[:1], ["tune"], jobs=2, console=QUIET)
    for record in accuracy.read_records(TOY, elsewhere.results):
        (same,) = (r for r in accuracy.read_records(TOY, done.results) if r["key"] == record["key"])
        assert {**same, "seconds": 0} == {**record, "seconds": 0}


def test_a_failing_run_stops_the_runner(place, tmp_path, capfd):
    wrong = replace(TOY, arms=(Arm("no-such-profile", (0.1,)),))
    elsewhere = replace(place, results=tmp_path / "results", scratch=tmp_path / "scratch")
    with pytest.raises(WageubnError, match="failed, see above"):
        accuracy.run_experiment(wrong, elsewhere, wrong.arms, ["tune"], jobs=1, console=QUIET)
    assert "no-such-profile" in capfd.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_bits(done, place, tmp_path):
    """The runner's process is told to stop in mid-run; the same call then ends as if nothing had happened."""
    elsewhere = replace(place, results=tmp_path / "results", scratch=tmp_path / "scratch")
    key = accuracy.final_runs(TOY, TOY.arms[0], accuracy.read_records(TOY, done.results))[0].key
    (whole,) = (r for r in accuracy.read_records(TOY, done.results) if r["key"] == key)
    run = Run("final", "full8", whole["schedule"], whole["rate"], 0)

    session_step = accuracy.TrainingSession.step
    calls = []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return session_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy.TrainingSession, "step", step)
        assert not accuracy.execute(TOY, elsewhere, run)
    assert len(calls) == 4 and not accuracy.read_records(TOY, elsewhere.results)
    assert accuracy.execute(TOY, elsewhere, run)
    (record,) = accuracy.read_records(TOY, elsewhere.results)
    assert {**record, "seconds": 0} == {**whole, "seconds": 0}


# -- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "choose one of fashion"),
        (["fashion"], "needs --data"),
        ([], "give an EXPERIMENT"),
        (["fashion", "--data", "x.npz", "--only", "full9"], "choose one of full8, fp32"),
        (["fashion", "--data", "x.npz", "--model", "x.onnx"], "leave out --model"),
        (["shift-noisy", "--data", "x.npz"], "pass --model FILE"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path):
    result = CliRunner().invoke(cli, ["bench", "accuracy", *arguments, "--results", str(tmp_path / "results")])
    assert result.exit_code == 2
    assert message in result.output and len(result.output.strip().splitlines()) == 1


def test_list(toy, done):
    result = CliRunner().invoke(cli, ["bench", "accuracy", "--list", "--results", str(done.results)])
    assert result.exit_code == 0, result.output
    assert "full8" in result.output and "2 of 2" in result.output


# -- the report -----------------------------------------------------------------------------------------------------------


def test_differences_are_paired():
    arm = accuracy_report.Score("full8", "cosine", 0.1, {0: 0.50, 1: 0.60, 2: 0.70})
    base = accuracy_report.Score("fp32", "cosine", 0.1, {0: 0.51, 1: 0.61, 3: 0.9})
    difference, error = arm.difference(base)
    assert difference == pytest.approx(-0.01) and error == pytest.approx(0, abs=1e-12)
    assert arm.deviation == pytest.approx(0.1)
    assert arm.difference(replace(base, accuracies={5: 0.1})) is None


def test_report_rewrites_its_part_only(toy, done):
    pytest.importorskip("matplotlib")
    page = done.results.with_suffix(".md")
    page.write_text(f"before\n{accuracy_report.BEGIN}\nold\n{accuracy_report.END}\nafter\n")
    accuracy_report.write_report(page, done.results)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "## A toy" in text and "bench accuracy toy --data toy.npz" in text
    assert accuracy_report.updated(page, done.results) == text
    picture = (done.results / "toy.svg").read_bytes()
    accuracy_report.write_report(page, done.results)
    assert (done.results / "toy.svg").read_bytes() == picture


def test_report_needs_the_marks(toy, done, tmp_path):
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(WageubnError, match="lacks the marks"):
        accuracy_report.updated(tmp_path / "page.md", done.results)

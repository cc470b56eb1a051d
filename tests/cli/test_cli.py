"""The command line: help, JSON, and exit codes 0, 1 and 2, each refusal in one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import onnx
import pytest
from click.testing import CliRunner, Result

import networks
from wageubn_onnx import checkout
from wageubn_onnx.artifacts.contents import peek, seal
from wageubn_onnx.cli import cli
from wageubn_onnx.cli.bench import bench
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.table import TARGETS

COMMANDS = [
    ["convert"],
    ["audit"],
    ["inspect"],
    ["train"],
    ["eval"],
    ["diff"],
    ["verify"],
    ["passes"],
    ["bench", "step"],
    ["bench", "convert"],
    ["bench", "diff"],
]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def refused(message: str, *args: str | Path) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: wageubn-onnx {' '.join(command)}" in " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_offered(command: list[str]) -> None:
    assert "--json" in run(*command, "--help").output


def test_train_help_leads_to_a_good_rate() -> None:
    text = " ".join(run("train", "--help").output.split())
    assert "default: 0.01, or 0.003 with --float" in text
    assert "refine a trained network at about 0.01" in text


def test_train_then_eval(folder: Path, data_file: Path) -> None:
    result = run("train", folder, "--data", data_file, "--epochs", "2", "--gradient-range", "128,8", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["finished"]
    assert answer["steps"] == 6
    assert answer["checkpoint"] == str(folder / "run" / "checkpoint.safetensors")
    assert "drops 2 of 14 training images" in " ".join(result.stderr.split())
    tested = run("eval", folder, "--data", data_file, "--state", answer["checkpoint"], "--json")
    assert tested.exit_code == 0
    assert json.loads(tested.stdout)["accuracy"] == answer["test_accuracy"]
    assert json.loads(tested.stdout)["images"] == 6
    text = run("eval", folder, "--data", data_file)
    assert text.exit_code == 0
    assert text.stdout.startswith("accuracy ")


def test_train_in_float(folder: Path, data_file: Path, tmp_path: Path) -> None:
    result = run("train", folder, "--data", data_file, "--epochs", "1", "--float", "--out", tmp_path / "f")
    assert result.exit_code == 0, result.output
    assert "3 steps, 1 epochs, test accuracy" in " ".join(result.stdout.split())
    metrics = [json.loads(line) for line in (tmp_path / "f" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["lr"] == pytest.approx(0.003)
    state = tmp_path / "f" / "checkpoint.safetensors"
    assert run("eval", folder, "--data", data_file, "--float", "--state", state).exit_code == 0
    refused("linear.weight is float32, expected int32", "eval", folder, "--data", data_file, "--state", state)


def test_an_interrupted_run_says_how_to_go_on(folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from wageubn_onnx.runtime.session import TrainingSession

    inner = TrainingSession.step

    def step(session: TrainingSession, *args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return inner(session, *args)

    args = ("train", folder, "--data", data_file, "--epochs", "1", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingSession, "step", step)
        result = run(*args)
    assert result.exit_code == 130
    assert not json.loads(result.stdout)["finished"]
    assert "--resume" in result.stderr
    assert json.loads(run(*args, "--resume").stdout)["finished"]


def test_a_state_starts_a_new_run(folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on, from where another run ended: its steps go on being counted, its epochs do not."""
    import signal

    from wageubn_onnx.runtime.session import TrainingSession

    first, second = tmp_path / "one" / "checkpoint.safetensors", tmp_path / "two" / "checkpoint.safetensors"
    train = ("train", folder, "--data", data_file, "--json")
    assert run(*train, "--epochs", "1", "--out", first.parent).exit_code == 0
    onwards = (*train, "--epochs", "2", "--out", second.parent)
    refused("give one", *onwards, "--state", first, "--resume")
    refused("junk: no such file", *onwards, "--state", tmp_path / "junk")
    refused(f"or another --out, with --state {first}", *train, "--epochs", "2", "--out", first.parent, "--state", first)
    refused(f"give --state {first} and another --out instead", *train, "--epochs", "2", "--out", first.parent, "--resume")
    assert not second.exists()
    inner = TrainingSession.step

    def step(session: TrainingSession, *args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return inner(session, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingSession, "step", step)
        broken = run(*onwards, "--state", first, "--checkpoint-every", "2")
    assert broken.exit_code == 130
    assert "the same command with --resume in place of --state goes on" in broken.stderr
    assert json.loads(run(*onwards, "--resume").stdout)["steps"] == 6
    session = TrainingSession(folder)
    session.load(second)
    assert session.state()["step"] == 9


def test_classes_are_shown_and_held_to(folder: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")

    def pictures(name: str, *classes: str) -> Path:
        for part in ("train", "test"):
            for label, called in enumerate(classes):
                (tmp_path / name / part / called).mkdir(parents=True)
                for i in range(2):
                    image.new("L", (2, 2), 50 * label + i).save(tmp_path / name / part / called / f"{i}.png")
        return tmp_path / name

    numbers, others = pictures("numbers", "10", "9", "1"), pictures("others", "1", "10", "11")
    trained = run("train", folder, "--data", numbers, "--epochs", "1", "--json")
    assert trained.exit_code == 0, trained.output
    assert "3 classes: 0 1, 1 9, 2 10" in trained.stderr
    assert json.loads(trained.stdout)["classes"] == ["1", "9", "10"]
    state = folder / "run" / "checkpoint.safetensors"
    tested = run("eval", folder, "--data", numbers, "--state", state)
    assert tested.stdout.startswith("3 classes: 0 1, 1 9, 2 10\naccuracy ")
    assert json.loads(run("eval", folder, "--data", numbers, "--json").stdout)["classes"] == ["1", "9", "10"]
    said = f"{state}: class 1 is '9', but in the data '10'"
    refused(said, "eval", folder, "--data", others, "--state", state)
    refused(said, "train", folder, "--data", others, "--epochs", "1", "--resume")
    refused(said, "train", folder, "--data", others, "--epochs", "1", "--state", state, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["audit", "inspect", "diff", "verify", "eval", "train", "export"])
def test_a_mixed_folder_is_refused_by_whatever_opens_it(command: str, folder: Path, data_file: Path, tmp_path: Path) -> None:
    """Also where the file that is another is none that the command would read."""
    options = {"eval": ["--data", data_file], "train": ["--data", data_file, "--epochs", "1"]}
    options["export"] = ["--target", "onnxruntime", "-o", tmp_path / "out"]
    (folder / "forward.onnx").write_bytes((folder / "int_eval.onnx").read_bytes())
    refused(
        f"{folder / 'forward.onnx'}: not the file that manifest.json was written with", command, folder, *options.get(command, [])
    )


def test_bad_input_is_one_line_and_writes_nothing(folder: Path, data_file: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.npz"
    junk.write_bytes(b"PK junk")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    before = files(tmp_path)
    training = ("train", folder, "--epochs", "1")
    refused("no such folder", "train", tmp_path / "absent", "--data", data_file, "--epochs", "1")
    refused("no such data", *training, "--data", tmp_path / "absent.npz")
    refused("junk.npz: not a readable .npz", *training, "--data", junk)
    refused("Missing option '--data'", *training)
    refused("Missing option '--epochs'", "train", folder, "--data", data_file)
    refused("'fast' is not a valid float", *training, "--data", data_file, "--lr", "fast")
    refused("rounds to 0", *training, "--data", data_file, "--lr", "0.0001")
    refused("gradient range 5", *training, "--data", data_file, "--gradient-range", "5")
    refused("'128;8' is not a comma-separated list of whole", *training, "--data", data_file, "--gradient-range", "128;8")
    refused("no meaning with --float", *training, "--data", data_file, "--float", "--gradient-range", "8")
    refused("no such checkpoint", *training, "--data", data_file, "--resume")
    refused(
        "junk.safetensors: not a readable",
        "eval",
        folder,
        "--data",
        data_file,
        "--state",
        tmp_path / "junk.safetensors",
    )
    refused("No such command 'trian'", "trian", folder)
    refused("No such option", "eval", folder, "--fastest")
    refused("no such folder", "bench", "step", tmp_path / "absent")
    assert files(tmp_path) == before


def test_no_arguments_show_the_help() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.output


# ---- commands over parts of the package that other tests cover: here, only the seam ----


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts a module with the given attributes in place."""

    def place(name: str, **attributes: Any) -> None:
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return place


def test_convert_hands_over_every_option(pretend: Callable[..., None], data_file: Path, tmp_path: Path) -> None:
    calls: list[Any] = []

    def convert(model: Path, config: Any, out: Path) -> Any:
        calls.append((model, config, out))
        notes = ["optimizer: AdamW is\nnot kept"]
        return SimpleNamespace(summary=lambda: [("forward", 3, 0, 1234), ("int_training", 30, 9, 5678)], notes=notes)

    pretend("wageubn_onnx.pipeline", convert=convert)
    options = ["--batch", "8", "--mean", ".1,.2,.3", "--std", "1,2,3", "--scale", "1", "--momentum", "0.8"]
    options += ["--calibrate", str(data_file), "--calibrate-images", "5", "--expose-gradients", "--weight-decay", "0"]
    options += ["--keep-folded"]
    options += ["--freeze", "conv1", "--freeze", "layer1.*", "--train-last", "3", "--bn", "frozen", "--num-classes", "7"]
    result = run("convert", "m.onnx", "-o", tmp_path / "o", *options, "--json")
    assert result.exit_code == 0, result.output
    ((model, config, out),) = calls
    assert (model, out) == (Path("m.onnx"), tmp_path / "o")
    assert (config.batch, config.mean, config.std, config.scale) == (8, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 1.0)
    assert (config.momentum, config.weight_decay, config.expose_gradients, config.keep_folded) == (0.8, 0.0, True, True)
    assert (config.freeze, config.train_last, config.bn, config.num_classes) == (("conv1", "layer1.*"), 3, "frozen", 7)
    assert config.calibrate.shape == (5, 1, 2, 2)
    assert config.profile.name == "full8"
    assert json.loads(result.stdout)["stages"][1] == {
        "stage": "int_training", "nodes": 30, "quantizers": 9, "bytes": 5678,
    }  # fmt: skip
    assert json.loads(result.stdout)["notes"] == ["optimizer: AdamW is\nnot kept"]
    text = run("convert", "m.onnx", "-o", tmp_path / "o")
    assert text.exit_code == 0
    assert text.stderr == "note: optimizer: AdamW is not kept\n"
    assert "int_training" in text.stdout
    assert calls[1][1].mean == (0.0,)
    assert (calls[1][1].freeze, calls[1][1].train_last, calls[1][1].bn, calls[1][1].num_classes) == ((), None, "batch", None)
    options = ["--preset", "imagenet", "--std", "0.5", "--image-size", "64", "--layout", "nhwc"]
    assert run("convert", "m.onnx", "-o", tmp_path / "o", *options).exit_code == 0
    config = calls[2][1]
    assert (config.mean, config.std, config.image_size, config.layout) == ((0.485, 0.456, 0.406), (0.5,), (64, 64), "nhwc")
    assert run("convert", "m.onnx", "-o", tmp_path / "o", "--image-size", "32,48").exit_code == 0
    assert calls[3][1].image_size == (32, 48)
    refused("image size (1, 2, 3)", "convert", "m.onnx", "-o", tmp_path / "o", "--image-size", "1,2,3")
    refused("batch 0", "convert", "m.onnx", "-o", tmp_path / "o", "--batch", "0")
    refused("train-last 0", "convert", "m.onnx", "-o", "o", "--train-last", "0")
    refused("num-classes 1", "convert", "m.onnx", "-o", "o", "--num-classes", "1")
    refused("'running' is not one of 'batch', 'frozen'", "convert", "m.onnx", "-o", "o", "--bn", "running")
    refused("'a,b' is not a comma-separated list of numbers", "convert", "m.onnx", "-o", "o", "--mean", "a,b")


def test_errors_of_convert_are_one_line(pretend: Callable[..., None], tmp_path: Path) -> None:
    import onnx

    (tmp_path / "junk.onnx").write_bytes(b"junkjunk")

    def convert(model: Path, config: Any, out: Path) -> Any:
        onnx.load(model)

    pretend("wageubn_onnx.pipeline", convert=convert)
    refused("junk.onnx: not an ONNX model", "convert", tmp_path / "junk.onnx", "-o", tmp_path / "o")
    refused("absent.onnx: No such file", "convert", tmp_path / "absent.onnx", "-o", tmp_path / "o")

    def refuse(model: Path, config: Any, out: Path) -> Any:
        raise WageubnError("node conv1: Conv is 3-D;\nonly 2-D")

    pretend("wageubn_onnx.pipeline", convert=refuse)
    refused("error: node conv1: Conv is 3-D; only 2-D", "convert", "m.onnx", "-o", tmp_path / "o")


def test_audit_exits_with_one_where_something_is_found(pretend: Callable[..., None], folder: Path) -> None:
    def audit(path: Path) -> Any:
        bad = path.name == "int_eval.onnx"
        findings = [SimpleNamespace(kind="dtype", where="node a", message="float32 on a data path")] if bad else []
        return SimpleNamespace(ok=not bad, findings=findings, coverage={"nodes": 7}, float_parameters=[], uncompared=[])

    def audit_folder(folder: Any, with_session: bool) -> Any:
        return [(path, audit(path)) for path in map(folder.model, ("step", "eval"))]

    pretend("wageubn_onnx.proofs.audit", audit=audit, audit_folder=audit_folder)
    passed = run("audit", folder / "int_training.onnx")
    assert passed.exit_code == 0
    assert "integers only" in passed.stdout
    failed = run("audit", folder)
    assert failed.exit_code == 1
    assert "dtype: node a: float32 on a data path" in failed.stdout
    answer = json.loads(run("audit", folder, "--json").stdout)
    assert not answer["ok"]
    assert [model["ok"] for model in answer["models"]] == [True, False]
    assert answer["models"][1]["findings"][0]["where"] == "node a"
    assert answer["models"][0]["coverage"] == {"nodes": 7}


def test_passes_lists_the_pipeline(pretend: Callable[..., None]) -> None:
    step = SimpleNamespace(name="loss", file="passes/training/loss.py", summary="append the loss")
    stage = SimpleNamespace(name="fp_training", summary="a float step", passes=[step])
    narrow = SimpleNamespace(name="narrow", file="passes/targets/narrow.py", summary="work on 8 bits")
    pretend("wageubn_onnx.pipeline", STAGES=[stage])
    pretend("wageubn_onnx.passes.targets.table", PASSES={"iree": (narrow,)})
    text = run("passes")
    assert text.exit_code == 0
    assert "append the loss" in text.stdout and "target iree" in text.stdout and "work on 8 bits" in text.stdout
    assert json.loads(run("passes", "--json").stdout) == [
        {"stage": "fp_training", "summary": "a float step", "passes": [vars(step)]},
        {"target": "iree", "summary": "what `export` makes of int_training", "passes": [vars(narrow)]},
    ]


def test_bench_compares_the_steps(folder: Path) -> None:
    result = run("bench", "step", folder, "--rounds", "3", "--steps", "2", "--no-torch", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["batch"] == 4
    assert [ratio["against"] for ratio in answer["ratios"]] == ["FP32, onnxruntime"]
    ratio = answer["ratios"][0]
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["greatest"]
    assert [len(contender["seconds"]) for contender in answer["contenders"]] == [3, 3]
    assert [contender["state_bytes"] for contender in answer["contenders"]] == [52, 48]
    assert all(contender["peak_bytes"] > 2**20 for contender in answer["contenders"])


def test_an_environment_without_onnxruntime_training_is_named(tmp_path: Path) -> None:
    """Neither a Python that is not there nor one that lacks it."""
    source, made = tmp_path / "tiny.onnx", tmp_path / "made"
    onnx.save(networks.tiny(), source)
    assert run("convert", source, "-o", made, "--batch", "4").exit_code == 0
    for python, said in ((tmp_path / "python", "cannot be run"), (sys.executable, "benchmark of FP32, onnxruntime-training: ")):
        refused(said, "bench", "step", made, "--no-torch", "--training-python", python)


def test_a_failing_contender_is_named(folder: Path) -> None:
    (folder / "int_training.onnx").write_bytes(b"junk")
    seal(folder, peek(folder))
    refused("benchmark of integer, onnxruntime: ", "bench", "step", folder, "--no-torch")


# -- export and verify ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tiny_artifacts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny"
    tiny_artifacts.save(path)
    return path


def test_export_writes_a_folder_and_says_what_is_wrong(converted: Path, tmp_path: Path) -> None:
    result = run("export", converted, "--target", "onnxruntime", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "README.md says how to use it" in result.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["target"]["name"] == "onnxruntime"
    refused("target nothing: unknown", "export", converted, "--target", "nothing", "-o", tmp_path / "other")
    refused("no such folder", "export", tmp_path / "absent", "--target", "onnxruntime", "-o", tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_export_lists_its_targets() -> None:
    result = run("export", "--list")
    assert result.exit_code == 0
    assert "onnxruntime" in result.output


def test_verify_exits_with_1_on_a_difference(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wageubn_onnx.export import verify

    result = run("verify", converted, "--targets", "interpreter", "--steps", "1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["difference"] is None
    difference, place = verify.Difference(2, "loss", [], 7, 8), verify.Place("kernel Div", "loss/mean (Div)", "mean")
    monkeypatch.setattr(verify, "verify", lambda *_: iter([verify.Row("c", "gcc", 3, 10, difference, place=place)]))
    result = run("verify", converted)
    assert result.exit_code == 1
    told = "step 2, loss[]: 8, not 7; first at tensor mean, made by node loss/mean (Div); the fault is of kernel Div"
    assert told in " ".join(result.output.split())


def broken(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("\x1b[31m" + "x" * 1000)


def test_a_fault_of_ours_is_told_from_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wageubn_onnx.inspect.summary.inspect_file", broken)
    result = run("inspect", tmp_path / "any.onnx")
    assert result.exit_code == 3
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: a fault of wageubn-onnx itself (ZeroDivisionError: \\x1b[31mxxx")
    assert "please report it" in result.stderr and "--debug" in result.stderr
    assert len(result.stderr) < 600
    shown = run("--debug", "inspect", tmp_path / "any.onnx")
    assert shown.exit_code == 3
    assert "Traceback (most recent call last)" in shown.stderr and "in broken" in shown.stderr
    assert "\x1b" not in shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("error: a fault of wageubn-onnx itself")
    assert run("inspect", tmp_path / "any.onnx").stderr.count("\n") == 1  # --debug was of that call


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("wageubn_onnx.inspect.summary.inspect_file", full)
    refused("out of memory", "inspect", tmp_path / "any.onnx")


def test_export_takes_what_targets_declare() -> None:
    shown = CliRunner().invoke(cli, ["export", "--help"], terminal_width=1000).stdout
    for target in TARGETS:
        for name, option in target.options.items():
            assert re.search(rf"--{name}\b.*{target.name}: {re.escape(option.meaning)}", shown), name
    refused = CliRunner().invoke(cli, ["export", "DIR", "--target", "c", "-o", "out", "--portable"])
    assert refused.stderr == "error: target c has no option 'portable'; it has: budget\n"


def test_without_a_checkout_bench_measures_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = {"accuracy", "convert", "diff"}
    context = click.Context(bench)
    assert project < set(bench.list_commands(context))
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert not project & set(bench.list_commands(context))
    for name in project:
        refused = CliRunner().invoke(cli, ["bench", name])
        assert refused.exit_code == 2 and refused.stderr.startswith(f"error: {tmp_path}: no checkout of wageubn-onnx")

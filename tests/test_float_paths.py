"""Profiles that leave data paths in float: the quantized step runs without them, and no other path loses its quantizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.experiments import ABLATIONS
from networks import BATCH, MEAN, STD, TOPOLOGIES, images, labels
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, node_tag
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import PATHS, load_profile
from wageubn_onnx.runtime.session import FloatSession, QuantizedSession, TrainingSession

ARMS = [arm.name.removeprefix("quant:") for arm in ABLATIONS if "-" in arm.name]
Placed = set[tuple[str, str]]  # layer, role


def converted(name: str, folder: Path, topology: str = "tiny", **options: Any) -> Artifacts:
    onnx.save(TOPOLOGIES[topology](), folder / "net.onnx")
    config = Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, profile=load_profile(name), **options)
    return convert(folder / "net.onnx", config, folder / "out")


def placed(model: onnx.ModelProto) -> Placed:
    """Where quantizers stand; the softmax's tables and the random bits are none."""
    calls = [n for n in model.graph.node if n.domain == DOMAIN and any(a.name == "role" for a in n.attribute)]
    return {(node_tag(n).layer, node_tag(n).role) for n in calls}


def expected(model: onnx.ModelProto) -> Placed:
    (entry,) = (p.value for p in model.metadata_props if p.key == "wageubn.expected")
    return {(layer, role) for layer, roles in json.loads(entry).items() for role in roles}


def steps(folder: Path, count: int = 3) -> list[float]:
    """Losses of some steps; every state and the logits of inference stay finite."""
    session = QuantizedSession(folder, threads=1)
    losses = [session.step(images(seed=n), labels(seed=n), lr=0.1, seed=n).loss for n in range(count)]
    values = [*session.state().values(), session.evaluate(images(5)).logits]
    assert all(np.isfinite(v).all() for v in values)
    return losses


@pytest.mark.parametrize("name", [*ARMS, *(f"full8-{path}" for path in PATHS), "sq8s-E1", "full8-gamma-beta"])
def test_a_step_with_a_path_in_float_trains(name: str, tmp_path: Path) -> None:
    made, whole = converted(name, tmp_path), load_profile("full8")
    assert np.isfinite(steps(tmp_path / "out")).all()
    model, free = made.files["quant_training"], {p for p, f in load_profile(name).formats.items() if f.is_float}
    roles = {role for _, role in placed(model)}
    assert free and not free & roles
    assert expected(model) <= placed(model)
    assert {p for p in PATHS if not whole.format(p).is_float} - free <= roles | {"S", "E.acc", "U", "BN.running", "BN.K", *free}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_with_every_path_in_float_nothing_is_quantized(topology: str, tmp_path: Path) -> None:
    """The forward half is then that of `fp_training`: the first loss is equal up to float32's rounding."""
    made = converted("-".join(("full8", *PATHS)), tmp_path, topology)
    assert placed(made.files["quant_training"]) == placed(made.files["quant_eval"]) == set()
    sessions = QuantizedSession(tmp_path / "out"), FloatSession(tmp_path / "out")
    losses = [session.step(images(), labels(), lr=0.01).loss for session in sessions]
    assert losses[0] == pytest.approx(losses[1], rel=2**-11)
    assert np.isfinite(steps(tmp_path / "out")).all()


def test_only_what_depends_on_a_path_goes_with_it(tmp_path: Path, tiny_artifacts: Artifacts) -> None:
    every = placed(tiny_artifacts.files["quant_training"])
    without = {
        "E2": {"E2", "E.acc", "G.decay"},
        "W": {"W", "E.acc"},
        "E1": {"E1", "BN.K", "BN.B"},
        "gamma": {"gamma", "BN.ratio"},
        "BN.A": {"BN.A", "BN.ratio", "BN.K", "BN.B"},
        "C": {"C"},
        "BN.mu": {"BN.mu"},
        "loss": {"loss", "S.t", "S.p"},
    }
    for path, roles in without.items():
        (tmp_path / path).mkdir()
        left = placed(converted(f"full8-{path}", tmp_path / path).files["quant_training"])
        rectified = {("head", "G.decay")}  # its error comes straight from a ReLU, on the grid of that Q_E1
        assert left - rectified == {(layer, role) for layer, role in every if role not in roles} - rectified, path


def test_a_layer_s_path_in_float_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'extends = "full8"\n[layers.first.W]\nfunction = "float"\n[layers.last.U]\nfunction = "float"\n'
    )
    model = converted(str(tmp_path / "own.toml"), tmp_path).files["quant_training"]
    assert expected(model) <= placed(model)
    assert {layer for layer, role in placed(model) if role == "W"} == {"a1", "a2", "b1", "b2", "b_short", "head", "fc"}
    assert {layer for layer, role in placed(model) if role == "U.W"} == {"stem", "a1", "a2", "b1", "b2", "b_short", "head"}


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile without an integer form, converted over one with."""
    folder = tmp_path_factory.mktemp("float")
    converted("full8", folder)
    converted("full8-W", folder)
    return folder / "out"


def test_a_folder_without_integers_has_none(unquantized: Path) -> None:
    names = {p.name for p in unquantized.iterdir()}
    assert names == {
        *(f"{stage}.onnx" for stage in ("forward", "fp_training", "quant_training", "quant_eval")),
        *("manifest.json", "quant_state.safetensors", "fp_state.safetensors"),
    }
    manifest = json.loads((unquantized / "manifest.json").read_text())
    assert manifest["profile"] == "full8-W" and manifest["formats"]["W"]["function"] == "float"
    assert manifest["step"] is manifest["eval"] is manifest["state"] is None
    assert manifest["exponents"] == {"lr": -9}
    model = onnx.load(unquantized / "quant_training.onnx")
    assert {(e["layer"], e["role"]) for e in manifest["quantizers"]} == placed(model)
    assert {e["node"] for e in manifest["quantizers"]} <= {n.name for n in model.graph.node}


@pytest.mark.parametrize("command", [["audit"], ["bench", "step"], ["train", "--epochs", "1"], ["eval"]], ids=" ".join)
def test_what_needs_integers_says_so_in_one_line(command: list[str], unquantized: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x_train=images(8), y_train=labels(8), x_test=images(4), y_test=labels(4))
    options = ["--data", str(data)] if command[0] in ("train", "eval") else []
    result = CliRunner().invoke(cli, [*command, str(unquantized), *options])
    assert result.exit_code == 2
    assert "profile full8-W has no integer form; convert with another profile" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_integers_and_their_health_are_refused(unquantized: Path, tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="has no integer form"):
        TrainingSession(unquantized)
    with pytest.raises(WageubnError, match="profile full8-W has no integer step"):
        converted("full8-W", tmp_path, health=True)


def test_a_rate_in_float_has_no_grid(tmp_path: Path) -> None:
    converted("full8-lr", tmp_path)
    assert QuantizedSession(tmp_path / "out").smallest_rate == 0.0

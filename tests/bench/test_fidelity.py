"""The fidelity reports: the measures themselves, that like is compared with like, and what the commands say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from networks import BATCH, CLASSES, MEAN, STD, images, labels, tiny
from wageubn_onnx.bench.fidelity import compare, forward_fidelity, gradient_fidelity
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.pipeline import convert
from wageubn_onnx.training.data import Dataset, save_data


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset(images(16), labels(16), images(80, seed=1), labels(80, seed=1))


@pytest.fixture(scope="module")
def data_file(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    save_data(data, path)
    return path


@pytest.fixture(scope="module")
def plain_folder(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted without gradients."""
    folder = tmp_path_factory.mktemp("plain") / "tiny"
    convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD), folder)
    return folder


def test_compare_knows_angle_and_length() -> None:
    x = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert compare(2 * x, x) == pytest.approx((1, 2))
    assert compare(-x, x) == pytest.approx((-1, 1))
    assert compare(x[::-1], x) == pytest.approx((0, 1))
    assert compare(0 * x, x) == (0, 0)


def test_gradients_are_near_and_nearer_towards_the_loss(tiny_folder: Path, data: Dataset) -> None:
    """Every layer's errors have passed the quantizers of all layers above it."""
    found = {entry.key: entry for entry in gradient_fidelity(tiny_folder, data, 4)}
    assert {"stem.weight", "stem_bn.weight", "stem_bn.bias", "head.weight", "fc.weight"} < set(found)
    for entry in found.values():
        assert entry.cosine is not None and entry.cosine > 0.5, entry
        assert entry.ratio == pytest.approx(1, abs=0.5), entry
    assert found["fc.bias"].cosine > 0.999 and found["fc.weight"].cosine > 0.99
    assert found["fc.weight"].cosine > found["stem.weight"].cosine


def test_powers_of_two_in_front_of_bn_change_nothing(tiny_folder: Path, data: Dataset, tmp_path: Path) -> None:
    """Conversion scales these weights to one grid, so the integer gradients are equal; the comparison must see that."""
    model = tiny()
    factors = {"stem.weight": 4.0, "stem_bn.running_mean": 4.0, "stem_bn.running_var": 16.0}
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            value = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    (bn,) = (node for node in model.graph.node if node.name == "stem_bn")
    bn.attribute.append(onnx.helper.make_attribute("epsilon", 16e-5))  # 16 times the default
    onnx.save(model, tmp_path / "scaled.onnx")
    convert(
        tmp_path / "scaled.onnx",
        Config(batch=BATCH, mean=MEAN, std=STD, expose_gradients=True),
        tmp_path / "scaled",
    )
    for report in (lambda folder: gradient_fidelity(folder, data, 1), lambda folder: forward_fidelity(folder, data, 32)):
        for one, two in zip(report(tiny_folder), report(tmp_path / "scaled"), strict=True):
            values = [[v for v in vars(entry).values() if isinstance(v, float)] for entry in (one, two)]
            assert values[0] == pytest.approx(values[1], rel=1e-4), (one, two)


def test_forward_loses_layer_by_layer(tiny_folder: Path, data: Dataset) -> None:
    found = {(entry.layer, entry.role): entry.decibels for entry in forward_fidelity(tiny_folder, data, 80)}
    assert {role for _, role in found} >= {"I", "C", "A", "Z"}
    decibels = [value for value in found.values() if value is not None]
    assert min(decibels) > 10
    # the image has 8 bits, uniform noise in +-half a grid step (Bennett): well above what several layers leave
    assert found["input", "I"] == max(decibels) and 25 < found["input", "I"] < 50


def test_every_place_of_the_forward_half_is_compared(tiny_folder: Path, data: Dataset) -> None:
    manifest = json.loads((tiny_folder / "manifest.json").read_text())
    expected = [(q["layer"], q["role"]) for q in manifest["quantizers"] if q["role"] in ("I", "C", "A", "S", "Z")]
    assert [(entry.layer, entry.role) for entry in forward_fidelity(tiny_folder, data, 4)] == expected


def test_a_folder_without_gradients_is_refused(plain_folder: Path, data: Dataset) -> None:
    with pytest.raises(WageubnError, match="convert the model again with --expose-gradients"):
        gradient_fidelity(plain_folder, data, 1)


def test_too_few_images_are_refused(tiny_folder: Path, data: Dataset) -> None:
    few = Dataset(data.x_train[: BATCH - 1], data.y_train[: BATCH - 1], data.x_test, data.y_test)
    with pytest.raises(WageubnError, match="fewer than the 4 of one step"):
        gradient_fidelity(tiny_folder, few, 1)


@pytest.mark.parametrize("command", ["gradients", "forward"])
def test_commands_print_json_tables_and_plots(command: str, tiny_folder: Path, data_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["bench", command, str(tiny_folder), "--data", str(data_file)]
    result = CliRunner().invoke(cli, [*arguments, "--json", "--plot", str(tmp_path / "plot.svg")])
    assert result.exit_code == 0, result.output
    entries = json.loads(result.output)
    assert len(entries) > CLASSES
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
    if command == "forward":
        assert entries == sorted(entries, key=lambda entry: entry["decibels"])
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0 and "stem" in table.output
    wrong = CliRunner().invoke(cli, [*arguments, "--plot", str(tmp_path / "plot.pdf")])
    assert wrong.exit_code == 2 and "give a name in .svg or .png" in wrong.output


def test_a_plot_without_matplotlib_names_the_extra(
    tiny_folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    arguments = ["bench", "forward", str(tiny_folder), "--data", str(data_file), "--plot", str(tmp_path / "plot.svg")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and "wageubn-onnx[plots]" in result.output

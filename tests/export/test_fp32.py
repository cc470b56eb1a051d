"""Back to FP32: into the source's own file, operand by operand, or in this project's spelling with a note that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from networks import BATCH, CLASSES, MEAN, STD, TOPOLOGIES, Net, images, labels, relative, run_ort, to_float
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.export import export
from wageubn_onnx.pipeline import convert
from wageubn_onnx.runtime.session import TrainingSession

Array = np.ndarray[Any, Any]
DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"
# Weights lie on 2^-23 with their greatest in [1/2, 1): as fine as float32. Running means lie 8 bits below a 16-bit grid,
# 2^-23 of its reach, running variances finer than that. So nothing is further off than some units of float32's last place,
# 2^-24, a layer: a few 1e-6 for ten layers.
ROUNDED = 1e-5


def written(source: onnx.ModelProto, path: Path, state: bool = False, **config: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The fp32 export of a network, from its own file; with ``state`` after two steps of training."""
    onnx.save(source, path / "net.onnx")
    convert(path / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, **config), path / "net")
    trained = None
    if state:
        session = TrainingSession(path / "net", threads=1)
        for seed in range(2):
            session.step(images(seed=seed), labels(seed=seed), lr=0.1)
        trained = path / "trained.safetensors"
        session.save(trained)
    out = export(path / "net", "fp32", path / "out", trained, source=path / "net.onnx")
    return onnx.load(out / "model.onnx"), json.loads((out / "manifest.json").read_text())


def logits(model: onnx.ModelProto, pixels: Array) -> Array:
    (found,) = run_ort(model, {model.graph.input[0].name: to_float(pixels).astype(np.float32)}).values()
    return found


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_before_training_it_is_the_source(topology: str, tmp_path: Path) -> None:
    source = TOPOLOGIES[topology]()
    model, manifest = written(source, tmp_path, keep_folded=True)
    assert manifest["notes"] == [] and manifest["eval"]["images"] == "x"
    assert [n.SerializeToString() for n in model.graph.node] == [n.SerializeToString() for n in source.graph.node]
    assert [t.name for t in model.graph.initializer] == [t.name for t in source.graph.initializer]
    assert relative(logits(model, images(64)), logits(source, images(64))) < ROUNDED


@pytest.mark.parametrize("topology", ["tiny", "grouped", "odd"])
def test_after_training_it_is_the_trained_network(topology: str, tmp_path: Path) -> None:
    """As `forward.onnx` with the same state computes it; and no longer the source."""
    source = TOPOLOGIES[topology]()
    model, _ = written(source, tmp_path, state=True, keep_folded=True)
    forward = onnx.load(export(tmp_path / "net", "fp32", tmp_path / "forward", tmp_path / "trained.safetensors") / "model.onnx")
    pixels = images(64)
    assert relative(logits(model, pixels), logits(forward, pixels)) < ROUNDED
    assert relative(logits(model, pixels), logits(source, pixels)) > 100 * ROUNDED


def spelled_otherwise() -> onnx.ModelProto:
    """Shared parameters, a Constant, an Identity, a dense layer as MatMul and Add, old enough to list initializers as inputs."""
    net = Net()
    gamma, beta = net.tensor("gamma", np.linspace(0.5, 1.5, 6)), net.tensor("beta", np.linspace(-0.2, 0.3, 6))
    mean = net.node("Constant", name="mean", value=numpy_helper.from_array(np.linspace(-0.1, 0.1, 6, dtype=np.float32)))
    variance = net.node("Identity", net.tensor("variance", np.linspace(0.5, 1.5, 6)), name="same")
    x = "x"
    for name, channels in (("a", 3), ("b", 6)):
        x = net.conv(x, name, channels, 6, bias=True)
        x = net.relu(net.node("BatchNormalization", x, gamma, beta, mean, variance, name=f"{name}_bn"))
    x = net.node("Flatten", net.node("GlobalAveragePool", x, name="gap"), name="flatten")
    x = net.node("MatMul", x, net.uniform("kernel", -1, 1, 6, CLASSES), name="dense")
    x = net.node("Add", x, net.uniform("offset", -0.3, 0.3, CLASSES), name="dense_bias")
    model = net.model(x, listed=True, opset=9)
    model.ir_version = 3
    return model


def test_a_parameter_that_two_layers_share_becomes_two(tmp_path: Path) -> None:
    source = spelled_otherwise()
    model, manifest = written(source, tmp_path, state=True)
    forward = onnx.load(export(tmp_path / "net", "fp32", tmp_path / "forward", tmp_path / "trained.safetensors") / "model.onnx")
    assert manifest["notes"] == []
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in source.graph.node]
    onnx.checker.check_model(model)
    first, second = (n for n in model.graph.node if n.op_type == "BatchNormalization")
    assert not set(first.input[1:]) & set(second.input[1:])
    assert relative(logits(model, images(64)), logits(forward, images(64))) < ROUNDED


def scaled() -> onnx.ModelProto:
    """A scale between convolution and BN, which the conversion multiplies into the weights."""
    net = Net()
    x = net.node("Mul", net.conv("x", "a", 3, 6), net.tensor("half", 0.5), name="scale")
    x = net.relu(net.bn(x, "a_bn", 6))
    return net.model(net.gemm(net.node("Flatten", net.node("GlobalAveragePool", x, name="gap"), name="flatten"), 6, CLASSES))


@pytest.mark.parametrize(
    ("source", "config", "key"),
    [
        (scaled, {}, "a.weight"),
        (TOPOLOGIES["tiny"], {"num_classes": 7}, "fc.weight"),
        (TOPOLOGIES["folded"], {"calibrate": images(16)}, "stem.bn.weight"),
    ],
)
def test_what_has_no_place_is_said_in_one_note(source: Any, config: dict[str, Any], key: str, tmp_path: Path) -> None:
    model, manifest = written(source(), tmp_path, state=True, **config)
    assert manifest["notes"][-1] == f"model.onnx is forward.onnx, the same network: {key!r} is spelled otherwise in the source"
    assert manifest["notes"][-1] in (tmp_path / "out" / "README.md").read_text()
    assert logits(model, images(8)).shape == (8, config.get("num_classes", CLASSES))
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in onnx.load(tmp_path / "net" / "forward.onnx").graph.node]


def test_without_the_source_it_is_forward(tiny_folder: Path, tmp_path: Path) -> None:
    out = export(tiny_folder, "fp32", tmp_path / "out")
    (note,) = json.loads((out / "manifest.json").read_text())["notes"]
    assert "--source FILE" in note
    found, started = (
        logits(onnx.load(out / "model.onnx"), images(64)),
        logits(onnx.load(tiny_folder / "forward.onnx"), images(64)),
    )
    assert relative(found, started) < ROUNDED


def test_another_file_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    other = TOPOLOGIES["tiny"](seed=1)
    onnx.save(other, tmp_path / "other.onnx")
    command = [
        "export",
        str(tiny_folder),
        "--target",
        "fp32",
        "-o",
        str(tmp_path / "out"),
        "--source",
        str(tmp_path / "other.onnx"),
    ]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2 and "not the file that was converted; give tiny.onnx" in result.output
    with pytest.raises(WageubnError, match=r"absent.onnx: no such file"):
        export(tiny_folder, "fp32", tmp_path / "out", source=tmp_path / "absent.onnx")
    assert not (tmp_path / "out").exists()


def test_weights_that_only_look_alike_are_told_apart(tmp_path: Path) -> None:
    """A BN whose beta and mean hold the same numbers: each trained value goes to its own operand."""
    source = TOPOLOGIES["tiny"]()
    stored = {t.name: t for t in source.graph.initializer}
    stored["stem_bn.bias"].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(stored["stem_bn.running_mean"]), "stem_bn.bias")
    )
    model, _ = written(source, tmp_path, state=True, keep_folded=True)
    forward = onnx.load(export(tmp_path / "net", "fp32", tmp_path / "forward", tmp_path / "trained.safetensors") / "model.onnx")
    values = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, forward)]
    for key in ("stem_bn.bias", "stem_bn.running_mean"):
        assert np.array_equal(values[0][key], values[1][key])


def accuracy(model: onnx.ModelProto, x: Array, y: Array, mean: Any, std: Any) -> float:
    feeds = to_float(x, mean, std).astype(np.float32)
    image = model.graph.input[0]
    size = image.type.tensor_type.shape.dim[0].dim_value or len(x)
    found = [run_ort_batch(model, image.name, feeds[i : i + size]) for i in range(0, len(x), size)]
    return float((np.concatenate(found).argmax(axis=1) == y).mean())


def run_ort_batch(model: onnx.ModelProto, name: str, x: Array) -> Array:
    (found,) = run_ort(model, {name: x}).values()
    return found


def test_digits_learnt_in_integers_are_known_in_fp32(tmp_path: Path) -> None:
    """Inverted digits, on which the source fails; the FP32 file and both 8-bit forms know what the integer network learnt."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed (extra `demo`)")
    digits = datasets.load_digits()
    x = 255 - np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    y = digits.target.astype(np.int32)
    convert(DIGITS, Config(batch=32, mean=(0.305,), std=(0.376,)), tmp_path / "digits")
    session = TrainingSession(tmp_path / "digits", threads=1)
    for i in range(40):
        session.step(x[32 * i : 32 * i + 32], y[32 * i : 32 * i + 32], lr=0.2)
    session.save(tmp_path / "trained.safetensors")
    test, answers = x[1437:], y[1437:]
    learnt = session.evaluate(test, answers).accuracy
    out = export(tmp_path / "digits", "fp32", tmp_path / "fp32", tmp_path / "trained.safetensors", source=DIGITS)
    found = {"fp32": accuracy(onnx.load(out / "model.onnx"), test, answers, (0.305,), (0.376,))}
    for form in ("qoperator", "qdq"):
        out = export(tmp_path / "digits", "inference", tmp_path / form, tmp_path / "trained.safetensors", form=form)
        found[form] = float((run_ort_batch(onnx.load(out / "model.onnx"), "images", test).argmax(axis=1) == answers).mean())
    assert accuracy(onnx.load(DIGITS), test, answers, (0.305,), (0.376,)) < 0.3 < 0.8 < learnt
    assert all(abs(value - learnt) < 0.03 for value in found.values()), (learnt, found)


def test_the_resnet20_of_another_framework(shared_data: Path, tmp_path: Path) -> None:
    """CIFAR-10: written back into the file as it was, opset 9; 8 bits keep its accuracy to 5 of 932 images."""
    source, data = shared_data / "resnet20_cifar10_opset9.onnx", np.load(shared_data / "cifar10_subset.npz")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    convert(source, Config(batch=16, mean=mean, std=std), tmp_path / "r20")
    model = onnx.load(export(tmp_path / "r20", "fp32", tmp_path / "fp32", source=source) / "model.onnx")
    original = onnx.load(source)
    assert [n.SerializeToString() for n in model.graph.node] == [n.SerializeToString() for n in original.graph.node]
    x, y = data["x_test"], data["y_test"]
    one = to_float(x[:1], mean, std).astype(np.float32)
    name = original.graph.input[0].name
    assert relative(run_ort_batch(model, name, one), run_ort_batch(original, name, one)) < ROUNDED
    wanted = accuracy(onnx.load(tmp_path / "r20" / "forward.onnx"), x, y, mean, std)
    eight = [onnx.load(export(tmp_path / "r20", "inference", tmp_path / f, form=f) / "model.onnx") for f in ("qoperator", "qdq")]
    found = [run_ort_batch(model, "images", x) for model in eight]
    assert np.array_equal(np.ldexp(found[0].astype(np.float32), exponent(tmp_path / "qoperator")), found[1])
    assert abs(float((found[0].argmax(axis=1) == y).mean()) - wanted) <= 5 / 932


def exponent(folder: Path) -> int:
    return int(json.loads((folder / "manifest.json").read_text())["exponents"]["logits"])


def test_initializers_listed_as_inputs_stay_listed(tmp_path: Path) -> None:
    source = Net()
    x = source.relu(source.bn(source.conv("x", "a", 3, 6), "a_bn", 6))
    x = source.node("Flatten", source.node("GlobalAveragePool", x, name="gap"), name="flatten")
    listed = source.model(source.gemm(x, 6, CLASSES), listed=True, opset=9)
    listed.ir_version = 3
    model, manifest = written(listed, tmp_path)
    assert manifest["notes"] == [] and [i.name for i in model.graph.input] == [i.name for i in listed.graph.input]
    assert helper.printable_type(model.graph.input[0].type) == helper.printable_type(listed.graph.input[0].type)

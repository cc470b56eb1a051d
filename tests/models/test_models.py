"""The sample networks are what they claim to be, and the demo runs from start to end."""

from __future__ import annotations

import gzip
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

import resnet
from fashion_mnist import fashion_mnist
from resnet import Architecture, build, fit_statistics, set_parameters
from resnet18 import resnet18
from wageubn_onnx import Config, TrainingSession, audit, convert
from wageubn_onnx.cli import cli
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.training.data import save_data

MODELS = Path(resnet.__file__).parent
TEST_IMAGES = 360
STATED_ACCURACY = 0.99  # of digits_resnet.onnx; one image is 0.0028

NETWORKS = {
    "basic": Architecture((1, 2), (4, 8), 5, (3, 16, 16)),
    "bottleneck": Architecture((2, 1), (4, 8), 5, (3, 16, 16), bottleneck=True),
    "groups": Architecture((2, 1), (16, 32), 5, (3, 16, 16), bottleneck=True, groups=4, width_per_group=16),
    "large_stem": Architecture((1, 1), (4, 8), 5, (1, 32, 32), large_stem=True),
}


def run(model: onnx.ModelProto, images: np.ndarray, *names: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"images": images})


def noise(count: int, architecture: Architecture) -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, (count, *architecture.image)).astype(np.float32)


def parameters(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


# -- resnet.py --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", NETWORKS.values(), ids=NETWORKS)
def test_networks_run_at_any_batch(architecture):
    model = build(architecture)
    for count in (1, 3):
        (logits,) = run(model, noise(count, architecture), "logits")
        assert logits.shape == (count, 5)
        assert np.isfinite(logits).all()
        assert logits.std() > 0


@pytest.mark.parametrize("architecture", NETWORKS.values(), ids=NETWORKS)
def test_networks_convert(architecture, tmp_path):
    onnx.save(build(architecture), tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", Config(batch=2), tmp_path / "net")
    assert audit(tmp_path / "net/int_training.onnx").ok


def test_equal_seeds_give_equal_bytes():
    first, again, other = (build(NETWORKS["basic"], seed).SerializeToString(deterministic=True) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("depths", "options", "count"),  # torchvision's
    [
        ((2, 2, 2, 2), {}, 11_689_512),
        ((3, 4, 6, 3), {"bottleneck": True}, 25_557_032),
        ((3, 4, 6, 3), {"bottleneck": True, "groups": 32, "width_per_group": 4}, 25_028_904),
    ],
    ids=["resnet18", "resnet50", "resnext50_32x4d"],
)
def test_parameters_are_pytorchs_in_number_and_name(depths, options, count):
    model = build(Architecture(depths, (64, 128, 256, 512), 1000, (3, 32, 32), **options, large_stem=True))
    trained = {name: tensor for name, tensor in parameters(model).items() if "running" not in name}
    assert sum(int(np.prod(tensor.dims)) for tensor in trained.values()) == count
    assert {"conv1.weight", "bn1.bias", "layer2.0.downsample.1.weight", "layer4.1.conv2.weight", "fc.bias"} <= set(trained)


def test_weights_are_he_normal():
    weight = onnx.numpy_helper.to_array(parameters(resnet18(10, 32))["layer3.0.conv2.weight"])
    assert weight.mean() == pytest.approx(0, abs=1e-4)
    assert weight.std() == pytest.approx(np.sqrt(2 / (256 * 9)), rel=0.01)


@pytest.mark.parametrize("architecture", NETWORKS.values(), ids=NETWORKS)
def test_fitted_statistics_normalise_their_images(architecture):
    model, images = build(architecture), noise(8, architecture)
    fit_statistics(model, images)
    normalised = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in normalised)
    for name, values in zip(normalised, run(model, images, *normalised), strict=True):
        np.testing.assert_allclose(values.mean((0, 2, 3)), 0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(values.var((0, 2, 3)), 1, atol=1e-3, err_msg=name)  # epsilon takes its share


def test_set_parameters_replaces_what_it_names():
    model = build(NETWORKS["basic"])
    before = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in parameters(model).items()}
    replacement = np.arange(5, dtype=np.float32)
    set_parameters(model, {"fc.bias": replacement, "conv1.weight.momentum": np.zeros(1, np.float32)})
    for name, tensor in parameters(model).items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), replacement if name == "fc.bias" else before[name])


# -- resnet18.py ------------------------------------------------------------------------------------------------------


def test_resnet18_is_the_same_file_every_time(tmp_path):
    subprocess.run([sys.executable, MODELS / "resnet18.py", tmp_path / "a.onnx", "--classes", "10", "--size", "32"], check=True)
    assert (tmp_path / "a.onnx").read_bytes() == resnet18(10, 32).SerializeToString(deterministic=True)


@pytest.mark.slow
def test_resnet18_trains_in_integers_at_its_real_size(tmp_path):
    onnx.save(resnet18(), tmp_path / "resnet18.onnx")
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    convert(tmp_path / "resnet18.onnx", Config(batch=2, **imagenet), tmp_path / "converted")
    for stage in ("int_training", "int_eval"):
        assert audit(tmp_path / f"converted/{stage}.onnx").ok
    session = TrainingSession(tmp_path / "converted")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8)
    losses = [session.step(images, [3, 700], lr=0.1).loss for _ in range(4)]
    assert losses[0] == pytest.approx(np.log(1000), abs=1)  # it knows nothing
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 2


# -- digits_resnet.onnx and the demo ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="the digits come from scikit-learn (extra demo)")
    import digits

    return digits


def test_digits_are_split_without_overlap(digits):
    data = digits.digits()
    assert (len(data.x_train), len(data.x_test)) == (digits.TRAIN_IMAGES, TEST_IMAGES)
    assert data.x_train.dtype == np.uint8
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    assert set(data.y_test) == set(range(10))
    unique = {image.tobytes() for image in np.concatenate([data.x_train, data.x_test])}
    assert len(unique) == digits.TRAIN_IMAGES + TEST_IMAGES
    assert digits.normalised(data.x_train).mean() == pytest.approx(0, abs=0.01)
    assert digits.normalised(data.x_train).std() == pytest.approx(1, abs=0.01)


def test_digits_network_is_as_good_in_integers(digits, tmp_path):
    data = digits.digits()
    file = MODELS / "digits_resnet.onnx"
    assert file.stat().st_size < 300_000
    (logits,) = run(onnx.load(file), digits.normalised(data.x_test), "logits")
    in_float = (logits.argmax(1) == data.y_test).mean()
    assert in_float >= STATED_ACCURACY

    convert(file, Config(mean=digits.MEAN, std=digits.STD), tmp_path / "digits")
    assert audit(tmp_path / "digits/int_training.onnx").ok
    assert audit(tmp_path / "digits/int_eval.onnx").ok
    in_integers = TrainingSession(tmp_path / "digits").evaluate(data.x_test, data.y_test).accuracy
    assert in_integers >= in_float - 0.01


@pytest.mark.slow
def test_digits_network_can_be_trained_again(digits, tmp_path, monkeypatch):
    import train_digits

    monkeypatch.setattr(train_digits, "MODEL", tmp_path / "digits_resnet.onnx")
    train_digits.main()
    data = digits.digits()
    (logits,) = run(onnx.load(tmp_path / "digits_resnet.onnx"), digits.normalised(data.x_test), "logits")
    assert (logits.argmax(1) == data.y_test).mean() >= STATED_ACCURACY


def test_demo_runs_and_its_commands_too(digits, tmp_path):
    demo = [sys.executable, MODELS / "demo.py", tmp_path / "demo", "--epochs", "1"]
    shown = subprocess.run(demo, check=True, capture_output=True, text=True).stdout
    assert shown.count("passed") == 2
    commands = [line for line in shown.split("To try next")[1].splitlines() if "wageubn-onnx" in line]
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(cli, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"


def test_shift_writes_turned_digits(digits, tmp_path):
    data = digits.digits()
    save_data(data, tmp_path / "digits.npz")
    options = ["--invert", "--rotate", "2", "--first", "5"]
    subprocess.run([sys.executable, MODELS / "shift.py", tmp_path / "digits.npz", tmp_path / "out.npz", *options], check=True)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["x_train"], 255 - data.x_train[:5, :, ::-1, ::-1])
        np.testing.assert_array_equal(found["y_test"], data.y_test)


def idx(shape: tuple[int, ...], value: int) -> bytes:
    """A gzipped idx file of unsigned bytes, all ``value``."""
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + bytes([value]) * int(np.prod(shape)))


def test_fashion_mnist_reads_idx_files(tmp_path):
    for part, count in (("train", 3), ("t10k", 2)):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx((count, 28, 28), count))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx((count,), 9))
    data = fashion_mnist(tmp_path)
    assert data.x_train.shape == (3, 1, 28, 28) and data.x_test.shape == (2, 1, 28, 28)
    assert data.x_train.dtype == np.uint8 and (data.x_test == 2).all() and (data.y_train == 9).all()
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(b"not idx at all"))
    with pytest.raises(WageubnError, match="not an idx file"):
        fashion_mnist(tmp_path)
    file.write_bytes(idx((2, 28, 28), 1)[:-20])
    with pytest.raises(WageubnError, match="not a whole gzip file"):
        fashion_mnist(tmp_path)
    file.unlink()
    with pytest.raises(WageubnError, match="install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)

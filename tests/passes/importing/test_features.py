"""BatchNormalization around dense layers: of maps of one pixel, and trained like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources import MAP, WIDTH, assert_same_function, operators, save, stem

from networks import CLASSES, Net, images
from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.config import Config
from wageubn_onnx.pipeline import convert
from wageubn_onnx.proofs.audit import audit_model
from wageubn_onnx.runtime.session import TrainingSession

STEM = ["Conv", "BatchNormalization", "Relu"]
HIDDEN = 6


def pooled(n: Net) -> str:
    return n.node("Flatten", n.node("GlobalAveragePool", stem(n)))


def linear(n: Net, x: str, i: int, o: int, name: str, bias: bool = True) -> str:
    """MatMul and Add, as PyTorch writes a Linear without a bias, or TensorFlow a Dense."""
    y = n.node("MatMul", x, n.uniform(f"{name}.kernel", -0.6, 0.6, i, o), name=name)
    return n.node("Add", y, n.uniform(f"{name}.offset", -0.3, 0.3, o), name=f"{name}_bias") if bias else y


def before(n: Net) -> str:
    return n.gemm(n.bn(pooled(n), "features_bn", WIDTH), WIDTH, CLASSES)


def after(n: Net) -> str:
    return n.bn(n.gemm(pooled(n), WIDTH, CLASSES), "logits_bn", CLASSES)


def hidden(n: Net, bias: bool) -> str:
    x = n.relu(n.bn(linear(n, pooled(n), WIDTH, HIDDEN, "hidden", bias), "hidden_bn", HIDDEN))
    return n.gemm(x, HIDDEN, CLASSES)


def hidden_after_relu(n: Net) -> str:
    x = n.bn(n.relu(linear(n, pooled(n), WIDTH, HIDDEN, "hidden")), "hidden_bn", HIDDEN)
    return n.gemm(x, HIDDEN, CLASSES)


def whole_map(n: Net) -> str:
    x = n.relu(n.bn(linear(n, n.node("Flatten", stem(n)), WIDTH * MAP * MAP, HIDDEN, "hidden"), "hidden_bn", HIDDEN))
    return n.gemm(x, HIDDEN, CLASSES)


POOLED = [*STEM, "GlobalAveragePool"]
DENSE_BN: dict[str, tuple[Callable[[Net], str], list[str]]] = {
    "before the dense layer": (before, [*POOLED, "BatchNormalization", "Flatten", "Gemm"]),
    "after the last one": (after, [*POOLED, "Conv", "BatchNormalization", "Flatten"]),
    "after a hidden one": (lambda n: hidden(n, True), [*POOLED, *STEM, "Flatten", "Gemm"]),
    "after a hidden one without bias": (lambda n: hidden(n, False), [*POOLED, *STEM, "Flatten", "Gemm"]),
    "after a hidden one and its ReLU": (
        hidden_after_relu, [*POOLED, "Conv", "Relu", "BatchNormalization", "Flatten", "Gemm"],
    ),
    "after a dense layer of a whole map": (whole_map, [*STEM, *STEM, "Flatten", "Gemm"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE_BN)
def test_bn_around_a_dense_layer(name: str, tmp_path: Path) -> None:
    build, expected = DENSE_BN[name]
    n = Net(seed=len(name))
    forward = assert_same_function(n.model(build(n)), tmp_path, images(4, seed=3, normalised=True))
    assert operators(forward) == expected


@pytest.mark.parametrize("name", ["before the dense layer", "after the last one", "after a hidden one and its ReLU"])
def test_it_trains_in_integers(name: str, tmp_path: Path) -> None:
    """The step passes the audit, and moves gamma of the dense layer's BN."""
    n = Net(seed=1)
    artifacts = convert(save(n.model(DENSE_BN[name][0](n)), tmp_path), Config(batch=8, keep_folded=True), tmp_path / "out")
    assert not audit_model(artifacts.files["int_training"]).findings
    (gamma,) = (key for key in artifacts.state if key.endswith("_bn.weight"))
    session = TrainingSession(tmp_path / "out")
    labels = np.arange(8) % CLASSES
    losses = [session.step(images(8, seed=1), labels, lr=0.1).loss for _ in range(12)]
    assert losses[-1] < losses[0]
    session.save(tmp_path / "state.safetensors")
    trained, _ = load_tensors(tmp_path / "state.safetensors")
    assert (trained[gamma] != artifacts.state[gamma]).any()


def scaled(n: Net, kind: str, constant_first: bool, *shape: int) -> str:
    logits = n.gemm(pooled(n), WIDTH, CLASSES)
    operands = [logits, n.uniform("c", 0.5, 2, *shape)]
    return n.node(kind, *(operands[::-1] if constant_first else operands))


@pytest.mark.parametrize("shape", [(), (1,), (CLASSES,), (1, CLASSES)])
@pytest.mark.parametrize(
    ("kind", "constant_first"), [("Div", False), ("Sub", False), ("Sub", True), ("Mul", True), ("Add", False)]
)
def test_arithmetic_behind_the_logits(kind: str, constant_first: bool, shape: tuple[int, ...], tmp_path: Path) -> None:
    """A temperature, an offset: in the dense layer's weights and bias."""
    n = Net()
    forward = assert_same_function(n.model(scaled(n, kind, constant_first, *shape)), tmp_path, images(4, normalised=True))
    assert operators(forward) == [*POOLED, "Flatten", "Gemm"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "constant_first"), [("Div", False), ("Sub", True), ("Mul", False), ("Add", True)])
def test_arithmetic_before_the_dense_layer(kind: str, constant_first: bool, bias: bool, tmp_path: Path) -> None:
    n = Net()
    operands = [pooled(n), n.uniform("c", 0.5, 2, WIDTH)]
    x = n.node("Mul", n.node(kind, *(operands[::-1] if constant_first else operands)), n.tensor("two", 2.0))
    forward = assert_same_function(n.model(linear(n, x, WIDTH, CLASSES, "dense", bias)), tmp_path, images(4, normalised=True))
    assert operators(forward) == [*POOLED, "Flatten", "Gemm"]

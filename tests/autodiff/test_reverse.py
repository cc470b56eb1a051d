"""Whole training steps of `fp_training` against PyTorch autograd: loss, every gradient, and the state after momentum SGD.

Both are given the same ReLU masks, those of `fp_training`. A value that float32 rounds to the other side of 0 flips its mask, and
one flip moves some gradients by 1e-3, in PyTorch's float32 against its own float64 too (about every third batch of the trained
ResNet-20). What the masks are is tested apart: they may differ where the value is as small as the rounding only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from networks import BATCH, MEAN, STD, grouped, images, labels, relative, run_ort, tiny, to_float
from torch_network import RULES, TorchNetwork
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.autodiff.reverse import backward, replay
from wageubn_onnx.config import Config
from wageubn_onnx.errors import UnsupportedOperator
from wageubn_onnx.graph import Model
from wageubn_onnx.pipeline import convert

RESNET20_MEAN, RESNET20_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Feeds = dict[str, np.ndarray[Any, Any]]


def with_relu_outputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copy, names


def step(model: onnx.ModelProto, state: Feeds, x: Any, y: Any, lr: float = 0.1) -> tuple[Feeds, list[Any]]:
    """Every output of one step by name, and the masks of its ReLUs in order."""
    probe, names = with_relu_outputs(model)
    found = run_ort(probe, {"images": x, "labels": y, "lr": np.array(lr, np.float32), **state})
    return found, [found.pop(name) > 0 for name in names]


def assert_gradients(artifacts: Artifacts, x: Any, y: Any) -> None:
    found, masks = step(artifacts.files["fp_training"], artifacts.fp_state, x, y)
    network = TorchNetwork(artifacts.files["forward"], torch.float64)
    loss, gradients = network.differentiate(x, y, masks)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    trained = {key.removesuffix(".momentum") for key in artifacts.fp_state if key.endswith(".momentum")}
    assert set(gradients) == trained
    errors = {key: relative(found[f"{key}.gradient"], gradient) for key, gradient in gradients.items()}
    assert max(errors.values()) < 1e-4, errors
    assert all(np.linalg.norm(gradient) > 0 for gradient in gradients.values())
    assert int(found["correct"]) == int((network.logits(x, True, masks).argmax(1).numpy() == y).sum())


def assert_masks(artifacts: Artifacts, x: Any, y: Any) -> None:
    """Where the exact network's ReLU sees another sign, its input is within float32's rounding of 0."""
    _, masks = step(artifacts.files["fp_training"], artifacts.fp_state, x, y)
    given = iter(masks)
    wrong: list[float] = []

    def relu(inputs: list[torch.Tensor], attrs: Any) -> torch.Tensor:
        (value,) = inputs
        mask = torch.tensor(next(given))
        wrong.extend((value[mask != (value > 0)].abs() / value.std()).tolist())
        return value * mask

    network = TorchNetwork(artifacts.files["forward"], torch.float64)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(RULES, "Relu", relu)
        network.logits(x, True)
    total = sum(mask.size for mask in masks)
    assert total > 1000
    assert len(wrong) <= total * 1e-5 + 1
    assert max(wrong, default=0.0) < 1e-4


def with_parameters(artifacts: Artifacts, seed: int) -> Artifacts:
    """The same network with other parameters: each entry times 0.5 to 1.5, signs of gamma at random."""
    random = np.random.default_rng(seed)
    state = {}
    for key, value in artifacts.fp_state.items():
        factor = random.uniform(0.5, 1.5, value.shape).astype(np.float32)
        state[key] = value if key.endswith((".momentum", "running_mean", "running_var")) else value * factor
    return replace(artifacts, parameters={key: state[key] for key in artifacts.parameters}, fp_state=state)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_the_tiny_network(tiny_artifacts: Artifacts, seed: int) -> None:
    artifacts = with_parameters(tiny_artifacts, seed) if seed else tiny_artifacts
    assert_gradients(artifacts, images(seed=seed, normalised=True), labels(seed=seed))
    assert_masks(artifacts, images(seed=seed, normalised=True), labels(seed=seed))


def test_gradients_of_grouped_convolutions(tmp_path: Path) -> None:
    onnx.save(grouped(), tmp_path / "grouped.onnx")
    artifacts = convert(
        tmp_path / "grouped.onnx", Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, expose_gradients=True)
    )
    assert_gradients(artifacts, images(normalised=True), labels())


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 1e-2), (0.5, 0.0)])
def test_three_steps_of_momentum_sgd(tmp_path: Path, momentum: float, weight_decay: float) -> None:
    onnx.save(tiny(3), tmp_path / "tiny.onnx")
    config = Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, momentum=momentum, weight_decay=weight_decay)
    artifacts = convert(tmp_path / "tiny.onnx", config)
    network = TorchNetwork(artifacts.files["forward"], torch.float64)
    accumulators = {key: torch.zeros_like(value) for key, value in network.parameters.items()}
    state = artifacts.fp_state
    for count, lr in enumerate((0.05, 0.1, 0.02)):
        x, y = images(seed=count, normalised=True), labels(seed=count)
        found, masks = step(artifacts.files["fp_training"], state, x, y, lr)
        state = {key: found[f"{key}.next"] for key in state}
        loss, gradients = network.differentiate(x, y, masks)
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        for key, parameter in network.parameters.items():
            decay = weight_decay if key in network.weights else 0.0
            gradient = torch.tensor(gradients[key]) + decay * parameter.detach()
            accumulators[key] = momentum * accumulators[key] + gradient
            parameter.data -= lr * accumulators[key]
    expected = {k: p.detach() for k, p in network.parameters.items()} | network.statistics
    expected |= {f"{key}.momentum": value for key, value in accumulators.items()}
    assert set(expected) == set(state)
    errors = {key: relative(state[key], value.numpy()) for key, value in expected.items()}
    assert max(errors.values()) < 1e-4, errors
    for key, parameter in network.parameters.items():  # and each of them moved by more than that
        assert relative(artifacts.fp_state[key], parameter.detach().numpy()) > 1e-3, key


def test_running_statistics_use_the_biased_variance(tiny_artifacts: Artifacts) -> None:
    """ONNX divides by n where PyTorch's own BatchNorm divides by n - 1: with n = 36 they differ by 3 %."""
    x, y = images(normalised=True), labels()
    found, _ = step(tiny_artifacts.files["fp_training"], tiny_artifacts.fp_state, x, y)
    network = TorchNetwork(tiny_artifacts.files["forward"])
    network.logits(x, True)
    assert len(network.statistics) == 12
    for key, value in network.statistics.items():
        assert relative(found[f"{key}.next"], value.numpy()) < 1e-5, key


def test_a_parameter_without_influence_is_not_forgotten(tiny_artifacts: Artifacts) -> None:
    """A bias that a BN follows is folded into its running mean: no state, no gradient, no momentum of its own."""
    assert not any(key.startswith("a1.bias") for key in tiny_artifacts.fp_state)
    assert "fc.bias.momentum" in tiny_artifacts.fp_state


def test_an_operator_without_a_rule_is_refused_by_name() -> None:
    forward, target = Model.empty("forward", "net"), Model.empty("fp_training", "net")
    x = forward.input("images", np.float32, [1, 1, 2, 2])
    forward.op("Exp", x, name="odd")
    bound = {"images": target.input("images", np.float32, [1, 1, 2, 2])}
    with pytest.raises(UnsupportedOperator, match="node 'odd': operator Exp has no gradient rule"):
        replay(forward, target, bound, training=True)


def test_errors_that_meet_are_summed() -> None:
    """y = x + x: dL/dx = 2 dL/dy, summed in a node of role E.sum; a branch that y does not read gets nothing."""
    forward, target = Model.empty("forward", "net"), Model.empty("fp_training", "net")
    x = forward.input("images", np.float32, [1, 1, 2, 2])
    forward.op("Relu", x, name="aside")
    y = forward.op("Add", x, x, name="y")
    bound = {"images": target.input("images", np.float32, [1, 1, 2, 2])}
    tape = replay(forward, target, bound, training=True)
    seed = target.input("dy", np.float32, [1, 1, 2, 2])
    errors = backward(target, tape, seed, bound[y.name], ["images"])
    assert set(errors) == {bound[y.name].name, "images"}
    assert target.tag(errors["images"]).role == "E.sum"


@pytest.fixture(scope="module")
def resnet20(shared_data: Path) -> Artifacts:
    config = Config(batch=4, mean=RESNET20_MEAN, std=RESNET20_STD, expose_gradients=True)
    return convert(shared_data / "resnet20_cifar10_opset9.onnx", config)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_the_trained_resnet20(resnet20: Artifacts, shared_data: Path, seed: int) -> None:
    x = np.load(shared_data / "cifar10_subset.npz")["x_train"][4 * seed : 4 * seed + 4]
    y = labels(4, seed, classes=10)  # random ones: the true labels' gradients are near 0
    assert_gradients(resnet20, to_float(x, RESNET20_MEAN, RESNET20_STD), y)
    assert_masks(resnet20, to_float(x, RESNET20_MEAN, RESNET20_STD), y)

"""The `forward` stage of whole networks computes what its source does; what cannot be trained is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sources import MAP, WIDTH, assert_same_function, head, imported, kinds, save, stem

import networks
from networks import CLASSES, MEAN, STD, Net, images, run_ort, tiny, to_float
from wageubn_onnx.config import Config
from wageubn_onnx.errors import UnsupportedOperator, WageubnError
from wageubn_onnx.graph import node_tag
from wageubn_onnx.pipeline import convert


@pytest.mark.parametrize("build", [tiny, networks.grouped])
@pytest.mark.parametrize("seed", range(3))
def test_a_whole_network(seed: int, build: Callable[[int], onnx.ModelProto], tmp_path: Path) -> None:
    source = build(seed)
    forward = assert_same_function(source, tmp_path, images(6, seed, normalised=True))
    assert sorted(kinds(forward)) == sorted(kinds(source))


def test_the_trained_resnet20(shared_data: Path) -> None:
    """Its Flatten is a chain of Shape, Gather, Concat and Reshape, its batch fixed to 1."""
    path = shared_data / "resnet20_cifar10_opset9.onnx"
    pixels = np.load(shared_data / "cifar10_subset.npz")["x_test"][:4]
    x = to_float(pixels, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    source = onnx.load(path)
    name = source.graph.input[0].name
    expected = np.concatenate([next(iter(run_ort(source, {name: image[None]}).values())) for image in x])
    found = run_ort(imported(path), {"images": x})["logits"]
    assert abs(found - expected).max() < 1e-5 * abs(expected).max()


def test_a_bias_before_bn_moves_into_its_mean(tmp_path: Path) -> None:
    n = Net()
    logits = head(n, n.relu(n.bn(n.conv("x", "conv", 3, WIDTH, bias=True), "bn", WIDTH)))
    before = {t.name: numpy_helper.to_array(t) for t in n.tensors}
    forward = assert_same_function(n.model(logits), tmp_path, images(4, normalised=True))
    after = {t.name: numpy_helper.to_array(t) for t in forward.graph.initializer}
    assert "conv.bias" not in after
    np.testing.assert_array_equal(after["bn.running_mean"], before["bn.running_mean"] - before["conv.bias"])


def test_a_bias_that_others_see_stays(tmp_path: Path) -> None:
    """The convolution's output is read by a BN and by a residual sum."""
    n = Net()
    y = n.conv(stem(n), "conv2", WIDTH, WIDTH, bias=True)
    forward = assert_same_function(n.model(head(n, n.node("Add", y, n.bn(y, "bn2", WIDTH)))), tmp_path, images(normalised=True))
    assert "conv2.bias" in {t.name for t in forward.graph.initializer}


@pytest.mark.parametrize("shape", [(), (1,), (CLASSES,), (1, CLASSES)])
def test_a_dense_bias_of_any_shape_becomes_one_a_class(shape: tuple[int, ...], tmp_path: Path) -> None:
    n = Net()
    x = n.node("Flatten", n.node("GlobalAveragePool", stem(n)))
    y = n.node("Gemm", x, n.uniform("kernel", -1, 1, CLASSES, WIDTH), n.uniform("offset", 0.5, 1, *shape), transB=1)
    forward = assert_same_function(n.model(y), tmp_path, images(normalised=True))
    (bias,) = (t for t in forward.graph.initializer if t.name == "offset")
    assert list(bias.dims) == [CLASSES]


def test_a_dense_layer_without_bias(tmp_path: Path) -> None:
    n = Net()
    x = n.node("Flatten", n.node("GlobalAveragePool", stem(n)))
    assert_same_function(
        n.model(n.node("Gemm", x, n.uniform("k", -1, 1, CLASSES, WIDTH), transB=1)), tmp_path, images(normalised=True)
    )


def test_ceil_mode_that_changes_nothing(tmp_path: Path) -> None:
    n = Net()
    x = n.node("MaxPool", stem(n), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    assert_same_function(n.model(head(n, x)), tmp_path, images(normalised=True))


def test_parameters_stay_overridable_and_nodes_say_what_they_are(tmp_path: Path) -> None:
    forward = imported(save(tiny(), tmp_path))
    assert [i.name for i in forward.graph.input][0] == "images"
    assert {i.name for i in forward.graph.input[1:]} == {t.name for t in forward.graph.initializer}
    layers = {node_tag(node).layer for node in forward.graph.node}
    assert {"stem", "stem_bn", "a1", "b_short_bn", "fc", "maxpool", "gap"} <= layers


# -- refusals -------------------------------------------------------------------------------------------------------------


def network(build: Callable[[Net, str], str]) -> Callable[[Net], str]:
    return lambda n: head(n, build(n, stem(n)))


def shared_weight(n: Net) -> str:
    x, w = stem(n), n.uniform("twice.weight", -1, 1, WIDTH, WIDTH, 1, 1)
    return head(n, n.node("Conv", n.node("Conv", x, w, name="first"), w, name="second"))


def negative_variance(n: Net) -> str:
    logits = head(n, stem(n))
    (index,) = (i for i, t in enumerate(n.tensors) if t.name == "bn.running_var")
    n.tensors[index] = numpy_helper.from_array(np.array([1, 1, -0.5, 1], np.float32), "bn.running_var")
    return logits


def grouped(group: int, *weights: int) -> Callable[[Net], str]:
    return network(lambda n, x: n.node("Conv", x, n.uniform("depth", -1, 1, *weights), name="depthwise", group=group))


def computed_weight(n: Net, x: str) -> str:
    """Two images, which serve as two filters."""
    return n.node("Conv", x, n.node("MaxPool", x, kernel_shape=[2, 2]), name="dynamic")


def turned_gemm(n: Net) -> str:
    x = n.node("Flatten", n.node("GlobalAveragePool", stem(n)))
    return n.node("Gemm", x, n.uniform("k", -1, 1, 7, WIDTH), name="turned", transA=1)


REFUSALS: dict[str, tuple[Callable[[Net], str], tuple[str, ...]]] = {
    "an unknown operator": (network(lambda n, x: n.node("Sigmoid", x, name="gate")), ("'gate'", "Sigmoid", "supported: ")),
    "a product of activations": (network(lambda n, x: n.node("Mul", x, x, name="square")), ("'square'", "Mul")),
    "relu6": (network(lambda n, x: n.node("Clip", x, n.tensor("lo", 0), n.tensor("hi", 6), name="relu6")), ("'relu6'", "Clip")),
    "a softmax inside": (network(lambda n, x: n.node("Softmax", x, axis=1, name="attention")), ("'attention'", "Softmax")),
    "no BN left": (
        lambda n: head(n, n.relu(n.conv("x", "folded", 3, WIDTH, bias=True))),
        ("folded at export, at 'folded'; pass", "--calibrate DATA", "--keep-folded", "export again"),
    ),
    "groups of another size": (
        grouped(WIDTH, WIDTH, 2, 3, 3), ("'depthwise'", "Conv of 4 channels with weights [4, 2, 3, 3] in 4 groups")
    ),
    "groups that share an output": (
        grouped(2, 5, 2, 3, 3), ("'depthwise'", "Conv of 4 channels with weights [5, 2, 3, 3] in 2 groups")
    ),
    "a shared weight": (shared_weight, ("'second'", "'twice.weight'", "shared with another node")),
    "a computed weight": (network(computed_weight), ("'dynamic'", "is computed, not stored")),
    "a negative variance": (negative_variance, ("'bn'", "'bn.running_var'", "negative")),
    "a broadcast sum": (
        network(lambda n, x: n.node("Add", x, n.node("GlobalAveragePool", x), name="spread")), ("'spread'", "equal shapes")
    ),
    "a partial last window, with pads that count": (
        network(lambda n, x: n.node("AveragePool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4,
                                    ceil_mode=1, count_include_pad=1)),
        ("'pool'", "counts pads"),
    ),
    "a dilated pool": (
        network(lambda n, x: n.node("MaxPool", x, name="pool", kernel_shape=[2, 2], dilations=[2, 2])),
        ("'pool'", "MaxPool with dilations"),
    ),
    "a kernel beyond the map": (
        network(lambda n, x: n.conv(x, "big", WIDTH, WIDTH, k=9, pads=[0] * 4)), ("'big'", "kernel [9, 9] does not fit")
    ),
    "a Gemm of a turned operand": (turned_gemm, ("'turned'", "Gemm with alpha")),
}  # fmt: skip


def refused(path: Path, *words: str, config: Config | None = None) -> None:
    with pytest.raises(WageubnError) as caught:
        convert(path, config or Config(batch=2))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_what_is_wrong(name: str, tmp_path: Path) -> None:
    build, words = REFUSALS[name]
    n = Net()
    refused(save(n.model(build(n)), tmp_path), *words)


def test_a_missing_rule_has_its_own_exception(tmp_path: Path) -> None:
    n = Net()
    with pytest.raises(UnsupportedOperator):
        imported(save(n.model(head(n, n.node("Tanh", stem(n)))), tmp_path))


@pytest.mark.parametrize("shape", [("N", WIDTH, MAP, MAP)])
def test_an_output_that_is_no_row_of_logits_is_refused(shape: tuple[Any, ...], tmp_path: Path) -> None:
    n = Net()
    x = stem(n)
    refused(save(n.model(x, shape=shape), tmp_path), "it must be logits [N, classes]", x)


def test_two_outputs_are_refused(tmp_path: Path) -> None:
    n = Net()
    x = stem(n)
    model = n.model(head(n, x))
    model.graph.output.append(onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, ["N", WIDTH, MAP, MAP]))
    refused(save(model, tmp_path), "one output of logits [N, classes]", x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.5, 0.5)}, ("mean has 2 values and the image 3 channels", "one a channel")),
        ({"std": (0.5,) * 4}, ("std has 4 values and the image 3 channels",)),
        ({"calibrate": np.zeros((2, 3, 8, 8), np.uint8)}, ("calibration images are [3, 8, 8]", "[3, 12, 12]")),
    ],
)
def test_normalisation_that_does_not_fit_the_image_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    refused(save(tiny(), tmp_path), *words, config=Config(batch=2, **changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch": 0}, "batch 0"),
        ({"std": (0.0,)}, "greater than 0"),
        ({"std": (-1.0,)}, "greater than 0"),
        ({"scale": 0.0}, "greater than 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"std": (float("inf"),)}, "finite"),
    ],
)
def test_options_without_meaning_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(WageubnError, match=word):
        Config(**changes)


def test_one_mean_and_std_serve_all_channels(tmp_path: Path) -> None:
    path = save(tiny(), tmp_path)
    one = convert(path, Config(batch=2, mean=(0.5,), std=(0.25,)))
    three = convert(path, Config(batch=2, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert one.files == three.files
    assert one.files["int_eval"] != convert(path, Config(batch=2, mean=MEAN, std=STD)).files["int_eval"]

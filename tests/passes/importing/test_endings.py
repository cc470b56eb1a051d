"""What a network ends in: logits that softmax trains, features under a new head, or a refusal that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from sources import MAP, WIDTH, assert_same_function, operators, save, stem

from networks import CLASSES, Net, images, run_ort
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import to_proto
from wageubn_onnx.passes.importing.forward import import_forward
from wageubn_onnx.pipeline import FORWARD, convert
from wageubn_onnx.proofs.audit import audit_model

BACKBONE = ["Conv", "BatchNormalization", "Relu"]


def dense(n: Net, classes: int) -> str:
    return n.gemm(n.node("Flatten", n.node("GlobalAveragePool", stem(n))), WIDTH, classes)


def squeezed(n: Net) -> str:
    return n.node("Squeeze", n.node("Sigmoid", dense(n, 1), name="probability"), n.tensor("one", [1], np.int64), name="answer")


def pooled(n: Net, flat: bool) -> str:
    x = n.node("GlobalAveragePool", stem(n), name="gap")
    return n.node("Flatten", x, name="flat") if flat else x


def averaged(n: Net) -> str:
    return n.node("ReduceMean", stem(n), n.tensor("axes", [2, 3], np.int64), name="mean", keepdims=0)


# name: (builder, shape of the output, words of the refusal)
ENDINGS: dict[str, tuple[Callable[[Net], str], tuple[Any, ...], tuple[str, ...]]] = {
    "one logit": (lambda n: dense(n, 1), (1,), ("output 'fc.out' is [N, 1], one logit", "--num-classes 2")),
    "one logit and Sigmoid": (
        lambda n: n.node("Sigmoid", dense(n, 1), name="probability"), (1,), ("'probability'", "one logit", "--num-classes 2")
    ),
    "one logit without its axis": (squeezed, (), ("'answer'", "one logit", "--num-classes 2")),
    "several labels": (
        lambda n: n.node("Sigmoid", dense(n, CLASSES), name="labels"), (CLASSES,), ("'labels'", "several labels", "--num-classes")
    ),
    "a map": (stem, (WIDTH, MAP, MAP), ("[N, 4, 6, 6], a map", "backbone without a classifier", "--num-classes")),
    "a map of one pixel": (lambda n: pooled(n, False), (WIDTH, 1, 1), ("output 'gap.out' is [N, 4, 1, 1]", "--num-classes")),
    "pooled features": (lambda n: pooled(n, True), (WIDTH,), ("output 'flat.out' is [N, 4], pooled features", "--num-classes")),
    "averages": (averaged, (WIDTH,), ("output 'mean.out' is [N, 4], pooled features", "backbone without a classifier")),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_what_softmax_cannot_train_is_refused(name: str, tmp_path: Path) -> None:
    build, shape, words = ENDINGS[name]
    n = Net()
    with pytest.raises(WageubnError) as caught:
        convert(save(n.model(build(n), shape=("N", *shape)), tmp_path), Config(batch=2))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ENDINGS)
def test_it_takes_a_new_head(name: str, tmp_path: Path) -> None:
    build, shape, _ = ENDINGS[name]
    n = Net()
    model = FORWARD(save(n.model(build(n), shape=("N", *shape)), tmp_path), Config(batch=2, num_classes=3))
    proto = to_proto(model, {"logits": model.named["logits"]})
    assert operators(proto) == [*BACKBONE, "GlobalAveragePool", "Flatten", "Gemm"]
    assert run_ort(proto, {"images": images(5, normalised=True)})["logits"].shape == (5, 3)
    assert model.notes["classes"] == 3


def test_a_head_stands_on_the_backbone_s_features(tmp_path: Path) -> None:
    """logits = features W^T + 0, under a name of its own; the step passes the audit."""
    n = Net()
    source = n.model(pooled(n, True), shape=("N", WIDTH))
    x = images(4, seed=1, normalised=True)
    (features,) = run_ort(source, {"x": x}).values()
    artifacts = convert(save(source, tmp_path), Config(batch=4, num_classes=3))
    assert artifacts.parameters["head.weight"].shape == (3, WIDTH)
    assert not artifacts.parameters["head.bias"].any()
    model = FORWARD(tmp_path / "source.onnx", Config(batch=4, num_classes=3))
    logits = run_ort(to_proto(model, {"logits": model.named["logits"]}), {"images": x})["logits"]
    assert abs(logits - features @ artifacts.parameters["head.weight"].T).max() < 1e-5
    assert not audit_model(artifacts.files["int_training"]).findings


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    n = Net()
    x = n.relu(n.bn(n.conv("x", "head", 3, WIDTH), "bn", WIDTH))
    model = FORWARD(save(n.model(x, shape=("N", WIDTH, 12, 12)), tmp_path), Config(batch=2, num_classes=3))
    assert model.states["head2.weight"].value.shape == (3, WIDTH)


def test_a_convolution_whose_maps_are_averaged_classifies(tmp_path: Path) -> None:
    n = Net()
    x = n.node("Flatten", n.node("GlobalAveragePool", n.conv(stem(n), "classes", WIDTH, CLASSES, k=1, bias=True)))
    forward = assert_same_function(n.model(x), tmp_path, images(4, normalised=True))
    assert operators(forward) == [*BACKBONE, "Conv", "GlobalAveragePool", "Flatten"]
    with pytest.raises(WageubnError, match="only a Gemm can be replaced"):
        FORWARD(tmp_path / "source.onnx", Config(batch=2, num_classes=3))


def test_of_several_heads_the_last_is_advised(tmp_path: Path) -> None:
    n = Net()
    x = stem(n)
    first = n.gemm(n.node("Flatten", n.node("GlobalAveragePool", x)), WIDTH, CLASSES, "auxiliary")
    x = n.relu(n.bn(n.conv(x, "deep", WIDTH, WIDTH), "deep_bn", WIDTH))
    model = n.model(n.gemm(n.node("Flatten", n.node("GlobalAveragePool", x)), WIDTH, CLASSES, "main"))
    model.graph.output.append(onnx.helper.make_tensor_value_info(first, T.FLOAT, ["N", CLASSES]))
    with pytest.raises(WageubnError) as caught:
        import_forward(save(model, tmp_path), Config())
    assert "it has 'main.out' [N, 5], 'auxiliary.out' [N, 5]" in str(caught.value)
    assert "extract_model(FILE, NEW, ['x'], ['main.out'])" in str(caught.value)
    onnx.utils.extract_model(str(tmp_path / "source.onnx"), str(tmp_path / "one.onnx"), ["x"], ["main.out"])  # as it says
    assert import_forward(tmp_path / "one.onnx", Config()).notes["classes"] == CLASSES


def test_an_output_that_no_image_reaches(tmp_path: Path) -> None:
    n = Net()
    model = n.model(n.gemm(n.tensor("features", np.ones((1, WIDTH))), WIDTH, CLASSES))
    with pytest.raises(WageubnError, match="'fc.out' does not depend on the image"):
        import_forward(save(model, tmp_path), Config())

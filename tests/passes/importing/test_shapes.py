"""Sizes that the file leaves open, and what exporters compute from sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from sources import WIDTH, assert_same_function, head, imported, operators, save, stem

from networks import CLASSES, SIZE, Net, images
from wageubn_onnx.errors import WageubnError

PLAIN = ["Conv", "BatchNormalization", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize("dims", [(3, "H", "W"), (3, SIZE, None), (3, "size", "size")])
def test_a_size_that_is_open_is_asked_for(dims: tuple[Any, ...], tmp_path: Path) -> None:
    n = Net()
    source = n.model(head(n, stem(n)), dims=dims)
    with pytest.raises(WageubnError, match="input 'x'.*--image-size") as caught:
        imported(save(source, tmp_path))
    assert "\n" not in str(caught.value)
    assert_same_function(source, tmp_path, images(3, normalised=True), image_size=(SIZE, SIZE))


def test_another_size_than_the_file_s(tmp_path: Path) -> None:
    """A network that averages over its map takes any."""
    n = Net()
    forward = imported(save(n.model(head(n, stem(n))), tmp_path), image_size=(20, 16))
    assert [d.dim_value for d in forward.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 20, 16]


def test_channels_that_are_open_are_those_of_the_first_convolution(tmp_path: Path) -> None:
    n = Net()
    assert_same_function(n.model(head(n, stem(n)), dims=("C", SIZE, SIZE)), tmp_path, images(3, normalised=True))


def test_a_reshape_to_one_image(tmp_path: Path) -> None:
    """[1, -1] is right in a file for one image; `forward` takes any number."""
    n = Net()
    flat = n.node("Reshape", n.node("GlobalAveragePool", stem(n)), n.tensor("shape", [1, -1], np.int64))
    forward = assert_same_function(n.model(n.gemm(flat, WIDTH, CLASSES), batch=1), tmp_path, images(1, normalised=True))
    assert operators(forward) == PLAIN


def test_shapes_of_which_only_a_part_is_taken(tmp_path: Path) -> None:
    """Shape(start, end) of a weight, expanded to a bias: what an unoptimised export has."""
    n = Net()
    weight = n.uniform("second.weight", -1, 1, WIDTH, WIDTH, 3, 3)
    filters = n.node("Shape", weight, start=0, end=1)
    bias = n.node("Expand", n.node("CastLike", n.tensor("half", 0.5, np.float64), "x"), filters)
    y = n.node("Conv", stem(n), weight, bias, name="second", pads=[1] * 4)
    forward = assert_same_function(n.model(head(n, n.relu(n.bn(y, "bn2", WIDTH)))), tmp_path, images(2, normalised=True))
    assert operators(forward) == [*PLAIN[:3], *PLAIN]


def test_weights_by_constant_of_shape_and_identity(tmp_path: Path) -> None:
    """Running means of zeros; one gamma that two BNs have through Identities."""
    n = Net()
    zeros = n.node("ConstantOfShape", n.tensor("size", [WIDTH], np.int64))
    gamma, beta, ones = (n.uniform(name, 0.5, 1.5, WIDTH) for name in ("gamma", "beta", "variance"))
    x = "x"
    for name, channels in (("first", 3), ("second", WIDTH)):
        x = n.conv(x, name, channels, WIDTH)
        x = n.relu(n.node("BatchNormalization", x, n.node("Identity", gamma), beta, zeros, ones, name=f"{name}_bn"))
    forward = assert_same_function(n.model(head(n, x)), tmp_path, images(2, normalised=True))
    assert operators(forward) == [*PLAIN[:3], *PLAIN]
    assert len(forward.graph.initializer) == 2 + 2 * 4 + 2


def test_large_weights_in_constant_nodes(tmp_path: Path) -> None:
    n = Net()
    source = n.model(head(n, n.relu(n.bn(n.conv("x", "wide", 3, WIDTH, k=11), "bn", WIDTH))))
    (large,) = (t for t in source.graph.initializer if t.name == "wide.weight")
    node = helper.make_node("Constant", [], ["wide.weight"], "stored")
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(numpy_helper.to_array(large))))
    source.graph.initializer.remove(large)
    source.graph.node.insert(0, node)
    assert_same_function(source, tmp_path, images(2, normalised=True))


def test_half_precision_is_refused(tmp_path: Path) -> None:
    n = Net()
    source = n.model(head(n, stem(n)))
    for tensor in source.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    source.graph.input[0].type.tensor_type.elem_type = T.FLOAT16
    with pytest.raises(WageubnError, match="input 'x' is float16"):
        imported(save(source, tmp_path))

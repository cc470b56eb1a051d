"""Channels in another order, or one image thrice, are in the first convolution's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import WIDTH, assert_same_function, head, imported, operators, parameters, save

from networks import SIZE, Net, images
from wageubn_onnx.errors import WageubnError

PLAIN = ["Conv", "BatchNormalization", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
NORMALISED = ["BatchNormalization", *PLAIN]


def ints(n: Net, *values: int) -> str:
    return n.tensor(f"ints{len(n.tensors)}", values, np.int64)


def reversed_slice(n: Net, axis: int = 1) -> str:
    return n.node("Slice", "x", ints(n, -1), ints(n, -(2**63)), ints(n, axis), ints(n, -1), name="bgr")


def gathered(n: Net, x: str = "x", axis: int = 1, name: str = "bgr") -> str:
    return n.node("Gather", x, ints(n, 2, 1, -3), axis=axis, name=name)


def sliced(n: Net) -> str:
    parts = [n.node("Slice", "x", ints(n, i), ints(n, i + 1), ints(n, 1)) for i in (2, 1, 0)]
    return n.node("Concat", *parts, axis=1)


def split(n: Net, axis: int = 1) -> str:
    node = n.node("Split", "x", ints(n, 1, 1, 1), axis=axis)
    n.nodes[-1].output.extend(["second", "third"])
    return n.node("Concat", "third", "second", node, axis=axis)


def stacked(n: Net) -> str:
    """torch.stack([x[:, 2], x[:, 1], x[:, 0]], 1)"""
    picks = [n.node("Gather", "x", n.tensor(f"pick{i}", i, np.int64), axis=1) for i in (2, 1, 0)]
    return n.node("Concat", *[n.node("Unsqueeze", pick, ints(n, 1)) for pick in picks], axis=1)


def shuffled(n: Net) -> str:
    """Channels in groups, the groups interleaved: three groups of one, whose shuffle is nothing, and two of three."""
    twice = n.node("Concat", "x", gathered(n), axis=1)
    grouped = n.node("Reshape", twice, ints(n, -1, 2, 3, SIZE, SIZE))
    return n.node("Reshape", n.node("Transpose", grouped, perm=[0, 2, 1, 3, 4]), ints(n, -1, 6, SIZE, SIZE))


def normalised(n: Net, x: str, *shape: int) -> str:
    x = n.node("Sub", x, n.uniform("mean", 0.3, 0.6, *shape))
    return n.node("Div", x, n.uniform("std", 0.2, 0.4, *shape))


def tiled(n: Net) -> str:
    return n.node("Tile", "x", ints(n, 1, 3, 1, 1), name="grey")


def expanded(n: Net) -> str:
    return n.node("Expand", "x", ints(n, 1, 3, 1, 1), name="grey")


def thrice(n: Net) -> str:
    return n.node("Concat", "x", "x", "x", axis=1, name="grey")


def network(n: Net, x: str, channels: int = 3, **attrs: Any) -> str:
    return head(n, n.relu(n.bn(n.conv(x, "conv", channels, WIDTH, strides=[2, 2], **attrs), "bn", WIDTH)))


# name: (channels of the image, channels that the convolution reads, what lies between, expected operators)
SPELLINGS: dict[str, tuple[int, int, Callable[[Net], str], list[str]]] = {
    "slice with step -1": (3, 3, reversed_slice, PLAIN),
    "gather": (3, 3, gathered, PLAIN),
    "two gathers, which undo each other": (3, 3, lambda n: gathered(n, gathered(n), name="rgb"), PLAIN),
    "slices and concat": (3, 3, sliced, PLAIN),
    "split and concat": (3, 3, split, PLAIN),
    "gathers of one and unsqueeze": (3, 3, stacked, PLAIN),
    "copies, shuffled": (3, 6, shuffled, PLAIN),
    "order, then normalisation a channel": (3, 3, lambda n: normalised(n, gathered(n), 1, 3, 1, 1), NORMALISED),
    "normalisation a channel, then order": (3, 3, lambda n: gathered(n, normalised(n, "x", 3, 1, 1)), NORMALISED),
    "order, then padding": (3, 3, lambda n: n.node("Pad", gathered(n), ints(n, 0, 0, 1, 1, 0, 0, 1, 1)), PLAIN),
    "order, then BN": (3, 3, lambda n: n.bn(gathered(n), "image_bn", 3), NORMALISED),
    "order, then a pool": (
        3, 3, lambda n: n.node("MaxPool", gathered(n), kernel_shape=[3, 3], pads=[1] * 4), ["MaxPool", *PLAIN],
    ),
    "one image tiled": (1, 3, tiled, PLAIN),
    "one image expanded": (1, 3, expanded, PLAIN),
    "one image thrice": (1, 3, thrice, PLAIN),
    "one image thrice, normalised alike": (1, 3, lambda n: normalised(n, thrice(n)), NORMALISED),
    "one image, normalised, thrice": (
        1, 3, lambda n: n.node("Expand", normalised(n, "x"), ints(n, 1, 3, 1, 1)), NORMALISED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_selection_goes_into_the_convolution(name: str, tmp_path: Path) -> None:
    given, read, build, expected = SPELLINGS[name]
    n = Net(seed=len(name), shape=(given, SIZE, SIZE))
    x = images(4, seed=2)[:, :given].astype(np.float32) / 255
    forward = assert_same_function(n.model(network(n, build(n), read)), tmp_path, x)
    assert operators(forward) == expected
    assert parameters(forward)["conv.weight"].shape[1] == given


@pytest.mark.parametrize("build", [lambda n: reversed_slice(n, 3), lambda n: gathered(n, axis=3), lambda n: split(n, -1)])
def test_channels_last(build: Callable[[Net], str], tmp_path: Path) -> None:
    n = Net(shape=(SIZE, SIZE, 3))
    x = n.node("Transpose", build(n), perm=[0, 3, 1, 2])
    forward = assert_same_function(n.model(network(n, x)), tmp_path, images(4, normalised=True), nhwc=True)
    assert operators(forward) == PLAIN


def test_the_weights_are_the_reordered_ones(tmp_path: Path) -> None:
    n = Net()
    model = n.model(network(n, gathered(n)))
    (before,) = (
        np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in model.graph.initializer if t.name == "conv.weight"
    )
    np.testing.assert_array_equal(parameters(imported(save(model, tmp_path)))["conv.weight"], before[:, ::-1])


def test_copies_that_are_normalised_differently(tmp_path: Path) -> None:
    """No weights of one channel do that: at the border the copies' offsets are padded with zeros."""
    n = Net(shape=(1, SIZE, SIZE))
    with pytest.raises(WageubnError, match="'grey': operator Expand .* copies must be normalised alike") as caught:
        imported(save(n.model(network(n, normalised(n, expanded(n), 1, 3, 1, 1))), tmp_path))
    assert "\n" not in str(caught.value)


def test_groups_keep_their_channels(tmp_path: Path) -> None:
    n = Net()
    with pytest.raises(WageubnError, match="'bgr': operator Gather"):
        imported(save(n.model(network(n, n.conv(gathered(n), "depth", 3, 3, group=3))), tmp_path))


def test_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    """A flipped image is no selection of channels."""
    n = Net()
    with pytest.raises(WageubnError, match="'bgr': operator Slice"):
        imported(save(n.model(network(n, reversed_slice(n, 2))), tmp_path))

"""A node that contradicts itself is refused, whichever of the two a runtime would believe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sources import WIDTH, head, imported, save, stem

from networks import CLASSES, Net
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.pipeline import convert

Build = Callable[[Net], str]


def conv(**attrs: Any) -> Build:
    return lambda n: head(n, n.node("Conv", stem(n), n.uniform("w", -1, 1, WIDTH, WIDTH, 3, 3), name="odd", **attrs))


def biased(count: int) -> Build:
    def build(n: Net) -> str:
        return head(
            n, n.node("Conv", stem(n), n.uniform("w", -1, 1, WIDTH, WIDTH, 3, 3), n.uniform("b", 0, 1, count), name="odd")
        )

    return build


def pool(kind: str, **attrs: Any) -> Build:
    return lambda n: head(n, n.node(kind, stem(n), name="odd", **attrs))


def bn(count: int = WIDTH, variance: float = 1.0, **attrs: Any) -> Build:
    def build(n: Net) -> str:
        x = n.conv("x", "conv", 3, WIDTH)
        parameters = [n.tensor(name, np.full(count, value)) for name, value in (("g", 1), ("b", 0), ("m", 0), ("v", variance))]
        return head(n, n.relu(n.node("BatchNormalization", x, *parameters, name="odd", **attrs)))

    return build


def dense(rows: int, bias: int) -> Build:
    def build(n: Net) -> str:
        x = n.node("Flatten", n.node("GlobalAveragePool", stem(n)))
        return n.node("Gemm", x, n.uniform("w", -1, 1, CLASSES, rows), n.uniform("b", -1, 1, bias), name="odd", transB=1)

    return build


def flatten(axis: int) -> Build:
    return lambda n: n.gemm(n.node("Flatten", n.node("GlobalAveragePool", stem(n)), name="odd", axis=axis), WIDTH, CLASSES)


NAN, INF = float("nan"), float("inf")
CONTRADICTIONS: dict[str, tuple[Build, tuple[str, ...]]] = {
    "a kernel unlike the weights": (conv(kernel_shape=[5, 5]), ("kernel_shape [5, 5]", "weights [4, 4, 3, 3]")),
    "a kernel of another rank": (conv(kernel_shape=[3]), ("kernel_shape [3]",)),
    "a stride of 0": (conv(strides=[0, 1]), ("strides [0, 1]",)),
    "strides of one axis": (conv(strides=[2]), ("strides [2]",)),
    "a dilation of 0": (conv(dilations=[1, 0]), ("dilations [1, 0]",)),
    "pads below 0": (conv(pads=[0, -1, 0, 0]), ("pads [0, -1, 0, 0]",)),
    "no group": (conv(group=0), ("in 0 groups",)),
    "groups that do not share evenly": (conv(group=3), ("of 4 channels", "in 3 groups")),
    "an unknown auto_pad": (conv(auto_pad="SAME"), ("auto_pad 'SAME'",)),
    "a bias for other filters": (biased(WIDTH + 1), ("bias [5]",)),
    "a pool of a stride below 0": (pool("MaxPool", kernel_shape=[2, 2], strides=[-1, 1]), ("strides [-1, 1]",)),
    "a pool of no pixels": (pool("AveragePool", kernel_shape=[0, 2]), ("kernel_shape [0, 2]",)),
    "a pool of padding alone": (
        pool("AveragePool", kernel_shape=[2, 2], pads=[0, 2, 0, 1]),
        ("pads [0, 2, 0, 1]", "padding alone"),
    ),
    "pads beyond int32": (conv(pads=[2**33] * 4), ("with pads", "has no rule")),
    "epsilon below 0": (bn(epsilon=-1e-3), ("epsilon -0.001", "negative")),
    "epsilon that is no number": (bn(epsilon=NAN), ("epsilon nan",)),
    "epsilon without end": (bn(epsilon=INF), ("epsilon inf",)),
    "epsilon near the end": (bn(epsilon=3e38), ("epsilon 3e+38", "beyond 2^60")),
    "a variance and epsilon of 0": (bn(variance=0.0, epsilon=0.0), ("divides by 0", "'v'")),
    "a momentum above 1": (bn(momentum=1.5), ("momentum 1.5",)),
    "a momentum below 0": (bn(momentum=-0.1), ("momentum -0.1",)),
    "BN of other channels": (bn(count=WIDTH + 1), ("gamma [5]",)),
    "features for another dense layer": (dense(WIDTH + 2, CLASSES), ("4 features for 6",)),
    "a bias for other classes": (dense(WIDTH, CLASSES - 1), ("bias [4]",)),
    "an axis that a map has not": (flatten(5), ("axis 5",)),
    "an axis that mixes images": (flatten(2), ("from axis 2 mixes images",)),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused(name: str, tmp_path: Path) -> None:
    build, words = CONTRADICTIONS[name]
    n = Net()
    with pytest.raises(WageubnError) as caught:
        imported(save(n.model(build(n)), tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for word in ("'odd'", *words):
        assert word in message, message


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_weights_that_are_no_numbers(bad: float, dtype: Any, tmp_path: Path) -> None:
    """However they are stored."""
    n = Net()
    stored = n.random.uniform(-1, 1, (WIDTH, 3, 3, 3)).astype(dtype)
    stored[0, 1, 2, 0] = bad
    weight = n.node("Cast", n.tensor("stored", stored, dtype), to=onnx.TensorProto.FLOAT)
    with pytest.raises(WageubnError, match="'stored' hold NaN or infinity"):
        imported(save(n.model(head(n, n.relu(n.bn(n.node("Conv", "x", weight), "bn", WIDTH)))), tmp_path))


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, NAN, INF, 1.0])
def test_options_that_contradict_themselves(name: str, value: float) -> None:
    with pytest.raises(WageubnError, match=name.replace("_", "-")):
        Config(**{name: value})


@pytest.mark.parametrize("changes", [{"mean": (-0.5,)}, {"mean": (INF,)}, {"std": (NAN,)}, {"scale": -1.0}, {"scale": NAN}])
def test_pixels_that_cannot_be_so(changes: dict[str, Any]) -> None:
    with pytest.raises(WageubnError, match=next(iter(changes))):
        Config(**changes)


def test_a_stride_beyond_the_map_is_the_least_such(tmp_path: Path) -> None:
    """Beyond the map it may lead to any place; the least that does is taken."""
    n = Net(0)
    file = save(n.model(pool("MaxPool", kernel_shape=[5, 5], strides=[2**40, 2**62])(n)), tmp_path)
    (attribute,) = (a for n in imported(file).graph.node if n.op_type == "MaxPool" for a in n.attribute if a.name == "strides")
    assert list(attribute.ints) == [2, 2]  # rows 0 to 4 of 6; from row 1 on there would be another


@pytest.mark.parametrize(("value", "word"), [(3e38, r"'a1.weight' comes to NaN or beyond 2\^60"), (1e12, "may reach")])
def test_weights_beyond_any_trained_network(value: float, word: str, tmp_path: Path) -> None:
    """A few layers of great weights, each of which a float32 holds, make what it does not."""
    n = Net(0)
    x = stem(n)
    for name in ("a1", "a2", "a3"):
        x = n.relu(n.node("Conv", x, n.tensor(f"{name}.weight", np.full((WIDTH, WIDTH, 1, 1), value)), name=name))
    with pytest.raises(WageubnError, match=word):
        convert(save(n.model(head(n, x)), tmp_path), Config(batch=2, keep_folded=True))

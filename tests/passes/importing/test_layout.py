"""Sources with channels last, wherever their transposes stand: `forward` is NCHW, takes NCHW images, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources import MAP, WIDTH, assert_same_function, head, imported, operators, save, stem

from networks import CHANNELS, CLASSES, SIZE, Net, images
from wageubn_onnx.errors import WageubnError

LAST = (SIZE, SIZE, CHANNELS)
STEM = ["Conv", "BatchNormalization", "Relu"]
HEAD = ["GlobalAveragePool", "Flatten", "Gemm"]


def to_nchw(n: Net, x: str) -> str:
    return n.node("Transpose", x, perm=[0, 3, 1, 2])


def to_nhwc(n: Net, x: str) -> str:
    return n.node("Transpose", x, perm=[0, 2, 3, 1])


def border(n: Net) -> str:
    """One Transpose at the image."""
    return n.relu(n.bn(n.conv(to_nchw(n, "x"), "conv", 3, WIDTH, strides=[2, 2]), "bn", WIDTH))


def everywhere(n: Net) -> str:
    """Every operator between two Transposes, as TensorFlow's graph has it."""
    y = to_nhwc(n, n.conv(to_nchw(n, "x"), "conv", 3, WIDTH, strides=[2, 2]))
    return n.relu(to_nhwc(n, n.bn(to_nchw(n, y), "bn", WIDTH)))


def mean(n: Net, x: str) -> str:
    pooled = n.node("ReduceMean", x, n.tensor("axes", [1, 2], np.int64), keepdims=0)
    return n.gemm(pooled, WIDTH, CLASSES)


def residual(n: Net) -> str:
    x = everywhere(n)
    y = to_nhwc(n, n.bn(n.conv(to_nchw(n, x), "second", WIDTH, WIDTH), "bn2", WIDTH))
    return mean(n, n.relu(n.node("Add", y, x)))


def padded(n: Net) -> str:
    x = n.node("Pad", "x", n.tensor("amounts", [0, 1, 1, 0] * 2, np.int64))
    x = n.relu(n.bn(n.conv(to_nchw(n, x), "conv", 3, WIDTH, strides=[2, 2], pads=[0] * 4), "bn", WIDTH))
    return mean(n, to_nhwc(n, x))


def padded_channels(n: Net) -> str:
    """More channels by zeros, along the last axis."""
    x = n.node("Pad", everywhere(n), n.tensor("amounts", [0] * 7 + [2], np.int64))
    pooled = n.node("ReduceMean", x, n.tensor("axes", [1, 2], np.int64), keepdims=0)
    return n.gemm(pooled, WIDTH + 2, CLASSES)


def scaled(n: Net) -> str:
    """A scale layer on the last axis, after BN."""
    x = to_nhwc(n, n.bn(n.conv(to_nchw(n, "x"), "conv", 3, WIDTH, strides=[2, 2]), "bn", WIDTH))
    x = n.node("Add", n.node("Mul", x, n.uniform("a", 0.5, 2, WIDTH)), n.uniform("b", -1, 1, 1, 1, 1, WIDTH))
    return mean(n, n.relu(x))


def sliced(n: Net) -> str:
    operands = [n.tensor(name, value, np.int64) for name, value in (("s", [0, 0]), ("e", [99, 99]), ("a", [1, 2]), ("t", [2, 2]))]
    return mean(n, n.node("Slice", everywhere(n), *operands))


def flattened(n: Net, matmul: bool = False) -> str:
    """The dense layer reads rows, columns, channels."""
    x = n.node("Reshape", everywhere(n), n.tensor("flat", [-1, WIDTH * MAP * MAP], np.int64))
    if not matmul:
        return n.gemm(x, WIDTH * MAP * MAP, CLASSES)
    return n.node("MatMul", x, n.uniform("kernel", -1, 1, WIDTH * MAP * MAP, CLASSES), name="dense")


def flattened_pixel(n: Net) -> str:
    x = n.node("GlobalAveragePool", to_nchw(n, everywhere(n)))
    return n.gemm(n.node("Squeeze", to_nhwc(n, x), n.tensor("axes", [1, 2], np.int64)), WIDTH, CLASSES)


DIALECTS: dict[str, tuple[Callable[[Net], str], list[str]]] = {
    "a transpose at the border": (lambda n: mean(n, to_nhwc(n, border(n))), [*STEM, *HEAD]),
    "transposes everywhere": (lambda n: mean(n, everywhere(n)), [*STEM, *HEAD]),
    "a residual sum": (residual, [*STEM, "Conv", "BatchNormalization", "Add", "Relu", *HEAD]),
    "padding": (padded, [*STEM, *HEAD]),
    "padded channels": (padded_channels, [*STEM, "Pad", *HEAD]),
    "a scale layer": (scaled, [*STEM, *HEAD]),
    "a strided slice": (sliced, [*STEM, "MaxPool", *HEAD]),
    "a flattened map": (flattened, [*STEM, "Flatten", "Gemm"]),
    "a flattened map and MatMul": (lambda n: flattened(n, matmul=True), [*STEM, "Flatten", "Gemm"]),
    "one pixel squeezed": (flattened_pixel, [*STEM, *HEAD]),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_computes_what_it_did(name: str, tmp_path: Path) -> None:
    build, expected = DIALECTS[name]
    n = Net(seed=len(name))
    source = n.model(build(n), dims=LAST)
    forward = assert_same_function(source, tmp_path, images(4, seed=1, normalised=True), nhwc=True)
    assert operators(forward) == expected


def test_a_layout_that_is_told(tmp_path: Path) -> None:
    """16 channels last: nothing shows it but the option."""
    n = Net()
    x = n.relu(n.bn(n.conv(to_nchw(n, "x"), "conv", 16, WIDTH), "bn", WIDTH))
    source = save(n.model(mean(n, to_nhwc(n, x)), dims=(SIZE, SIZE, 16)), tmp_path)
    assert [d.dim_value for d in imported(source, layout="nhwc").graph.input[0].type.tensor_type.shape.dim][1:] == [
        16,
        SIZE,
        SIZE,
    ]


def test_a_layout_that_cannot_be_is_refused(tmp_path: Path) -> None:
    n = Net()
    source = n.model(head(n, stem(n)))
    with pytest.raises(WageubnError, match="'conv': Conv reads a map .*--layout"):
        imported(save(source, tmp_path), layout="nhwc")

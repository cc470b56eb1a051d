"""Padding, slices and zeros around windows: into the windows, or into a Pad; the same function in any case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sources import MAP, WIDTH, assert_same_function, attributes, head, imported, operators, save, stem

from networks import CLASSES, Net, images
from wageubn_onnx.errors import WageubnError

STEM = ["Conv", "BatchNormalization", "Relu"]
HEAD = ["GlobalAveragePool", "Flatten", "Gemm"]


def pad(n: Net, x: str, *amounts: int, value: float | None = None, **attrs: Any) -> str:
    """before N, C, H, W, after N, C, H, W."""
    operands = [n.tensor("amounts", amounts, np.int64)] + ([] if value is None else [n.tensor("fill", value)])
    return n.node("Pad", x, *operands, **attrs)


def padded_convolution(n: Net) -> str:
    x = n.conv(pad(n, stem(n), 0, 0, 1, 0, 0, 0, 0, 2), "second", WIDTH, WIDTH, pads=[1, 1, 1, 1])
    return head(n, n.relu(n.bn(x, "bn2", WIDTH)))


def padded_input(n: Net) -> str:
    """As Keras does before its first convolution."""
    x = n.conv(pad(n, "x", 0, 0, 3, 3, 0, 0, 3, 3), "conv", 3, WIDTH, k=7, strides=[2, 2], pads=[0] * 4)
    return head(n, n.relu(n.bn(x, "bn", WIDTH)))


def padded_maximum(n: Net, x: str, value: float | None = None) -> str:
    return head(n, n.node("MaxPool", pad(n, x, *[0, 0, 1, 1] * 2, value=value), kernel_shape=[3, 3], strides=[2, 2]))


def signed(n: Net) -> str:
    """A map that is negative somewhere."""
    return n.bn(n.conv("x", "conv", 3, WIDTH, strides=[2, 2]), "bn", WIDTH)


def padded_average(n: Net, **attrs: Any) -> str:
    return head(n, n.node("AveragePool", pad(n, stem(n), *[0, 0, 1, 1] * 2), kernel_shape=[3, 3], strides=[2, 2], **attrs))


def padded_average_by_axes(n: Net) -> str:
    operands = (n.tensor("amounts", [1, 0], np.int64), n.tensor("fill", 0.0), n.tensor("axes", [-1], np.int64))
    return head(n, n.node("AveragePool", n.node("Pad", stem(n), *operands), kernel_shape=[2, 2]))


def two_readers(n: Net) -> str:
    """One window takes the padding over, an Add cannot."""
    x = pad(n, stem(n), *[0, 0, 1, 1] * 2)
    y = n.bn(n.conv(x, "second", WIDTH, WIDTH, pads=[1] * 4), "bn2", WIDTH)
    return head(n, n.node("Add", x, y))


def ceiling(n: Net, kind: str, kernel: int, stride: int, *pads: int, **attrs: Any) -> str:
    pool = n.node(kind, stem(n), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads or [0] * 4, ceil_mode=1, **attrs)
    return head(n, pool)


def option_a(n: Net, x: str, shortcut: Callable[[Net, str], str]) -> str:
    """The shortcut of CIFAR ResNets: every other pixel, and zeros for the new channels."""
    y = n.bn(n.conv(x, "down", WIDTH, 2 * WIDTH, strides=[2, 2]), "down_bn", 2 * WIDTH)
    x = n.relu(n.node("Add", y, shortcut(n, x)))
    return n.gemm(n.node("Flatten", n.node("GlobalAveragePool", x)), 2 * WIDTH, CLASSES)


def every_other(n: Net, x: str, *axes: int) -> str:
    ends = n.tensor(f"ends{axes}", [2**63 - 1] * len(axes), np.int64)
    operands = [n.tensor(f"starts{axes}", [0] * len(axes), np.int64), ends, n.tensor(f"axes{axes}", axes, np.int64)]
    return n.node("Slice", x, *operands, n.tensor(f"steps{axes}", [2] * len(axes), np.int64))


def sliced_then_padded(n: Net, x: str) -> str:
    return pad(n, every_other(n, x, 2, 3), 0, WIDTH // 2, 0, 0, 0, WIDTH // 2, 0, 0)


def sliced_axis_by_axis(n: Net, x: str) -> str:
    return pad(n, every_other(n, every_other(n, x, 2), -1), 0, 1, 0, 0, 0, WIDTH - 1, 0, 0)


def times_zero(n: Net, x: str) -> str:
    y = n.node("AveragePool", x, kernel_shape=[1, 1], strides=[2, 2])
    return n.node("Concat", y, n.node("Mul", y, n.tensor("nothing", 0.0)), axis=1)


def beside_zeros(n: Net, x: str) -> str:
    """Zeros of the size of one batch, as exporters fold torch.zeros."""
    y = n.node("MaxPool", x, kernel_shape=[1, 1], strides=[2, 2])
    zeros = n.node("ConstantOfShape", n.tensor("size", [2, WIDTH, MAP // 2, MAP // 2], np.int64))
    return n.node("Concat", zeros, y, axis=1)


A = [*STEM, "Conv", "BatchNormalization", "MaxPool", "Pad", "Add", "Relu", *HEAD]
# name: (builder of the logits, operators of `forward`, in any order)
DIALECTS: dict[str, tuple[Callable[[Net], str], list[str]]] = {
    "before a convolution": (padded_convolution, [*STEM, *STEM, *HEAD]),
    "before the first convolution": (padded_input, [*STEM, *HEAD]),
    "before a maximum of what is not negative": (lambda n: padded_maximum(n, stem(n)), [*STEM, "MaxPool", *HEAD]),
    "with minus infinity before a maximum": (lambda n: padded_maximum(n, signed(n), -np.inf), [*STEM[:2], "MaxPool", *HEAD]),
    "with the lowest float before a maximum": (
        lambda n: padded_maximum(n, signed(n), float(np.finfo(np.float32).min)), [*STEM[:2], "MaxPool", *HEAD],
    ),
    "with zeros before a maximum of signed numbers": (
        lambda n: padded_maximum(n, signed(n)), [*STEM[:2], "Pad", "MaxPool", *HEAD],
    ),
    "before an average": (padded_average, [*STEM, "AveragePool", *HEAD]),
    "before an average that counts its pads": (
        lambda n: padded_average(n, pads=[1] * 4, count_include_pad=1), [*STEM, "AveragePool", *HEAD],
    ),
    "before an average that does not count its pads": (
        lambda n: padded_average(n, pads=[1] * 4), [*STEM, "Pad", "AveragePool", *HEAD],
    ),
    "by axes": (padded_average_by_axes, [*STEM, "AveragePool", *HEAD]),
    "of nothing": (lambda n: head(n, pad(n, stem(n), *[0] * 8)), [*STEM, *HEAD]),
    "with another reader": (two_readers, [*STEM, "Pad", "Conv", "BatchNormalization", "Add", *HEAD]),
    "ceil_mode, a partial maximum": (lambda n: ceiling(n, "MaxPool", 3, 2), [*STEM, "MaxPool", *HEAD]),
    "ceil_mode, a last window that would start in the pads": (
        lambda n: ceiling(n, "MaxPool", 3, 3, 0, 0, 2, 2), [*STEM, "MaxPool", *HEAD],
    ),
    "ceil_mode, a partial average": (lambda n: ceiling(n, "AveragePool", 4, 3), [*STEM, "AveragePool", *HEAD]),
    "ceil_mode, a partial average with pads": (
        lambda n: ceiling(n, "AveragePool", 3, 2, 1, 1, 1, 1), [*STEM, "AveragePool", *HEAD],
    ),
    "a shortcut by Slice and Pad": (lambda n: option_a(n, stem(n), sliced_then_padded), A),
    "a shortcut by two Slices and Pad": (lambda n: option_a(n, stem(n), sliced_axis_by_axis), A),
    "a shortcut by Concat with 0 * x": (
        lambda n: option_a(n, stem(n), times_zero), [kind.replace("Max", "Average") for kind in A],
    ),
    "a shortcut by Concat with zeros": (lambda n: option_a(n, stem(n), beside_zeros), A),
}  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_computes_what_it_did(name: str, tmp_path: Path) -> None:
    build, expected = DIALECTS[name]
    n = Net(seed=len(name))
    batch = 2 if "with zeros" in name and "shortcut" in name else "N"
    forward = assert_same_function(n.model(build(n), batch=batch), tmp_path, images(2, seed=1, normalised=True))
    assert sorted(operators(forward)) == sorted(expected)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_padding_as_wide_as_a_window_stays(kind: str, tmp_path: Path) -> None:
    """A window of nothing but padding is none that ONNX allows. (onnxruntime's own fusion makes one, and does not load it.)"""
    n = Net()
    y = n.node(kind, pad(n, stem(n), *[0, 0, 2, 2] * 2), kernel_shape=[2, 2], strides=[2, 2])
    forward = imported(save(n.model(head(n, y)), tmp_path))
    assert sorted(operators(forward)) == sorted([*STEM, "Pad", kind, *HEAD])


def refused(model: onnx.ModelProto, folder: Path, *words: str) -> None:
    with pytest.raises(WageubnError) as caught:
        imported(save(model, folder))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_computed_fill_is_refused(tmp_path: Path) -> None:
    n = Net()
    x = stem(n)
    amounts = n.tensor("amounts", [0, 0, 1, 1] * 2, np.int64)
    fill = n.node("ReduceMean", x, keepdims=0)
    refused(n.model(head(n, n.node("Pad", x, amounts, fill))), tmp_path, "ReduceMean")


def test_padding_that_a_convolution_took_over_adds_to_its_own(tmp_path: Path) -> None:
    n = Net()
    forward = assert_same_function(n.model(padded_input(n)), tmp_path, images(2, normalised=True))
    assert attributes(forward, "Conv")["pads"] == [3, 3, 3, 3]


def test_strides_over_rows_and_columns_become_one_window(tmp_path: Path) -> None:
    n = Net()
    forward = assert_same_function(n.model(option_a(n, stem(n), sliced_axis_by_axis)), tmp_path, images(2, normalised=True))
    assert attributes(forward, "MaxPool")["strides"] == [2, 2]


# -- copies of pixels -----------------------------------------------------------------------------------------------------


def copied(n: Net, mode: str, amounts: tuple[int, ...], kernel: int, stride: int, **attrs: Any) -> str:
    """A maximum over a map, negative in places, that is padded with copies: (rows before, columns before, after, after)."""
    x = pad(n, signed(n), 0, 0, *amounts[:2], 0, 0, *amounts[2:], mode=mode, name="copies")
    return head(n, n.node("MaxPool", x, name="pool", kernel_shape=[kernel] * 2, strides=[stride] * 2, **attrs))


# Whether every window with a copy has its pixel too, by hand: a map of 6, windows from -(rows before) on
COPIES: dict[str, tuple[tuple[str, tuple[int, ...], int, int], dict[str, Any], bool]] = {
    "an edge on all sides": (("edge", (1, 1, 1, 1), 3, 2), {}, True),
    "an edge at the end": (("edge", (0, 0, 1, 1), 3, 2), {}, True),
    "two edges": (("edge", (2, 2, 2, 2), 3, 1), {}, True),
    "an edge beyond the last window": (("edge", (0, 0, 2, 2), 2, 2), {}, False),  # its last window is in copies alone
    "a dilated window that steps over the edge": (("edge", (1, 1, 1, 1), 2, 2), {"dilations": [2, 2]}, False),
    "the pool's own padding beside": (("edge", (1, 1, 1, 1), 5, 2), {"pads": [1, 1, 1, 1]}, True),
    "a reflection that a window sees": (("reflect", (1, 1, 1, 1), 3, 1), {}, True),
    "a reflection that a window does not see": (("reflect", (1, 1, 1, 1), 2, 1), {}, False),
    "one of two reflections": (("reflect", (2, 2, 2, 2), 3, 1), {}, False),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_pixels_before_a_maximum(name: str, tmp_path: Path) -> None:
    what, attrs, seen = COPIES[name]
    n = Net(seed=len(name))
    model = n.model(copied(n, *what, **attrs))
    if not seen:
        with pytest.raises(WageubnError, match="'copies': Pad with mode"):
            imported(save(model, tmp_path))
        return
    forward = assert_same_function(model, tmp_path, images(5, seed=4, normalised=True))
    assert operators(forward) == [*STEM[:2], "MaxPool", *HEAD]
    own = np.array(attrs.get("pads", [0] * 4))
    assert list(attributes(forward, "MaxPool")["pads"]) == list(own + what[1])


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_copies_of_pixels_before_an_average_are_refused(mode: str, tmp_path: Path) -> None:
    n = Net()
    x = pad(n, stem(n), *[0, 0, 1, 1] * 2, mode=mode, name="copies")
    with pytest.raises(WageubnError, match="'copies': Pad with mode"):
        imported(save(n.model(head(n, n.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2]))), tmp_path))

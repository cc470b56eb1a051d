"""Networks for property-based tests: small, and degenerate wherever they may be.

`sources` is a hypothesis strategy of `Source`: a network as a user might have it, and the options of its conversion. What is
drawn is a description, so that a failing example prints as one that can be written down again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto as T

from networks import Net
from wageubn_onnx.config import Config
from wageubn_onnx.profiles import load_profile

Array = np.ndarray[Any, Any]
SIZES = (1, 2, 3, 5, 8)


@dataclass(frozen=True)
class Layer:
    """kind: of what slides over the map, conv, max or average. weights: drawn, zero, one or great; gamma: "" for no BN, else
    drawn, zero or negative; shortcut: "", identity or projection."""

    kind: str = "conv"
    out: int = 2
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilation: int = 1
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    groups: str = "one"
    bias: bool = False
    weights: str = "drawn"
    gamma: str = "drawn"
    relu: bool = True
    shortcut: str = ""


@dataclass(frozen=True)
class Source:
    """normalised: by what the image is normalised inside, "", scalars or channels. pooled: whether a global average comes before
    the classifier. unused: whether a branch ends nowhere."""

    seed: int = 0
    shape: tuple[int, int, int] = (1, 8, 8)
    normalised: str = ""
    layers: tuple[Layer, ...] = (Layer(),)
    pooled: bool = True
    classes: int = 2
    weights: str = "drawn"
    unused: bool = False
    batch: int = 2
    profile: str = "full8"
    bn: str = "batch"
    train_last: int | None = None
    health: bool = False
    weight_decay: float = 1e-4

    @property
    def config(self) -> Config:
        """The options of `convert`."""
        return Config(
            batch=self.batch,
            profile=load_profile(self.profile),
            bn=self.bn,
            train_last=self.train_last,
            health=self.health,
            keep_folded=True,
            layout="nchw",
            weight_decay=self.weight_decay,
        )

    @property
    def model(self) -> onnx.ModelProto:
        """The network as an ONNX file has it."""
        return _Built(self).model

    def images(self, seed: int) -> Array:
        """uint8 [batch, C, H, W]: every third black, every third white."""
        shape = (self.batch, *self.shape)
        if seed % 3:
            return np.full(shape, 255 * (seed % 3 - 1), np.uint8)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    def labels(self, seed: int) -> Array:
        """int32 [batch]"""
        return np.random.default_rng(seed).integers(0, self.classes, self.batch, dtype=np.int32)


class _Built:
    """The network of a description; a layer that does not fit its map is left out."""

    def __init__(self, source: Source) -> None:
        self.net = net = Net(source.seed, source.shape)
        self.size = list(source.shape)
        x = self._normalised(source.normalised)
        for i, layer in enumerate(source.layers):
            x = self._layer(layer, x, f"l{i}")
        if source.unused:
            net.relu(x, "unused")
        if source.pooled:
            x = net.node("GlobalAveragePool", x, name="gap")
            self.size[1:] = 1, 1
        x = net.node("Flatten", x, name="flatten")
        width = math.prod(self.size)
        w, b = self._weights("fc.weight", source.weights, source.classes, width), self._weights("fc.bias", "zero", source.classes)
        x = net.node("Gemm", x, w, b, name="fc", transB=1)
        self.model = net.model(x, ("N", source.classes))

    def _normalised(self, how: str) -> str:
        if not how:
            return "x"
        mean, std = (0.3, 0.4) if how == "scalars" else (self._by_channel(0.3), self._by_channel(0.4))
        x = self.net.node("Sub", "x", self.net.tensor("mean", mean), name="centred")
        return self.net.node("Div", x, self.net.tensor("std", std), name="normalised")

    def _by_channel(self, value: float) -> Array:
        return np.asarray(value + 0.05 * np.arange(self.size[0])).reshape(-1, 1, 1)

    def _weights(self, name: str, how: str, *shape: int) -> str:
        reach = (3.0 / max(1, math.prod(shape[1:]))) ** 0.5
        drawn = self.net.random.uniform(-reach, reach, shape)
        values = {"drawn": drawn, "zero": np.zeros(shape), "one": np.ones(shape), "great": 50 * drawn}
        return self.net.tensor(name, values[how])

    def _layer(self, layer: Layer, x: str, name: str) -> str:
        c, *size = self.size
        pads = (
            layer.pads
            if layer.kind == "conv"
            else tuple(min(p, k - 1) for p, k in zip(layer.pads, layer.kernel * 2, strict=True))
        )
        dilation = layer.dilation if layer.kind == "conv" else 1
        padded = [size[i] + pads[i] + pads[2 + i] for i in range(2)]
        out = [(padded[i] - dilation * (layer.kernel[i] - 1) - 1) // layer.strides[i] + 1 for i in range(2)]
        if min(out) < 1:
            return x
        window: dict[str, Any] = {"kernel_shape": list(layer.kernel), "strides": list(layer.strides), "pads": list(pads)}
        if layer.kind != "conv":
            kind = "MaxPool" if layer.kind == "max" else "AveragePool"
            self.size[1:] = out
            return self.net.node(kind, x, name=name, **window)
        o = c if layer.shortcut == "identity" or layer.groups == "depthwise" else layer.out
        group = c if layer.groups == "depthwise" else math.gcd(c, o) if layer.groups == "most" else 1
        operands = [x, self._weights(f"{name}.weight", layer.weights, o, c // group, *layer.kernel)]
        if layer.bias:
            operands.append(self.net.uniform(f"{name}.bias", -0.5, 0.5, o))
        y = self.net.node("Conv", *operands, name=name, group=group, dilations=[dilation] * 2, **window)
        self.size[:] = o, *out
        if layer.gamma:
            y = self._bn(y, f"{name}_bn", layer.gamma, o)
        if layer.shortcut == "identity" and out == size:
            y = self.net.node("Add", y, x, name=f"{name}_add")
        elif layer.shortcut == "projection" and [-(-s // t) for s, t in zip(size, layer.strides, strict=True)] == out:
            w = self._weights(f"{name}_short.weight", "drawn", o, c, 1, 1)
            short = self.net.node("Conv", x, w, name=f"{name}_short", kernel_shape=[1, 1], strides=list(layer.strides))
            y = self.net.node("Add", y, self._bn(short, f"{name}_short_bn", "drawn", o), name=f"{name}_add")
        return self.net.relu(y, f"{name}_relu") if layer.relu else y

    def _bn(self, x: str, name: str, gamma: str, c: int) -> str:
        made = self.net.bn(x, name, c)
        tensor = next(t for t in self.net.tensors if t.name == f"{name}.weight")
        if gamma != "drawn":
            factor = 0 if gamma == "zero" else -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(factor * onnx.numpy_helper.to_array(tensor), tensor.name))
            assert tensor.data_type == T.FLOAT
        return made


def _pairs(*values: int) -> st.SearchStrategy[tuple[int, int]]:
    of = st.sampled_from(values)
    return st.one_of(of.map(lambda v: (v, v)), st.tuples(of, of))


layers = st.builds(
    Layer,
    kind=st.sampled_from(["conv", "conv", "conv", "max", "average"]),
    out=st.integers(1, 5),
    kernel=_pairs(1, 2, 3, 5),
    strides=_pairs(1, 2, 3, 4),
    dilation=st.integers(1, 2),
    pads=st.one_of(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2)]), st.tuples(*[st.integers(0, 2)] * 4)),
    groups=st.sampled_from(["one", "one", "most", "depthwise"]),
    bias=st.booleans(),
    weights=st.sampled_from(["drawn", "drawn", "drawn", "zero", "one", "great"]),
    gamma=st.sampled_from(["drawn", "drawn", "drawn", "", "zero", "negative"]),
    relu=st.booleans(),
    shortcut=st.sampled_from(["", "identity", "projection"]),
)

sources = st.builds(
    Source,
    seed=st.integers(0, 9),
    shape=st.tuples(st.integers(1, 3), st.sampled_from(SIZES), st.sampled_from(SIZES)),
    normalised=st.sampled_from(["", "scalars", "channels"]),
    layers=st.lists(layers, max_size=4).map(tuple),
    pooled=st.booleans(),
    classes=st.integers(2, 4),
    weights=st.sampled_from(["drawn", "drawn", "zero"]),
    unused=st.booleans(),
    batch=st.integers(1, 3),
    profile=st.sampled_from(["full8", "e16", "sq8", "sq8s", "fast", "fast"]),
    bn=st.sampled_from(["batch", "batch", "frozen"]),
    train_last=st.sampled_from([None, None, None, 1]),
    health=st.booleans(),
    weight_decay=st.sampled_from([1e-4, 0.0]),
)

"""Small networks for tests, built from a seed, and what to feed them.

`tiny` holds every operator of the `forward` stage but Pad, which `odd` has: Conv 3x3, 1x1, with stride 2, with dilation, with a
bias before BN and with one that stays; BatchNormalization, Relu, a residual Add on an identity and on a projection, MaxPool 3x3
with padding, AveragePool 2x2 and 3x3 with padding that does not count, GlobalAveragePool, Flatten, Gemm. `grouped` has Conv in
groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
BATCH, CHANNELS, SIZE, CLASSES = 4, 3, 12, 5
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.28)


class Net:
    """An ONNX graph in the making: each method appends a node and returns the name of its result."""

    def __init__(self, seed: int = 0, shape: tuple[int, ...] = (CHANNELS, SIZE, SIZE)) -> None:
        self.random = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(h.make_node(kind, list(inputs), [f"{name}.out"], name, **attrs))
        return f"{name}.out"

    def tensor(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def uniform(self, name: str, low: float, high: float, *shape: int) -> str:
        return self.tensor(name, self.random.uniform(low, high, shape))

    def conv(self, x: str, name: str, i: int, o: int, k: int = 3, bias: bool = False, **attrs: Any) -> str:
        attrs = {"kernel_shape": [k, k], "pads": [k // 2] * 4} | attrs
        i //= attrs.get("group", 1)
        reach = (3.0 / (i * k * k)) ** 0.5  # keeps a unit variance
        operands = [x, self.uniform(f"{name}.weight", -reach, reach, o, i, k, k)]
        if bias:
            operands.append(self.uniform(f"{name}.bias", -0.5, 0.5, o))
        return self.node("Conv", *operands, name=name, **attrs)

    def bn(self, x: str, name: str, c: int, **attrs: Any) -> str:
        operands = [
            self.uniform(f"{name}.weight", 0.5, 1.5, c),
            self.uniform(f"{name}.bias", -0.4, 0.4, c),
            self.uniform(f"{name}.running_mean", -0.2, 0.2, c),
            self.uniform(f"{name}.running_var", 0.5, 1.5, c),
        ]
        return self.node("BatchNormalization", x, *operands, name=name, **attrs)

    def relu(self, x: str, name: str = "") -> str:
        return self.node("Relu", x, name=name)

    def gemm(self, x: str, i: int, o: int, name: str = "fc") -> str:
        w, b = self.uniform(f"{name}.weight", -0.6, 0.6, o, i), self.uniform(f"{name}.bias", -0.3, 0.3, o)
        return self.node("Gemm", x, w, b, name=name, transB=1)

    def model(
        self,
        output: str,
        shape: tuple[Any, ...] = ("N", CLASSES),
        opset: int = 18,
        batch: Any = "N",
        listed: bool = False,
        dims: tuple[Any, ...] | None = None,
    ) -> onnx.ModelProto:
        """The file's contents. listed: the initializers are inputs too, as before IR 4. dims: what the file says of the image."""
        inputs = [h.make_tensor_value_info("x", T.FLOAT, [batch, *(dims or self.shape)])]
        if listed:
            inputs += [h.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.tensors]
        outputs = [h.make_tensor_value_info(output, T.FLOAT, list(shape))]
        graph = h.make_graph(self.nodes, "net", inputs, outputs, self.tensors)
        return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)


def tiny(seed: int = 0, bias: bool = False) -> onnx.ModelProto:
    """3x12x12 images, 5 classes, running statistics of its own random images.

    bias: the last convolution, which no BN reads, has one.
    """
    n = Net(seed)
    stem = n.relu(n.bn(n.conv("x", "stem", 3, 6), "stem_bn", 6))
    x = n.node("MaxPool", stem, name="maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])  # 6x6
    y = n.relu(n.bn(n.conv(x, "a1", 6, 6, bias=True), "a1_bn", 6))
    y = n.bn(n.conv(y, "a2", 6, 6, pads=[2, 2, 2, 2], dilations=[2, 2]), "a2_bn", 6)
    x = n.relu(n.node("Add", y, x, name="a_add"))
    y = n.relu(n.bn(n.conv(x, "b1", 6, 8, strides=[2, 2]), "b1_bn", 8))  # 3x3
    y = n.bn(n.conv(y, "b2", 8, 8), "b2_bn", 8)
    short = n.node("AveragePool", x, name="b_pool", kernel_shape=[2, 2], strides=[2, 2])
    short = n.bn(n.conv(short, "b_short", 6, 8, k=1), "b_short_bn", 8, epsilon=1e-3, momentum=0.8)
    x = n.relu(n.node("Add", y, short, name="b_add"))
    x = n.node("AveragePool", x, name="blur", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
    x = n.relu(n.conv(x, "head", 8, 8, k=1, bias=bias))
    if not bias:
        n.random.uniform(size=8)  # what follows is the same with and without
    x = n.node("Flatten", n.node("GlobalAveragePool", x, name="gap"), name="flatten")
    return with_own_statistics(n.model(n.gemm(x, 8, CLASSES)), seed)


def preactivation(seed: int = 0) -> onnx.ModelProto:
    """Residual sums that no ReLU follows at once; a last BN and ReLU before the classifier."""
    n = Net(seed)
    x = n.conv("x", "stem", 3, 6, strides=[2, 2])  # 6x6
    for block in ("a", "b"):
        y = n.relu(n.bn(x, f"{block}_bn1", 6))
        y = n.relu(n.bn(n.conv(y, f"{block}1", 6, 4, k=1), f"{block}_bn2", 4))
        x = n.node("Add", x, n.conv(y, f"{block}2", 4, 6), name=f"{block}_add")
    x = n.relu(n.bn(x, "last_bn", 6))
    x = n.node("Flatten", n.node("GlobalAveragePool", x, name="gap"), name="flatten")
    return with_own_statistics(n.model(n.gemm(x, 6, CLASSES)), seed)


def plain(seed: int = 0) -> onnx.ModelProto:
    """No residual: 5x5 and 9x9 with padding, stride 3, biases, a wide Flatten, and a data gradient too long for one int32 sum."""
    n = Net(seed)
    x = n.relu(n.bn(n.conv("x", "c1", 3, 5, k=5, bias=True), "c1_bn", 5))
    x = n.node("MaxPool", x, name="maxpool", kernel_shape=[2, 2], strides=[2, 2])  # 6x6
    x = n.relu(n.conv(x, "c2", 5, 16, k=9, strides=[3, 3], bias=True))  # 2x2
    return n.model(n.gemm(n.node("Flatten", x, name="flatten"), 64, CLASSES))


def grouped(seed: int = 0) -> onnx.ModelProto:
    """A ResNeXt block with stride, one of a depthwise-separable pair with dilation, twice the channels and a bias that stays."""
    n = Net(seed)
    x = n.relu(n.bn(n.conv("x", "stem", 3, 8, strides=[2, 2]), "stem_bn", 8))  # 6x6
    y = n.relu(n.bn(n.conv(x, "a1", 8, 8, k=1), "a1_bn", 8))
    y = n.relu(n.bn(n.conv(y, "a2", 8, 8, group=4, strides=[2, 2], bias=True), "a2_bn", 8))  # 3x3
    y = n.bn(n.conv(y, "a3", 8, 12, k=1), "a3_bn", 12)
    short = n.bn(n.conv(x, "a_short", 8, 12, k=1, group=2, strides=[2, 2]), "a_short_bn", 12)
    x = n.relu(n.node("Add", y, short, name="a_add"))
    x = n.relu(n.bn(n.conv(x, "b1", 12, 12, group=12), "b1_bn", 12))
    x = n.relu(n.bn(n.conv(x, "b2", 12, 8, k=1), "b2_bn", 8))
    x = n.relu(n.conv(x, "c", 8, 16, group=8, pads=[2, 2, 2, 2], dilations=[2, 2], bias=True))
    x = n.node("Flatten", n.node("GlobalAveragePool", x, name="gap"), name="flatten")
    return with_own_statistics(n.model(n.gemm(x, 16, CLASSES)), seed)


def folded(seed: int = 0) -> onnx.ModelProto:
    """`tiny` as exporters leave it: every BN folded into its convolution, which has a bias instead."""
    return fold(tiny(seed, bias=True))


def fold(model: onnx.ModelProto, keep: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Every BN that alone reads a convolution folded, in place, as exporters do, but for those to ``keep``.

    w' = w·s and b' = beta + (b - mean)·s, s = gamma / sqrt(var + eps).
    """
    graph = model.graph
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    reads = [name for node in graph.node for name in node.input]
    for bn in [node for node in graph.node if node.op_type == "BatchNormalization" and node.name not in keep]:
        conv = makers[bn.input[0]]
        if conv.op_type != "Conv" or reads.count(bn.input[0]) > 1:
            continue
        gamma, beta, mean, variance = (values.pop(name) for name in bn.input[1:])
        slope = gamma / np.sqrt(variance + next((a.f for a in bn.attribute if a.name == "epsilon"), 1e-5))
        if len(conv.input) < 3:
            conv.input.append(f"{conv.name}.bias")
        values[conv.input[1]] = values[conv.input[1]] * slope.reshape(-1, 1, 1, 1)
        values[conv.input[2]] = beta + (values.get(conv.input[2], 0.0) - mean) * slope
        conv.output[0] = bn.output[0]
        graph.node.remove(bn)
    kept = {t.name: t.data_type for t in graph.initializer}
    del graph.initializer[:]
    for name, value in values.items():
        dtype = h.tensor_dtype_to_np_dtype(kept.get(name, T.FLOAT))
        graph.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
    return model


def odd(seed: int = 0) -> onnx.ModelProto:
    """Normalises its image itself; a convolution feeds another and a sum; zeros around signed numbers; a shortcut by zeros."""
    n = Net(seed)
    x = n.node("Sub", "x", n.tensor("centre", [[[0.3]], [[-0.2]], [[0.1]]]), name="normalise")
    x = n.node("Mul", x, n.tensor("unit", 0.75))
    x = n.conv(x, "stem", 3, 6)
    y = n.bn(n.conv(n.relu(n.bn(n.conv(x, "a1", 6, 6), "a1_bn", 6)), "a2", 6, 6), "a2_bn", 6)
    x = n.node("Pad", n.node("Add", x, y, name="a_add"), n.tensor("around", [0, 0, 1, 1] * 2, np.int64), name="around")
    x = n.relu(n.bn(n.node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2]), "pool_bn", 6))  # 6x6
    y = n.bn(n.conv(x, "b1", 6, 10, strides=[2, 2]), "b1_bn", 10)  # 3x3
    short = n.node("MaxPool", x, name="every_other", kernel_shape=[1, 1], strides=[2, 2])
    short = n.node("Pad", short, n.tensor("channels", [0, 2, 0, 0, 0, 2, 0, 0], np.int64), name="more_channels")
    x = n.relu(n.node("Add", y, short, name="b_add"))
    x = n.node("Flatten", n.node("GlobalAveragePool", x, name="gap"), name="flatten")
    return with_own_statistics(n.model(n.gemm(x, 10, CLASSES)), seed)


def compact(seed: int = 0) -> onnx.ModelProto:
    """2x12x12 images, 3 classes: a strided stem, a pool, a strided block with a projection.

    Every pass for the CPU finds something to do in it.
    """
    n = Net(seed, (2, 12, 12))
    x = n.relu(n.bn(n.conv("x", "stem", 2, 4, strides=[2, 2]), "stem_bn", 4))
    x = n.node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])  # 3x3
    y = n.bn(n.conv(x, "a1", 4, 5, strides=[2, 2]), "a1_bn", 5)
    x = n.relu(n.node("Add", y, n.conv(x, "a_short", 4, 5, k=1, strides=[2, 2]), name="a_add"))  # 2x2
    x = n.node("GlobalAveragePool", x, name="gap")
    return n.model(n.gemm(n.node("Flatten", x, name="flatten"), 5, 3), ("N", 3))


def uneven(seed: int = 0) -> onnx.ModelProto:
    """2x9x7 images, 3 classes: an even kernel with unlike pads, no BN behind it, and an average of windows."""
    n = Net(seed, (2, 9, 7))
    x = n.relu(n.conv("x", "stem", 2, 4, k=2, pads=[0, 1, 1, 0], bias=True))  # 9x7
    x = n.node("AveragePool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2])  # 4x3
    x = n.relu(n.bn(n.conv(x, "a1", 4, 6, pads=[1, 0, 1, 2], kernel_shape=[3, 3]), "a1_bn", 6))
    x = n.node("GlobalAveragePool", x, name="gap")
    return n.model(n.gemm(n.node("Flatten", x, name="flatten"), 6, 3), ("N", 3))


def with_own_statistics(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Every BN's running statistics become those of 64 random images, so that inference does what training did."""
    initializers = {t.name: t for t in model.graph.initializer}
    x = images(64, seed=seed + 1000, normalised=True)
    for node in [n for n in model.graph.node if n.op_type == "BatchNormalization"]:
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
        (value,) = ort_session(probe).run([node.input[0]], {"x": x})
        for name, statistic in ((node.input[3], value.mean((0, 2, 3))), (node.input[4], value.var((0, 2, 3)))):
            initializers[name].CopyFrom(numpy_helper.from_array(statistic.astype(np.float32), name))
    return model


TOPOLOGIES = {"tiny": tiny, "preactivation": preactivation, "plain": plain, "grouped": grouped, "folded": folded, "odd": odd}


def images(count: int = BATCH, seed: int = 0, normalised: bool = False) -> Array:
    """uint8 [count, 3, 12, 12]: a random gradient with noise an image; or as the float network takes them."""
    random = np.random.default_rng(seed)
    slope = random.uniform(-9, 9, (count, CHANNELS, 2, 1, 1)) * (np.mgrid[:SIZE, :SIZE] - SIZE / 2)
    pixels = (
        slope.sum(axis=2) + random.uniform(90, 160, (count, CHANNELS, 1, 1)) + random.normal(0, 30, (count, CHANNELS, SIZE, SIZE))
    )
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return to_float(pixels) if normalised else pixels


def to_float(pixels: Array, mean: Any = MEAN, std: Any = STD) -> Array:
    """uint8 -> float32 (pixel/255 - mean) / std."""
    mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (mean, std))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def labels(count: int = BATCH, seed: int = 0, classes: int = CLASSES) -> Array:
    return np.random.default_rng(seed + 1).integers(0, classes, count, dtype=np.int32)


def ort_session(model: onnx.ModelProto, threads: int = 1, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_ort(model: onnx.ModelProto, feeds: dict[str, Array], **options: Any) -> dict[str, Array]:
    """Every output by name."""
    session = ort_session(model, **options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def relative(a: Array, b: Array) -> float:
    """|a - b| / |b|, the norms over the whole tensor."""
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))

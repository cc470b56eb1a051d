"""ResNets and ResNeXts with BatchNormalization as FP32 ONNX files, random but reproducible, under PyTorch's names
(He et al., 2016, v1; Xie et al., 2017).

    stem -> stages of residual blocks, each `relu(shortcut(x) + branch(x))` -> global average -> dense layer

A network made here has never seen an image. `fit_statistics` gives it the running statistics of some, so that inference, and the
static formats that `wageubn_onnx` derives from them, make sense even without training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
EXPANSION = 4  # of a bottleneck block: its output has this many times its inner channels

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """What to build.

    depths, widths: blocks and channels of each stage; every stage but the first halves the map. bottleneck: blocks of
    1x1, 3x3, 1x1 convolutions instead of two 3x3. large_stem: 7x7 at stride 2 and a pooling, instead of one 3x3.
    groups: of a bottleneck's 3x3 convolution; width_per_group: its channels a group where the stage has 64, as torchvision
    counts them: ResNeXt-50 32x4d has groups 32, width_per_group 4. image: [C, H, W].
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int
    image: tuple[int, int, int]
    bottleneck: bool = False
    large_stem: bool = False
    groups: int = 1
    width_per_group: int = 64

    def __post_init__(self) -> None:
        if not self.bottleneck and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError("groups and width_per_group are a bottleneck's; set bottleneck=True")

    def inner(self, width: int) -> int:
        """Channels inside a bottleneck of a stage of ``width``."""
        return width * self.width_per_group // 64 * self.groups


def build(architecture: Architecture, seed: int = 0) -> onnx.ModelProto:
    """Return the network with He-normal weights, gamma 1, beta 0, running mean 0 and variance 1; equal seeds, equal bytes."""
    builder = _Builder(seed)
    x = builder.stem(architecture)
    for stage, (depth, width) in enumerate(zip(architecture.depths, architecture.widths, strict=True)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f"layer{stage + 1}.{block}"
            if architecture.bottleneck:
                x = builder.bottleneck_block(x, name, width, stride, architecture.inner(width), architecture.groups)
            else:
                x = builder.basic_block(x, name, width, stride)
    builder.head(x, architecture.classes)
    return builder.model(architecture)


def fit_statistics(model: onnx.ModelProto, images: Array) -> None:
    """Set the running statistics of every BatchNormalization, in place, to those of ``images`` [n, C, H, W] float32.

    In training mode with momentum 0 the operator's running statistics are the batch's own, so one run gives them all.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = []
    for node in probe.graph.node:
        if node.op_type == "BatchNormalization":
            names += node.input[3:5]
            node.attribute.extend([helper.make_attribute("training_mode", 1), helper.make_attribute("momentum", 0.0)])
            node.output.extend(f"{name}.batch" for name in node.input[3:5])
    probe.graph.output.extend(onnx.ValueInfoProto(name=f"{name}.batch") for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run([f"{name}.batch" for name in names], {model.graph.input[0].name: images})
    set_parameters(model, dict(zip(names, values, strict=True)))


def set_parameters(model: onnx.ModelProto, values: dict[str, Array]) -> None:
    """Replace the initializers of ``model`` that ``values`` names, in place."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))


class _Builder:
    """Adds nodes and their parameters one layer at a time; every method returns the name of the tensor it made."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.nodes: list[onnx.NodeProto] = []
        self.parameters: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {}  # of every tensor made so far

    # -- parts of a network ---------------------------------------------------------------------------------------

    def stem(self, architecture: Architecture) -> str:
        self.channels["images"] = architecture.image[0]
        kernel, stride = (7, 2) if architecture.large_stem else (3, 1)
        x = self.conv_bn("images", "conv1", "bn1", architecture.widths[0], kernel, stride)
        x = self.relu(x, "relu")
        if not architecture.large_stem:
            return x
        return self.node("MaxPool", [x], "maxpool", self.channels[x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def basic_block(self, x: str, name: str, width: int, stride: int) -> str:
        y = self.conv_bn(x, f"{name}.conv1", f"{name}.bn1", width, 3, stride)
        y = self.relu(y, f"{name}.relu1")
        y = self.conv_bn(y, f"{name}.conv2", f"{name}.bn2", width, 3)
        return self.join(x, y, name, stride)

    def bottleneck_block(self, x: str, name: str, width: int, stride: int, inner: int, groups: int) -> str:
        y = self.conv_bn(x, f"{name}.conv1", f"{name}.bn1", inner, 1)
        y = self.relu(y, f"{name}.relu1")
        y = self.conv_bn(y, f"{name}.conv2", f"{name}.bn2", inner, 3, stride, groups)
        y = self.relu(y, f"{name}.relu2")
        y = self.conv_bn(y, f"{name}.conv3", f"{name}.bn3", EXPANSION * width, 1)
        return self.join(x, y, name, stride)

    def join(self, x: str, branch: str, name: str, stride: int) -> str:
        """relu(branch + x); x passes a 1x1 convolution where the branch has another shape."""
        if stride != 1 or self.channels[x] != self.channels[branch]:
            x = self.conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", self.channels[branch], 1, stride)
        return self.relu(self.node("Add", [branch, x], f"{name}.add", self.channels[branch]), f"{name}.relu")

    def head(self, x: str, classes: int) -> None:
        features = self.channels[x]
        x = self.node("GlobalAveragePool", [x], "avgpool", features)
        x = self.node("Flatten", [x], "flatten", features, axis=1)
        weight = self.parameter("fc.weight", self.normal((classes, features), 1 / math.sqrt(features)))
        bias = self.parameter("fc.bias", np.zeros(classes, np.float32))
        self.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["logits"], "fc", transB=1))

    # -- layers ---------------------------------------------------------------------------------------------------

    def conv_bn(self, x: str, conv: str, bn: str, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        deviation = math.sqrt(2 * groups / (channels * kernel**2))  # He et al. 2015, by fan-out
        weight = self.parameter(f"{conv}.weight", self.normal((channels, self.channels[x] // groups, kernel, kernel), deviation))
        window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        if groups > 1:
            window["group"] = groups
        y = self.node("Conv", [x, weight], conv, channels, **window)
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        values = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
        statistics = [self.parameter(f"{bn}.{name}", value) for name, value in values.items()]
        return self.node("BatchNormalization", [y, *statistics], bn, channels)

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], name, self.channels[x])

    def node(self, op: str, inputs: list[str], name: str, channels: int, **attributes: Any) -> str:
        output = f"{name}.output"
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        self.channels[output] = channels
        return output

    # -- parameters -----------------------------------------------------------------------------------------------

    def normal(self, shape: tuple[int, ...], deviation: float) -> Array:
        drawn: Array = self.random.standard_normal(shape, np.float32) * np.float32(deviation)
        return drawn

    def parameter(self, name: str, value: Array) -> str:
        self.parameters.append(numpy_helper.from_array(value, name))
        return name

    def model(self, architecture: Architecture) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *architecture.image])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", architecture.classes])
        graph = helper.make_graph(self.nodes, "resnet", [images], [logits], self.parameters)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "models/resnet.py"
        onnx.checker.check_model(model, full_check=True)
        return model

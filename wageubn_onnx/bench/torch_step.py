"""The forward model as a PyTorch training step, for the benchmark: the same network, trained the usual way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.operators import Table, refuse_others

Attributes = dict[str, Any]
Rule = Callable[[list[Tensor], Attributes], Tensor]


class TorchStep:
    """forward.onnx as a PyTorch network in channels_last with cross-entropy and SGD (momentum 0.9).

    image_shape: (N, C, H, W) of the folder's FP32 step. classes: the last size of the logits.
    """

    def __init__(self, folder: ArtifactFolder, lr: float = 0.003) -> None:
        """Read the models of ``folder``; raises WageubnError for an operator that forward models do not have."""
        model = folder.model("fp_eval")
        proto = onnx.load(model)
        refuse_others(proto, str(model))
        graph = proto.graph
        frozen = set(folder.manifest.get("frozen", {}))
        self._nodes = [(node, _attributes(node) | {"frozen": frozen.issuperset(node.input[3:])}) for node in graph.node]
        statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]}
        untrained = statistics | frozen
        self._values = {tensor.name: _parameter(tensor, tensor.name not in untrained) for tensor in graph.initializer}
        self._input, self._output = (folder.section("fp_eval", "images", "logits")[key] for key in ("images", "logits"))
        self.classes = _shape(graph.output, self._output)[-1]
        step_images = folder.section("fp_step", "images")["images"]
        step = onnx.load(folder.model("fp_step"), load_external_data=False).graph
        self.image_shape = tuple(_shape(step.input, step_images))
        normalisation = folder.section("input", "scale", "mean", "std")
        self._scale = float(normalisation["scale"])
        self._mean, self._std = (torch.tensor(normalisation[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
        trained = [value for value in self._values.values() if value.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters, momentum and running statistics."""
        parameters = [value for value in self._values.values() if value.is_floating_point()]
        return sum(value.nbytes * (2 if value.requires_grad else 1) for value in parameters)

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> float:
        """Train on one batch, uint8 [N, C, H, W] and integers [N], and return its loss."""
        loss = functional.cross_entropy(self.forward(images), torch.from_numpy(labels).long())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.item())

    def forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the logits, float32 [N, classes], with the statistics of the batch where they are not frozen."""
        pixels = (torch.from_numpy(images).float() * self._scale - self._mean) / self._std
        values = {**self._values, self._input: pixels.to(memory_format=torch.channels_last)}
        for node, attributes in self._nodes:
            values[node.output[0]] = RULES[node.op_type]([values[name] for name in node.input if name], attributes)
        return values[self._output]


def _parameter(tensor: onnx.TensorProto, trained: bool) -> Tensor:
    value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    if value.ndim == 4:
        value = value.to(memory_format=torch.channels_last)
    return value.requires_grad_(trained and value.is_floating_point())


def _shape(values: Iterable[onnx.ValueInfoProto], name: str) -> list[int]:
    return [dim.dim_value for value in values if value.name == name for dim in value.type.tensor_type.shape.dim]


def _attributes(node: NodeProto) -> Attributes:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _padded(x: Tensor, attributes: Attributes, value: float) -> Tensor:
    """``x`` with H and W padded by ONNX's [top, left, bottom, right]."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return functional.pad(x, (left, right, top, bottom), value=value) if any((top, left, bottom, right)) else x


def _symmetric(attributes: Attributes) -> list[int] | None:
    """Return [pad_h, pad_w] where both sides are equal, which PyTorch's kernels take themselves; else None."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return [top, left] if (top, left) == (bottom, right) else None


def _convolution(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, weight, *bias = inputs
    padding = _symmetric(a)
    x = x if padding is not None else _padded(x, a, 0.0)
    stride, dilation = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    return functional.conv2d(x, weight, bias[0] if bias else None, stride, padding or [0, 0], dilation, a.get("group", 1))


def _batch_normalization(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, gamma, beta, mean, variance = inputs
    # ONNX's momentum weighs the old value, PyTorch's the new one
    momentum, epsilon = 1 - a.get("momentum", 0.9), a.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, gamma, beta, not a["frozen"], momentum, epsilon)


def _max_pool(inputs: list[Tensor], a: Attributes) -> Tensor:
    x = _padded(inputs[0], a, -torch.inf)
    return functional.max_pool2d(x, a["kernel_shape"], a.get("strides", [1, 1]))


def _average_pool(inputs: list[Tensor], a: Attributes) -> Tensor:
    (x,), padding, kernel = inputs, _symmetric(a), a["kernel_shape"]
    window, all_count = (kernel, a.get("strides", [1, 1])), bool(a.get("count_include_pad", 0))
    if padding is not None and all(2 * pad <= size for pad, size in zip(padding, kernel, strict=True)):  # as PyTorch allows
        return functional.avg_pool2d(x, *window, padding, count_include_pad=all_count)
    mean = functional.avg_pool2d(_padded(x, a, 0.0), *window)
    return mean if all_count else mean / functional.avg_pool2d(_padded(torch.ones_like(x), a, 0.0), *window)


def _pad(inputs: list[Tensor], a: Attributes) -> Tensor:
    """Zeros along each axis; PyTorch wants the last axis first."""
    x, amounts = inputs[0], inputs[1].reshape(2, -1)
    return functional.pad(x, amounts.T.flip(0).flatten().tolist())


def _gemm(inputs: list[Tensor], a: Attributes) -> Tensor:
    x, weight, *bias = inputs
    if not a.get("transB", 0) or a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise WageubnError("Gemm must be x * W^T + b in a forward model")
    return functional.linear(x, weight, bias[0] if bias else None)


RULES = Table[Rule](
    "rule of PyTorch",
    Conv=_convolution,
    BatchNormalization=_batch_normalization,
    Relu=lambda inputs, a: functional.relu(inputs[0]),
    Add=lambda inputs, a: inputs[0] + inputs[1],
    MaxPool=_max_pool,
    AveragePool=_average_pool,
    GlobalAveragePool=lambda inputs, a: inputs[0].mean((2, 3), keepdim=True),
    Pad=_pad,
    Flatten=lambda inputs, a: inputs[0].flatten(1),
    Gemm=_gemm,
)

"""A `forward` graph in PyTorch, node by node: what the project's own differentiation is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import helper, numpy_helper

from wageubn_onnx.bench.torch_step import RULES

STATISTICS = ("running_mean", "running_var")


class TorchNetwork:
    """parameters: by initializer name, to be differentiated; statistics: running means and variances, which training advances.

    Operators are what the benchmark takes them for, which tests/autodiff holds to PyTorch; the statistics advance as ONNX
    defines it, with the biased variance.
    """

    def __init__(self, model: onnx.ModelProto, dtype: torch.dtype = torch.float32) -> None:
        self.nodes = list(model.graph.node)
        self.output = model.graph.output[0].name
        names = {name for node in self.nodes if node.op_type == "BatchNormalization" for name in node.input[3:5]}
        values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
        constants = {k: v for k, v in values.items() if not v.is_floating_point()}
        values = {k: v.to(dtype) for k, v in values.items() if k not in constants}
        self.dtype, self.constants = dtype, constants
        self.statistics = {k: v for k, v in values.items() if k in names}
        self.parameters = {k: v.requires_grad_() for k, v in values.items() if k not in names}
        self.weights = [n.input[1] for n in self.nodes if n.op_type in ("Conv", "Gemm")]  # what weight decay covers

    def logits(self, images: Any, training: bool, masks: Sequence[Any] | None = None) -> torch.Tensor:
        """masks: where each ReLU in turn lets through, in place of the sign of what this network computes."""
        values = {"images": torch.as_tensor(images, dtype=self.dtype), **self.parameters, **self.statistics, **self.constants}
        given = None if masks is None else iter(masks)
        for node in self.nodes:
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            x, *rest = (values[name] for name in node.input)
            if node.op_type == "BatchNormalization":
                result = self._batch_norm(node, attrs, x, *rest[:2], training)
            elif node.op_type == "Relu" and given is not None:
                result = x * torch.tensor(next(given), dtype=self.dtype)
            else:
                result = RULES[node.op_type]([x, *rest], attrs)
            values[node.output[0]] = result
        return values[self.output]

    def _batch_norm(self, node: Any, attrs: Any, x: Any, gamma: Any, beta: Any, training: bool) -> torch.Tensor:
        mean, var = node.input[3:5]
        if training:
            rate = 1 - attrs["momentum"]
            with torch.no_grad():
                self.statistics[mean] = self.statistics[mean] * (1 - rate) + x.mean((0, 2, 3)) * rate
                self.statistics[var] = self.statistics[var] * (1 - rate) + x.var((0, 2, 3), unbiased=False) * rate
            return F.batch_norm(x, None, None, gamma, beta, True, 0.0, attrs["epsilon"])
        return F.batch_norm(x, self.statistics[mean], self.statistics[var], gamma, beta, False, 0.0, attrs["epsilon"])

    def differentiate(
        self, images: Any, labels: Any, masks: Sequence[Any] | None = None
    ) -> tuple[float, dict[str, np.ndarray[Any, Any]]]:
        """The mean cross-entropy of a batch in training mode, and its gradient by parameter; advances the statistics."""
        loss = F.cross_entropy(self.logits(images, True, masks), torch.as_tensor(labels, dtype=torch.int64))
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return loss.item(), {k: g.numpy() for k, g in zip(self.parameters, gradients, strict=True)}

"""Source files in many dialects: a stem of Conv, BN, ReLU, and then what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from networks import Net, run_ort
from wageubn_onnx.config import Config
from wageubn_onnx.graph import to_proto
from wageubn_onnx.passes.importing.forward import import_forward
from wageubn_onnx.stages import check_stage

WIDTH, MAP = 4, 6  # the stem's channels and size: [N, 4, 6, 6]


def stem(n: Net) -> str:
    return n.relu(n.bn(n.conv("x", "conv", 3, WIDTH, strides=[2, 2]), "bn", WIDTH))


def head(n: Net, x: str) -> str:
    """[N, 4, 6, 6] -> logits."""
    return n.gemm(n.node("Flatten", n.node("GlobalAveragePool", x)), WIDTH, 5)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "source.onnx")
    return folder / "source.onnx"


def imported(path: Path, batch: int = 3, **options: Any) -> onnx.ModelProto:
    """The `forward` file of a source."""
    model = import_forward(path, Config(batch=batch, **options))
    model.stage = "forward"
    proto = to_proto(model, {"logits": model.named["logits"]})
    check_stage(proto, "forward")
    return proto


def assert_same_function(source: onnx.ModelProto, folder: Path, x: Any, nhwc: bool = False, **options: Any) -> onnx.ModelProto:
    """`forward` takes any batch and computes what the source does; returns it. x: [n, C, H, W], also for a source with nhwc."""
    forward = imported(save(source, folder), batch=7, **options)
    (expected,) = run_ort(source, {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if nhwc else x}).values()
    found = run_ort(forward, {"images": x})["logits"]
    assert found.shape == expected.shape
    assert abs(expected).max() > 0.1
    assert abs(found - expected).max() < 1e-5
    return forward


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def operators(model: onnx.ModelProto) -> list[str]:
    """The same without what only names a result."""
    return [kind for kind in kinds(model) if kind != "Identity"]


def parameters(model: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def attributes(model: onnx.ModelProto, kind: str) -> dict[str, Any]:
    """Those of the only node of that kind."""
    (node,) = (node for node in model.graph.node if node.op_type == kind)
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

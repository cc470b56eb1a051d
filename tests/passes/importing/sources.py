"""Source files in many dialects: a stem of Conv, BN, ReLU, and then what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

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


def imported(path: Path, batch: int = 3) -> onnx.ModelProto:
    """The `forward` file of a source."""
    model = import_forward(path, Config(batch=batch))
    model.stage = "forward"
    proto = to_proto(model, {"logits": model.named["logits"]})
    check_stage(proto, "forward")
    return proto


def assert_same_function(source: onnx.ModelProto, folder: Path, x: Any) -> onnx.ModelProto:
    """`forward` takes any batch and computes what the source does; returns it."""
    forward = imported(save(source, folder), batch=7)
    (expected,) = run_ort(source, {"x": x}).values()
    found = run_ort(forward, {"images": x})["logits"]
    assert found.shape == expected.shape
    assert abs(expected).max() > 0.1
    assert abs(found - expected).max() < 1e-5
    return forward


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]

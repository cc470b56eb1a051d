"""What onnxruntime-training makes of a network. Workers import it by its name alone, in environments without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def convert_by_artifacts(model: str, out: str) -> int:
    """onnxruntime-training's training graph of ``model`` with its checkpoint and optimizer (SGD), in a new folder ``out``."""
    import onnx
    from onnxruntime.training import artifacts

    proto = onnx.load(model)
    statistics = _train_batch_norm(proto)
    trained = [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.name not in statistics]
    Path(out).mkdir()
    artifacts.generate_artifacts(
        proto,
        requires_grad=trained,
        frozen_params=sorted(statistics),
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=out,
    )
    return len(onnx.load(f"{out}/training_model.onnx").graph.node)


def _train_batch_norm(proto: Any) -> set[str]:
    """Give BatchNormalization its training form, which alone has a gradient; returns the names of the running statistics."""
    import onnx

    statistics: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and len(node.output) == 1:
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend(f"{name}.batch" for name in node.input[3:5])
            statistics.update(node.input[3:5])
    return statistics

"""How an exporter is made to keep BatchNormalization: what refusals say, docs/import.md shows and a test runs."""

from __future__ import annotations

# PyTorch's default exporter, and the older one, whose training=TRAINING would move the running statistics by a step
TORCH_CALLS = (
    "torch.onnx.export(model.eval(), images, FILE, dynamo=True, optimize=False)",
    "torch.onnx.export(model.eval(), images, FILE, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, "
    "do_constant_folding=False)",
)
TF2ONNX_CALL = (
    "tf2onnx.convert.from_keras(model, output_path=FILE, optimizers={name: each for name, each in "
    "tf2onnx.optimizer._get_optimizers().items() if name != 'remove_back_to_back'})"
)
PADDLE_CALL = "paddle2onnx.export(..., enable_optimize=False, optimize_tool='None')"
EXPORTS = {  # by the producer that the file names
    "pytorch": " or ".join(TORCH_CALLS),
    "tf2onnx": TF2ONNX_CALL,
    "keras2onnx": f"keras2onnx always folds it, tf2onnx need not: {TF2ONNX_CALL}",
    "PaddlePaddle": PADDLE_CALL,
}
OTHERWISE = "in its exporter's training mode, if it has one"
AFTERWARDS = "without onnxsim, onnxslim, onnxoptimizer or onnxruntime's optimizer afterwards, which fold it too"


def keeping_batch_norm(producer: str) -> str:
    """What a user of the exporter ``producer``, as an ONNX file names it, is to do."""
    return f"export again with BN kept: {EXPORTS.get(producer, OTHERWISE)}; {AFTERWARDS}"

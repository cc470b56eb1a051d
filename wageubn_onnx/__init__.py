"""wageubn-onnx: from a trained FP32 ResNet as ONNX to a training step in integers only."""

__version__ = "0.1.0"

"""`forward` to `fp_training`: loss, backward, momentum SGD, in plain ONNX operators."""

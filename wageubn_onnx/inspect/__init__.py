"""What is in an ONNX file: of any its size and cost, of the stages also their quantizers and the memory of a step."""

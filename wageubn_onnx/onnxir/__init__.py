"""What works on ONNX graphs as such: a view of one, edits, functions written in Python, inlining, types, tidying."""

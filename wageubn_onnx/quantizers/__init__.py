"""Quantizers: one numpy reference, one float ONNX function and one integer ONNX function each, equal bit for bit on their grid."""

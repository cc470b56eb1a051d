"""Quantizers: a numpy reference, a float and an integer ONNX function each, equal bit for bit on their grid."""

"""Graph passes, one idea a file; `wageubn_onnx.pipeline` lists them in order.

A pass module holds ``PASS``, which names it and says what it does, and a function that rewrites a `Model` in place.
"""

"""`onnxir.tidy` as a pass, which every target that writes a step begins with."""

from __future__ import annotations

from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passbase import Pass

PASS = Pass("tidy", "each constant and computation once, nothing that changes nothing, the type of every tensor", tidy)

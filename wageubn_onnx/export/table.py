"""THE table of export targets."""

from __future__ import annotations

from wageubn_onnx.export import c, fp32, inference, iree, ort, web
from wageubn_onnx.export.base import Target

TARGETS: tuple[Target, ...] = (ort.TARGET, web.TARGET, c.TARGET, iree.TARGET, inference.TARGET, fp32.TARGET)

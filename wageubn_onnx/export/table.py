"""THE table of export targets."""

from __future__ import annotations

from wageubn_onnx.export import fp32, inference, ort, web
from wageubn_onnx.export.base import Target

TARGETS: tuple[Target, ...] = (ort.TARGET, web.TARGET, inference.TARGET, fp32.TARGET)

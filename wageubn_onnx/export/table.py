"""THE table of export targets."""

from __future__ import annotations

from wageubn_onnx.export import c, ort
from wageubn_onnx.export.base import Target

TARGETS: tuple[Target, ...] = (ort.TARGET, c.TARGET)

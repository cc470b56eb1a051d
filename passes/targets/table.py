"""What each target makes of the inlined `int_training` before it writes it: its passes, in their order."""

from __future__ import annotations

from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.targets import cpu, depth_first, iree, portable, slices, tidy

PASSES: dict[str, tuple[Pass, ...]] = {
    "onnxruntime": cpu.PASSES,
    "onnxruntime --portable": (tidy.PASS, *cpu.EXACT, portable.PASS),
    "iree": (tidy.PASS, iree.PASS),
    "c": (tidy.PASS, slices.PASS, depth_first.PASS),
    "web": (tidy.PASS,),
}

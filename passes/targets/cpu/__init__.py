"""int_training -> what onnxruntime's CPU kernels do fast: one idea a pass, each the same integers for every input."""

from __future__ import annotations

import onnx

from wageubn_onnx.inline import inline
from wageubn_onnx.passes.targets.cpu.hashing import uint32_hashes
from wageubn_onnx.passes.targets.cpu.moments import lean_moments
from wageubn_onnx.passes.targets.cpu.narrow import narrow_gradients
from wageubn_onnx.passes.targets.cpu.operands import Preference, int8_images
from wageubn_onnx.passes.targets.cpu.pools import pools_from_taps
from wageubn_onnx.passes.targets.tidy import tidy

EXACT_ANYWHERE = (uint32_hashes, narrow_gradients, lean_moments, pools_from_taps)


def for_cpu(step: onnx.ModelProto, prefers_int8: Preference) -> onnx.ModelProto:
    """The integer step ``step``, inlined and tidy, with the forms of products that the machine prefers (`int8_images`)."""
    for one_idea in EXACT_ANYWHERE:
        step = one_idea(step)
    return tidy(inline(int8_images(step, prefers_int8)))

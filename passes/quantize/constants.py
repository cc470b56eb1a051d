"""Every constant factor (1/N, 1/(H*W), weight decay, decay of the statistics) becomes a 12-bit mantissa and an exponent."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass


def quantize_constants(g: Model, config: Config) -> None:
    """Round in place; a tensor's entries share the exponent of the greatest."""
    if not config.profile.constant_bits:
        return
    for node in g.graph.nodes:
        if node.op == "Mul" and not node.domain:
            for operand in node.inputs:
                if isinstance(operand, gs.Constant) and operand.values.dtype == np.float32:
                    _, exponent = np.frexp(abs(operand.values).max())
                    step = 2.0 ** (int(exponent) - config.profile.constant_bits)
                    operand.values = (np.round(operand.values / step) * step).astype(np.float32)


PASS = Pass("quantize-constants", "constant factors rounded to 12 bits", quantize_constants)

"""ONNX functions from their textual form."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.parser

SUFFIX = {"half_even": "", "half_up": "HalfUp", "stochastic": "Stochastic"}  # of a function's name

# What a quantize node may say about itself; what its body does not read is optional.
DESCRIPTION = {"role": 'string = ""', "bits": "int = 0", "rounding": 'string = ""', "exponent": "int = 0", "lo": "float = 0.0",
               "hi": "float = 0.0"}  # fmt: skip


def function(name: str, attributes: Sequence[str], signature: str, body: str) -> onnx.FunctionProto:
    """The model-local function ``wageubn::name`` with opset 18; ``body`` in the syntax of onnx.parser."""
    read = dict.fromkeys((*(a for a in DESCRIPTION if f"@{a}>" in body), *attributes))
    optional = [f"{a}: {kind}" for a, kind in DESCRIPTION.items() if a not in read]
    declared = ", ".join((*read, *optional))
    header = '<opset_import: ["" : 18, "wageubn" : 1], domain: "wageubn">'
    return onnx.parser.parse_function(f"{header} {name} <{declared}> {signature} {{ {body} }}")

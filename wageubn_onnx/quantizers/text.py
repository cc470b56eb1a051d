"""ONNX functions from their textual form."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.parser

# What a quantize node says about itself; its body reads only some of it.
DESCRIPTION = ("role", "bits", "rounding", "exponent", "lo", "hi")


def function(name: str, attributes: Sequence[str], signature: str, body: str) -> onnx.FunctionProto:
    """The model-local function ``wageubn::name`` with opset 18; ``body`` in the syntax of onnx.parser."""
    declared = ", ".join(dict.fromkeys((*DESCRIPTION, *attributes)))
    header = '<opset_import: ["" : 18, "wageubn" : 1], domain: "wageubn">'
    return onnx.parser.parse_function(f"{header} {name} <{declared}> {signature} {{ {body} }}")

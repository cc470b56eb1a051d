"""The quantizer map: which quantizer stands on which data path of which layer, and where one is missing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from wageubn_onnx.proofs.audit import expected_quantizers, present_quantizers
from wageubn_onnx.symbols import SYMBOLS

GAP, CONSTANT = "GAP", "constant"
FUNCTIONS = {"grid": "direct", "limbs": "shift"}  # direct on a run-time grid; two 8-bit halves of what was shift-quantized


@dataclass(frozen=True)
class QuantizerMap:
    """paths: in the order of the symbols' table. cells: layer -> path -> what quantizes there, in the order of the graph.

    A cell lists FUNCTION/BITS/ROUNDING of its quantizers; `GAP` where an expected one is missing, `CONSTANT` where the conversion
    has quantized what never changes.
    """

    paths: list[str]
    cells: dict[str, dict[str, list[str]]]

    def to_json(self) -> dict[str, object]:
        """The map with the list of its gaps."""
        return {"paths": self.paths, "cells": self.cells, "gaps": self.gaps}

    @property
    def gaps(self) -> list[tuple[str, str]]:
        """(layer, path) of each expected quantizer that is missing."""
        return [(layer, path) for layer, row in self.cells.items() for path, cell in row.items() if cell == [GAP]]


def quantizer_map(model: onnx.ModelProto) -> QuantizerMap | None:
    """The map of one of the project's quantized stages; None of any other model."""
    expected = expected_quantizers(model)
    if expected is None:
        return None
    cells: dict[str, dict[str, list[str]]] = {}
    for (layer, role), nodes in present_quantizers(model).items():
        cells.setdefault(layer, {})[role] = list(dict.fromkeys(map(_described, nodes))) or [CONSTANT]
    for layer, roles in expected.items():
        for role in roles:
            cells.setdefault(layer, {}).setdefault(role, [GAP])
    return QuantizerMap([p for p in SYMBOLS if any(p in row for row in cells.values())], cells)


def _described(node: onnx.NodeProto) -> str:
    """``direct/8/half_even``, with the function's name in docs/numerics.md, whatever the form in which it computes."""
    attrs = {a.name: a for a in node.attribute}
    function = node.op_type.split("Quantize")[0].lower()
    return f"{FUNCTIONS.get(function, function)}/{attrs['bits'].i}/{attrs['rounding'].s.decode()}"

"""Q_E1 and Q_E2 on errors, sums of errors on one exponent."""

from __future__ import annotations

from pathlib import Path

from until import after, formats

from networks import plain
from wageubn_onnx.passes.quantize import errors


def test_every_error_has_its_quantizer(tmp_path: Path) -> None:
    g, _ = after(errors.PASS, tmp_path)
    found = formats(g, "E1", "E2", "E.sum", "E.acc")
    products = {s.layer for s in g.states.values() if s.kind == "W"}
    assert {at[0] for at in found if at[1] == "E2"} == products
    assert {f for at, f in found.items() if at[1] == "E2"} == {("FlagQuantize", 8, -127, 127)}
    assert {f for at, f in found.items() if at[1] == "E1"} == {("ShiftQuantize", 8, -127, 127)}
    assert {at: f for at, f in found.items() if at[1] == "E.sum"} == {
        (layer, "E.sum"): ("AlignQuantize", 16, -32767, 32767) for layer in ("a1", "b1")
    }
    for layer, roles in g.notes["expected"].items():
        assert {at[1] for at in found if at[0] == layer} == {r for r in roles if r in ("E1", "E2", "E.sum", "E.acc")}


def test_a_data_gradient_too_long_for_int32_is_shortened(tmp_path: Path) -> None:
    """c2: 16*9*9 products of at most 127 * 127 * 128 need 33 bits: beyond the 29 of the format."""
    assert (16 * 9 * 9 * 127 * 127 * 128).bit_length() > 28
    g, _ = after(errors.PASS, tmp_path, plain)
    assert formats(g, "E.acc") == {("c2", "E.acc"): ("GridQuantize", 29, -(2**28) + 1, 2**28 - 1)}
    assert "E.acc" in g.notes["expected"]["c2"]

"""Q_A on activations and before products; Q_S on residual streams."""

from __future__ import annotations

from pathlib import Path

from until import after, formats

from networks import preactivation
from wageubn_onnx.passes.quantize import activations


def test_a_relu_s_output_uses_the_positive_half(tmp_path: Path) -> None:
    g, _ = after(activations.PASS, tmp_path)
    found = formats(g, "A", "S")
    relus = {at: f for at, f in found.items() if at[0].startswith("relu")}
    assert len(relus) == 6 and set(relus.values()) == {("DirectQuantize", 8, 0, 127)}
    averages = {at[0]: f for at, f in found.items() if at not in relus}
    assert averages == dict.fromkeys(["b_pool", "blur", "gap"], ("DirectQuantize", 8, -127, 127))


def test_a_sum_that_no_relu_follows_is_a_stream_of_16_bits(tmp_path: Path) -> None:
    g, _ = after(activations.PASS, tmp_path, preactivation)
    expected = ("DirectQuantize", 16, -32767, 32767)
    assert formats(g, "S") == {("a_add", "S"): expected, ("b_add", "S"): expected}
    assert {layer for layer, roles in g.notes["expected"].items() if "S" in roles} == {"a_add", "b_add"}

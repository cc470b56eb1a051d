"""What the audit later holds a layer to."""

from __future__ import annotations

from pathlib import Path

from until import after

from wageubn_onnx.passes.quantize import expect
from wageubn_onnx.profiles import load_profile


def test_a_layer_is_held_to_the_places_that_it_has(tmp_path: Path) -> None:
    expected = after(expect.PASS, tmp_path)[0].notes["expected"]
    assert expected["stem"] == ["C", "E2", "G.W", "G.decay", "M.W", "U.W", "W"]
    assert expected["fc"] == ["E2", "G.W", "G.bias", "G.decay", "M.W", "M.bias", "U.W", "U.bias", "W", "Z", "bias"]
    assert expected["relu2"] == ["A", "E1"]
    assert expected["input"] == ["I"]
    assert expected["optimizer"] == ["M.coefficient", "lr"]


def test_a_path_in_float_is_not_expected(tmp_path: Path) -> None:
    expected = after(expect.PASS, tmp_path, profile=load_profile("full8-E2-G.W"))[0].notes["expected"]
    assert expected["stem"] == ["C", "M.W", "U.W", "W"]  # and with E2 the grid of G.decay

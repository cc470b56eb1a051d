"""The quantizer map: the manifest's quantizers, gaps, and what was quantized at conversion."""

from __future__ import annotations

from pathlib import Path

import onnx

from networks import BATCH, MEAN, STD
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.graph import node_tag
from wageubn_onnx.inspect.quantizers import CONSTANT, GAP, quantizer_map
from wageubn_onnx.pipeline import convert

FAMILIES = {"Direct": "direct", "Grid": "direct", "Shift": "shift", "Flag": "flag", "Align": "align", "Constant": "constant"}


def test_the_map_is_the_manifests(tiny_artifacts: Artifacts) -> None:
    found = quantizer_map(tiny_artifacts.files["int_training"])
    assert found is not None and found.gaps == []
    expected: dict[str, dict[str, list[str]]] = {}
    for entry in tiny_artifacts.manifest["quantizers"]:
        cell = expected.setdefault(entry["layer"], {}).setdefault(entry["role"], [])
        text = f"{FAMILIES[entry['function'].split('Quantize')[0]]}/{entry['bits']}/{entry['rounding']}"
        if text not in cell:
            cell.append(text)
    assert found.cells == expected
    assert found.cells["a1"]["G.W"] == ["constant/8/stochastic"] and found.cells["a1"]["E2"] == ["flag/8/half_even"]
    assert set(found.paths) == {path for row in expected.values() for path in row}


def test_quantized_and_integer_stages_have_the_same_map(tiny_artifacts: Artifacts) -> None:
    for quantized, integer in (("quant_training", "int_training"), ("quant_eval", "int_eval")):
        one, other = (quantizer_map(tiny_artifacts.files[stage]) for stage in (quantized, integer))
        assert one is not None and other is not None and one.cells == other.cells


def test_a_quantizer_that_is_passed_by_is_a_gap(tiny_artifacts: Artifacts) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_artifacts.files["quant_training"])
    quantizer = next(n for n in model.graph.node if n.name == "a1/Q_C")
    assert node_tag(quantizer).role == "C"
    for node in model.graph.node:
        node.input[:] = [quantizer.input[0] if name == quantizer.output[0] else name for name in node.input]
    found = quantizer_map(model)
    assert found is not None and found.gaps == [("a1", "C")] and found.cells["a1"]["C"] == [GAP]


def test_frozen_parameters_are_constants(tiny_file: Path) -> None:
    config = Config(batch=BATCH, mean=MEAN, std=STD, freeze=("stem",))
    found = quantizer_map(convert(tiny_file, config).files["int_training"])
    assert found is not None and found.cells["stem"]["W"] == [CONSTANT] and found.gaps == []


def test_what_expects_no_quantizers_has_no_map(tiny_artifacts: Artifacts) -> None:
    assert quantizer_map(tiny_artifacts.files["fp_training"]) is None

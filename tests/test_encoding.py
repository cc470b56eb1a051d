"""A model written in parts has the bytes of the whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from wageubn_onnx.artifacts import Artifacts
from wageubn_onnx.encoding import encode
from wageubn_onnx.graph import add_parameters

PARAMETERS = {
    "a": np.arange(300, dtype=np.float32).reshape(3, 100),  # a length of two bytes
    "b": np.float32(2).reshape(()),
    "c": np.ones((0, 2), np.int64),
    "ö": np.arange(6, dtype=np.int8).reshape(2, 3).T,
    "big": np.zeros(20_000, np.int16),  # of three
}


@pytest.mark.parametrize("names", [[], ["a"], ["b", "c"], list(PARAMETERS)])
def test_the_parts_are_the_whole(names: list[str], tiny_artifacts: Artifacts) -> None:
    parameters = {name: PARAMETERS[name] for name in names}
    for graph in tiny_artifacts.graphs.values():
        whole = onnx.ModelProto()
        whole.CopyFrom(graph)
        add_parameters(whole, parameters)
        assert b"".join(encode(graph, parameters)) == whole.SerializeToString(deterministic=True)


def test_an_empty_model_takes_parameters() -> None:
    model = onnx.load_from_string(b"".join(encode(onnx.ModelProto(), PARAMETERS)))
    for tensor, (name, value) in zip(model.graph.initializer, PARAMETERS.items(), strict=True):
        assert tensor.name == name
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), value)

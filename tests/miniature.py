"""A converted folder in miniature: steps of a few nodes that keep to the contract, and data to drive them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from wageubn_onnx.artifacts.contents import seal
from wageubn_onnx.artifacts.files import save_tensors
from wageubn_onnx.training.data import Dataset

BATCH, CLASSES, SHAPE = 4, 3, (1, 2, 2)  # SHAPE: one image's [C, H, W]
FEATURES = 4
MEAN, STD, SCALE = [0.25], [0.5], 1 / 255


def _value(name: str, dtype: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, dtype, shape)


def _constant(name: str, dtype: int, values: Any, shape: list[int] | None = None) -> onnx.TensorProto:
    flat = list(np.ravel(values))
    return h.make_tensor(name, dtype, [] if shape is None else shape, flat)


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> None:
    graph = h.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _int_training(path: Path) -> None:
    """Mix images, labels, scalars and the step counter into the weights, so that each of them shows in the bits."""
    nodes = [
        h.make_node("Cast", ["images"], ["x"], to=T.INT32),
        h.make_node("ReduceSum", ["x"], ["pixels"], keepdims=0),
        h.make_node("ReduceSum", ["labels"], ["marks"], keepdims=0),
        h.make_node("Mul", ["marks", "lr"], ["rated"]),
        h.make_node("Mul", ["seed", "counter"], ["random"]),
        h.make_node("Add", ["pixels", "rated"], ["a"]),
        h.make_node("Add", ["a", "random"], ["b"]),
        h.make_node("Add", ["b", "gradient_range"], ["gradient"]),
        h.make_node("Add", ["weight", "gradient"], ["moved"]),
        h.make_node("Mod", ["moved", "limit"], ["weight_out"]),
        h.make_node("Add", ["counter", "one"], ["counter_out"]),
        h.make_node("Mod", ["b", "limit"], ["loss"]),
        h.make_node("Mod", ["marks", "batch"], ["correct"]),
    ]
    scalars = [_value(name, T.INT32, []) for name in ("lr", "gradient_range", "seed", "counter")]
    inputs = [
        _value("images", T.UINT8, [BATCH, *SHAPE]),
        _value("labels", T.INT32, [BATCH]),
        *scalars,
        _value("weight", T.INT32, [FEATURES, CLASSES]),
    ]
    outputs = [_value(name, T.INT32, []) for name in ("counter_out", "loss", "correct", "gradient")]
    constants = [_constant("one", T.INT32, 1), _constant("limit", T.INT32, 1000), _constant("batch", T.INT32, BATCH)]
    _save(path, nodes, inputs, [*outputs, _value("weight_out", T.INT32, [FEATURES, CLASSES])], constants)


def _int_eval(path: Path) -> None:
    nodes = [
        h.make_node("Cast", ["images"], ["x"], to=T.INT32),
        h.make_node("Flatten", ["x"], ["flat"]),
        h.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    inputs = [_value("images", T.UINT8, ["n", *SHAPE]), _value("weight", T.INT32, [FEATURES, CLASSES])]
    _save(path, nodes, inputs, [_value("logits", T.INT32, ["n", CLASSES])], [])


def _fp_training(path: Path) -> None:
    """One gradient step of a linear classifier's mean logit."""
    nodes = [
        h.make_node("Flatten", ["images"], ["flat"]),
        h.make_node("MatMul", ["flat", "weight"], ["logits"]),
        h.make_node("SoftmaxCrossEntropyLoss", ["logits", "labels"], ["loss"], reduction="mean"),
        h.make_node("Mul", ["loss", "lr"], ["step"]),
        h.make_node("Sub", ["weight", "step"], ["weight_out"]),
    ]
    inputs = [
        _value("images", T.FLOAT, [BATCH, *SHAPE]),
        _value("labels", T.INT32, [BATCH]),
        _value("lr", T.FLOAT, []),
        _value("weight", T.FLOAT, [FEATURES, CLASSES]),
    ]
    outputs = [_value("loss", T.FLOAT, []), _value("weight_out", T.FLOAT, [FEATURES, CLASSES])]
    _save(path, nodes, inputs, outputs, [])


def _forward(path: Path) -> None:
    weight = np.arange(FEATURES * CLASSES) / 10
    nodes = [h.make_node("Flatten", ["images"], ["flat"]), h.make_node("MatMul", ["flat", "weight"], ["logits"])]
    inputs = [_value("images", T.FLOAT, ["n", *SHAPE]), _value("weight", T.FLOAT, [FEATURES, CLASSES])]
    constants = [_constant("weight", T.FLOAT, weight, [FEATURES, CLASSES])]
    _save(path, nodes, inputs, [_value("logits", T.FLOAT, ["n", CLASSES])], constants)


MANIFEST: dict[str, Any] = {
    "format": 2,
    "step": {
        "model": "int_training.onnx",
        **{name: name for name in ("images", "labels", "lr", "gradient_range", "seed", "loss", "correct")},
        "health": [],
    },
    "eval": {"model": "int_eval.onnx", "images": "images", "logits": "logits"},
    "fp_step": {
        "model": "fp_training.onnx",
        "images": "images",
        "labels": "labels",
        "lr": "lr",
        "loss": "loss",
    },
    "fp_eval": {"model": "forward.onnx", "images": "images", "logits": "logits"},
    "state": [
        {"in": "weight", "out": "weight_out", "key": "linear.weight"},
        {"in": "counter", "out": "counter_out", "key": "step"},
    ],
    "fp_state": [{"in": "weight", "out": "weight_out", "key": "linear.weight"}],
    "input": {"scale": SCALE, "mean": MEAN, "std": STD},
    "exponents": {"lr": -9, "loss": -4},
    "quantizers": [
        {
            **{"node": "rate", "layer": "", "role": "lr", "function": "DirectQuantize", "rounding": "half_even"},
            **{"bits": 12, "fraction": 9, "min": 0, "max": 2047},
        }
    ],
    "tensors": {"linear.weight": {"dtype": "int32", "exponent": -7, "min": -1000, "max": 1000}},
}


def write_folder(folder: Path) -> Path:
    """Write the miniature to ``folder`` and return it."""
    folder.mkdir()
    _int_training(folder / "int_training.onnx")
    _int_eval(folder / "int_eval.onnx")
    _fp_training(folder / "fp_training.onnx")
    _forward(folder / "forward.onnx")
    weight = np.arange(FEATURES * CLASSES).reshape(FEATURES, CLASSES)
    initial = {"linear.weight": weight.astype(np.int32), "step": np.array(0, np.int32)}
    save_tensors(folder / "state.safetensors", initial)
    save_tensors(folder / "fp_state.safetensors", {"linear.weight": (weight / 10).astype(np.float32)})
    seal(folder, MANIFEST)
    return folder


def make_data(train: int = 14, test: int = 6) -> Dataset:
    """Return random images; 14 = 3 batches and 2 left over."""
    generator = np.random.default_rng(7)
    arrays = []
    for count in (train, test):
        arrays.append(generator.integers(0, 256, (count, *SHAPE), dtype=np.uint8))
        arrays.append(generator.integers(0, CLASSES, count, dtype=np.int32))
    return Dataset(*arrays)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "net")


@pytest.fixture
def data() -> Dataset:
    return make_data()


@pytest.fixture
def data_file(tmp_path: Path, data: Dataset) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x_train=data.x_train, y_train=data.y_train, x_test=data.x_test, y_test=data.y_test)
    return path


@pytest.fixture
def edit_manifest(folder: Path) -> Callable[..., None]:
    """Return a function that replaces top-level entries of the folder's manifest, and the hashes of its files."""

    def edit(**changes: Any) -> None:
        file = folder / "manifest.json"
        seal(folder, {**json.loads(file.read_text()), **changes})

    return edit

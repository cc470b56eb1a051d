"""A folder as onnxruntime-training's `generate_artifacts` writes it, by hand: a training graph, an optimizer, a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper
from sources import WIDTH

from networks import CLASSES, Array, Net

MICROSOFT = "com.microsoft"
BATCH = 2  # of the training graph, folded into its Reshape


def network() -> tuple[Net, str]:
    """Conv, BN, Relu, MaxPool, a residual block, and a Reshape to [2, 4]; and the name of the logits."""
    n = Net()
    x = n.relu(n.bn(n.conv("x", "conv", 3, WIDTH), "bn", WIDTH))
    x = n.node("MaxPool", x, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    y = n.bn(n.conv(x, "block", WIDTH, WIDTH), "block_bn", WIDTH, epsilon=1e-3, momentum=0.8)
    x = n.node("GlobalAveragePool", n.relu(n.node("Add", y, x, name="sum")), name="gap")
    return n, n.gemm(n.node("Reshape", x, n.tensor("shape", [BATCH, -1], np.int64), name="flat"), WIDTH, CLASSES)


def inference_model() -> onnx.ModelProto:
    """The same network as it was before, with parameters inside; its batch is that of the training graph."""
    n, logits = network()
    return n.model(logits, shape=(BATCH, CLASSES), batch=BATCH)


def training_model(**changes: Any) -> onnx.ModelProto:
    """Its training graph: BN in onnxruntime's own form, the loss and the start of the backward half.

    changes: ``loss``, more attributes of the loss; ``weights``, the name of class weights; ``op``, a foreign operator in the
    place of the stem's ReLU.
    """
    n, logits = network()
    constants = [t for t in n.tensors if t.name == "shape"]
    parameters = [t for t in n.tensors if t.name != "shape"]
    nodes = []
    for node in n.nodes:
        if node.op_type == "BatchNormalization":
            outputs = [node.output[0], *(f"{node.name}/{k}" for k in ("mean_def", "var_def", "saved_mean", "saved_inv_std"))]
            attributes = {a.name: h.get_attribute_value(a) for a in node.attribute}
            node = h.make_node(
                "BatchNormInternal", list(node.input), outputs, node.name, domain=MICROSOFT, training_mode=1, **attributes
            )
        if node.op_type == "MaxPool":
            node.output.append("pool/indices")  # for its gradient
        nodes.append(node)
    if "op" in changes:
        nodes[2] = h.make_node(changes["op"], list(nodes[2].input), list(nodes[2].output), "foreign", domain=MICROSOFT)
    operands = [logits, "labels", *([changes["weights"]] if "weights" in changes else [])]
    attributes = {"reduction": "mean"} | changes.get("loss", {})
    nodes.append(h.make_node("SoftmaxCrossEntropyLoss", operands, ["loss", "log_prob"], "loss", **attributes))
    nodes.append(
        h.make_node("SoftmaxCrossEntropyLossGrad", ["seed", "log_prob", "labels"], ["dlogits"], "dloss", domain=MICROSOFT)
    )
    nodes.append(h.make_node("InPlaceAccumulatorV2", ["buffer", "dlogits"], ["done"], "accumulate", domain=MICROSOFT))
    inputs = [
        h.make_tensor_value_info("x", T.FLOAT, [BATCH, *n.shape]),
        h.make_tensor_value_info("labels", T.INT64, [BATCH]),
        *(h.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in parameters),
        h.make_tensor_value_info("buffer", T.FLOAT, [BATCH, CLASSES]),
    ]
    constants.append(numpy_helper.from_array(np.ones([], np.float32), "seed"))
    outputs = [h.make_tensor_value_info("loss", T.FLOAT, []), h.make_tensor_value_info("done", T.BOOL, [1])]
    graph = h.make_graph(nodes, "training", inputs, outputs, constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 15), h.make_opsetid(MICROSOFT, 1)], ir_version=8)


def optimizer_model(kind: str) -> onnx.ModelProto:
    node = h.make_node(kind, ["lr", "params", "gradients"], ["done"], "optimizer", domain=MICROSOFT)
    graph = h.make_graph(
        [node], "optimizer", [h.make_tensor_value_info("lr", T.FLOAT, [1])], [h.make_tensor_value_info("done", T.BOOL, [1])]
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid(MICROSOFT, 1)])


def write_folder(folder: Path, optimizer: str = "SGDOptimizerV2", **changes: Any) -> Path:
    """The whole folder; ``changes`` as `training_model` takes them."""
    folder.mkdir(exist_ok=True)
    onnx.save(training_model(**changes), folder / "training_model.onnx")
    onnx.save(optimizer_model(optimizer), folder / "optimizer_model.onnx")
    save_checkpoint(folder, parameter_values())
    return folder


def save_checkpoint(folder: Path, values: dict[str, Array], frozen: tuple[str, ...] = (), **more: Any) -> None:
    """Running statistics require no gradient, nor do the names in ``frozen``; ``more`` as `checkpoint` takes it."""
    still = {k: v for k, v in values.items() if "running" in k or k in frozen}
    (folder / "checkpoint").write_bytes(checkpoint({k: v for k, v in values.items() if k not in still}, still, **more))


def parameter_values() -> dict[str, Array]:
    n, _ = network()
    return {t.name: numpy_helper.to_array(t) for t in n.tensors if t.name != "shape"}


# -- the flatbuffer -------------------------------------------------------------------------------------------------------


def checkpoint(
    trained: dict[str, Array],
    frozen: dict[str, Array],
    groups: list[tuple[str, int, float]] | None = None,
    properties: dict[str, Any] | None = None,
    version: int = 2,
    nominal: bool = False,
    external: bytearray | None = None,
) -> bytes:
    """The bytes of a checkpoint; with ``external`` the tensors' bytes are appended to that instead."""
    b = flatbuffers.Builder()
    module = _table(b, {
        0: _vector(b, [_tensor(b, k, v, external) for k, v in trained.items()]),
        1: _vector(b, [_tensor(b, k, v, external) for k, v in frozen.items()]),
        2: ("Bool", nominal),
        3: ("Bool", external is not None),
    })  # fmt: skip
    found = [_table(b, {0: b.CreateString(name), 1: ("Int64", step), 2: ("Float32", rate)}) for name, step, rate in groups or []]
    bags: dict[str, list[int]] = {"Int64": [], "Float32": [], "text": []}
    for name, value in (properties or {}).items():
        kind = {int: "Int64", float: "Float32", str: "text"}[type(value)]
        written = b.CreateString(value) if kind == "text" else (kind, value)
        bags[kind].append(_table(b, {0: b.CreateString(name), 1: written}))
    bag = _table(b, {i: _vector(b, tables) for i, tables in enumerate(bags.values())})
    b.Finish(_table(b, {0: ("Int32", version), 1: module, 2: _vector(b, found), 3: bag}), file_identifier=b"ODTC")
    return bytes(b.Output())


def _tensor(b: Any, name: str, value: Array, external: bytearray | None) -> int:
    code, raw = h.np_dtype_to_tensor_dtype(value.dtype), value.tobytes()
    fields: dict[int, Any] = {
        0: b.CreateString(name),
        2: b.CreateNumpyVector(np.array(value.shape, np.int64)),
        3: ("Int32", code),
    }
    if external is None:
        fields[4] = b.CreateByteVector(raw)
    else:
        fields[6] = ("Int64", len(external), -1)
        external += raw
    return _table(b, fields)


def _table(b: Any, fields: dict[int, Any]) -> int:
    """A table of fields by number: an offset, or (type, value) or (type, value, default)."""
    b.StartObject(max(fields) + 1)
    for number, field in fields.items():
        if isinstance(field, tuple):
            kind, value, *default = field
            getattr(b, f"Prepend{kind}Slot")(number, value, default[0] if default else 0)
        else:
            b.PrependUOffsetTRelativeSlot(number, field, 0)
    return int(b.EndObject())


def _vector(b: Any, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())

"""The forward network inside a training graph of onnxruntime (`generate_artifacts`): the part between the image and the loss.

A folder of artifacts holds training_model.onnx (forward, loss and gradients; parameters are graph inputs), checkpoint (their
values), optimizer_model.onnx and eval_model.onnx, which is not needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.errors import UnsupportedOperator, WageubnError
from wageubn_onnx.graph import load_model
from wageubn_onnx.passes.importing.checkpoint import DATA_SUFFIX, Checkpoint, read_checkpoint

MODEL, EVALUATION, OPTIMIZER, CHECKPOINT = "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint"
LOSSES = ("SoftmaxCrossEntropyLoss", "SoftmaxCrossEntropyLossInternal")
GRADIENTS = ("SoftmaxCrossEntropyLossGrad", "SoftmaxCrossEntropyLossInternalGrad", "InPlaceAccumulatorV2")
MICROSOFT = "com.microsoft"
# Forward operators that onnxruntime puts in place of a standard one when it builds the gradients; their first output is the same
STANDARD = {"BatchNormInternal": "BatchNormalization", "BitmaskDropout": "Dropout"}
SHOWN = 3  # names in a message


def model_file(folder: Path) -> Path:
    """The training model of the artifact folder ``folder``, whatever ``prefix`` `generate_artifacts` was given.

    Raises WageubnError where there is none, or several that all have a prefix.
    """
    found = [folder / MODEL] if (folder / MODEL).is_file() else sorted(folder.glob(f"*{MODEL}"))
    if not found:
        raise WageubnError(f"{folder}: no {MODEL} in this folder; give an ONNX file, or the artifacts of onnxruntime-training")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:SHOWN])
        raise WageubnError(f"{folder}: has {len(found)} training models, {names}; give the path of one of them")
    return found[0]


def _beside(file: Path, name: str) -> Path:
    """The artifact ``name`` that was written with the model ``file``, under the same prefix."""
    ending = next((model for model in (MODEL, EVALUATION) if file.name.endswith(model)), file.name)
    return file.with_name(file.name.removesuffix(ending) + name)


def is_training_graph(model: onnx.ModelProto) -> bool:
    """Whether a loss or gradients are in it: training_model.onnx and eval_model.onnx."""
    return any(node.op_type in (*LOSSES, *GRADIENTS) for node in model.graph.node)


def recover(model: onnx.ModelProto, file: Path) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """The network from the image to the logits that the loss of ``model`` reads, parameters from the checkpoint beside ``file``.

    With it what `read.findings` tells: ``files``, those that were read; ``frozen``, parameters that require no gradient;
    ``notes``, lines on what of loss, optimizer and checkpoint is kept. Raises WageubnError, in one line, where loss, operator,
    parameter or file is missing or has no counterpart here.
    """
    graph = model.graph
    loss = _loss(graph, file)
    nodes = _leading_to(graph, loss.input[0])
    read = {name for node in nodes for name in node.input}
    constants = {t.name: t for t in graph.initializer if t.name in read}
    inputs = [i for i in graph.input if i.name in read and i.name not in constants]
    checkpoint = read_checkpoint(_beside(file, CHECKPOINT))
    values = checkpoint.trained | checkpoint.frozen
    image = next((i for i in inputs if i.name not in values), None)  # the user's inputs come before the parameters
    if image is None:
        raise WageubnError(f"{file}: no input but parameters leads to the loss; an image is needed")
    parameters = [_parameter(i, values, file) for i in inputs if i is not image]
    logits = next((v for v in graph.value_info if v.name == loss.input[0]), None)
    nodes = [_standard(node, file) for node in nodes]
    opset = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    output = logits or helper.make_tensor_value_info(loss.input[0], onnx.TensorProto.FLOAT, [None, None])
    network = helper.make_graph(nodes, graph.name, [image], [output], [*parameters, *constants.values()])
    forward = helper.make_model(network, opset_imports=opset, ir_version=max(model.ir_version, 4))
    statistics = {name for node in nodes if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    frozen = [p.name for p in parameters if p.name in checkpoint.frozen and p.name not in statistics]
    notes = [*_loss_notes(loss), *_optimizer_notes(file), *_checkpoint_notes(checkpoint, frozen)]
    return forward, {"files": [str(f) for f in _files(file)], "frozen": frozen, "notes": notes}


def _files(file: Path) -> list[Path]:
    """``file`` and those beside it that are read."""
    names = (CHECKPOINT, CHECKPOINT + DATA_SUFFIX, OPTIMIZER)
    return [file, *(beside for name in names if (beside := _beside(file, name)).is_file())]


# -- the graph ------------------------------------------------------------------------------------------------------------


def _loss(graph: onnx.GraphProto, file: Path) -> onnx.NodeProto:
    """The one softmax cross-entropy, whose mean is the model's loss."""
    losses: list[onnx.NodeProto] = [node for node in graph.node if node.op_type in LOSSES]
    if len(losses) != 1:
        names = ", ".join(repr(node.name) for node in losses) or "none"
        raise WageubnError(f"{file}: a training graph needs one {LOSSES[0]}; it has {names}")
    (loss,) = losses
    where = f"{file}: loss {loss.name!r}"
    attributes = {a.name: helper.get_attribute_value(a) for a in loss.attribute}
    if len(loss.input) > 2 and loss.input[2]:
        raise WageubnError(f"{where} weighs the classes by {loss.input[2]!r}; which has no integer form here; leave it out")
    if len(loss.input) > 3 or attributes.get("ignore_index", -1) >= 0:
        raise WageubnError(f"{where} ignores a class (ignore_index); leave its images out of the data instead")
    if attributes.get("reduction", b"mean") == b"none":
        raise WageubnError(f"{where} is not reduced to a scalar; use reduction mean")
    if loss.output[0] not in {o.name for o in graph.output}:
        raise WageubnError(f"{where} is not the model's output: more is computed from it; train on {LOSSES[0]} alone")
    return loss


def _leading_to(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that ``tensor`` depends on, in graph order."""
    makers = {name: node for node in graph.node for name in node.output if name}
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += makers[name].input if name in makers else []
    return [node for node in graph.node if found.intersection(node.output)]


def _standard(node: onnx.NodeProto, file: Path) -> onnx.NodeProto:
    """The operator of ONNX whose first output is the node's."""
    if node.domain != MICROSOFT:
        return node
    if node.op_type not in STANDARD:
        raise UnsupportedOperator(
            f"{file}: node {node.name!r}: operator {MICROSOFT}.{node.op_type} has no rule; build the artifacts without it"
        )
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain, plain.op_type = "", STANDARD[node.op_type]
    del plain.output[1:]  # which gradients read
    kept = [a for a in plain.attribute if a.name != "training_mode"]  # which old opsets do not have
    del plain.attribute[:]
    plain.attribute.extend(kept)
    return plain


def _parameter(value: onnx.ValueInfoProto, values: dict[str, np.ndarray], file: Path) -> onnx.TensorProto:
    """The initializer of a graph input, which the checkpoint must hold in the dtype and shape that the graph declares."""
    checkpoint = _beside(file, CHECKPOINT)
    if value.name not in values:
        raise WageubnError(f"{checkpoint}: parameter {value.name!r} of {file.name} is missing; give the checkpoint made with it")
    array, declared = values[value.name], value.type.tensor_type
    shape = [d.dim_value for d in declared.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(declared.elem_type)
    if list(array.shape) != shape or array.dtype != dtype:
        found = f"{array.dtype.name} {list(array.shape)}, but {dtype.name} {shape} in {file.name}"
        raise WageubnError(f"{checkpoint}: parameter {value.name!r} is {found}; give the checkpoint made with it")
    return numpy_helper.from_array(array, value.name)


# -- what is said of the rest ---------------------------------------------------------------------------------------------


def _loss_notes(loss: onnx.NodeProto) -> list[str]:
    reduction = next((a.s for a in loss.attribute if a.name == "reduction"), b"mean")
    return ["loss: theirs is summed over the batch, this step's is its mean"] if reduction == b"sum" else []


def _optimizer_notes(file: Path) -> list[str]:
    """What becomes of optimizer_model.onnx, where it is there."""
    path = _beside(file, OPTIMIZER)
    if not path.is_file():
        return []
    kinds = sorted({node.op_type for node in load_model(path).graph.node if node.domain == MICROSOFT})
    ours = "this step is SGD with momentum and weight decay"
    if kinds == ["SGDOptimizerV2"]:
        return [f"optimizer: SGDOptimizerV2 is SGD without momentum; {ours} (--weight-decay, --momentum, the profile's momentum)"]
    return [f"optimizer: {', '.join(kinds) or OPTIMIZER} cannot be kept in integers; {ours}"]


def _checkpoint_notes(checkpoint: Checkpoint, frozen: list[str]) -> list[str]:
    notes = [
        f"checkpoint: optimizer {group.name!r} took {group.step} steps, initial learning rate {group.learning_rate:g}; "
        "its state is not kept, and `train --lr` sets the rate"
        for group in checkpoint.groups
    ]
    if checkpoint.properties:
        notes.append("checkpoint: " + ", ".join(f"{name} = {value}" for name, value in checkpoint.properties.items()))
    if frozen:
        more = f" and {len(frozen) - SHOWN} more" if len(frozen) > SHOWN else ""
        notes.append(f"checkpoint: frozen {', '.join(frozen[:SHOWN])}{more}")
    return notes

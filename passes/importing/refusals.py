"""What is said of an operator that has no rule: the source's own node, and the remedy that fits it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.errors import UnsupportedOperator
from wageubn_onnx.passes.importing.heads import RESHAPES
from wageubn_onnx.passes.importing.surgery import at, maker, values, written

MOVES = (*RESHAPES, "Transpose", "Concat", "Slice", "Expand", "Tile", "Split")
ENDINGS = ("Softmax", "LogSoftmax", "ArgMax", "Cast")  # without a rule because something reads them
SECONDARY = (*MOVES, *ENDINGS)  # seldom what is missing, where something else is

RELU = "only ReLU is trained in integers: put it in that place (PyTorch: nn.ReLU), fine-tune, and export again"
BATCH_NORM = "only BatchNormalization has one: train the network with that"
FLOAT = "the network is quantized already: give the float network that it was made of"
NO_CONTROL = "control flow depends on the image: export the network by tracing, in inference mode"
CHANNELS = (
    "channels may be reordered or copied only before a convolution without groups, and copies must be normalised alike: do it "
    "outside of the network"
)
REMEDIES = {
    RELU: "HardSwish HardSigmoid Sigmoid LeakyRelu PRelu Elu Selu Celu Gelu Mish Softplus Softsign Tanh ThresholdedRelu Erf Min",
    BATCH_NORM: "InstanceNormalization LayerNormalization GroupNormalization LpNormalization LRN",
    FLOAT: "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger",
    NO_CONTROL: "If Loop Scan",
    CHANNELS: "Gather Expand Tile Split",
}


def refuse_unknown(graph: gs.Graph, known: Collection[str]) -> None:
    """Raise UnsupportedOperator where a node's operator is not ``known``: of the first that is likely to be what is missing."""
    unknown = [node for node in graph.nodes if node.op not in known or node.domain]
    if not unknown:
        return
    node = min(unknown, key=lambda n: n.op in SECONDARY)
    raise UnsupportedOperator(
        f"{at(node, operators=False)}: operator {written(node)} has no rule here; {_remedy(graph, node)}; supported: "
        f"{', '.join(sorted(known))}"
    )


def _remedy(graph: gs.Graph, node: gs.Node) -> str:
    if node.op == "Clip":
        low, high = (values(node, i, default) for i, default in ((1, -np.inf), (2, np.inf)))
        if low is not None and high is not None:
            name = " (ReLU6, or a part of HardSwish)" if (np.max(low), np.min(high)) == (0, 6) else ""
            return f"it is Clip({np.max(low):g}, {np.min(high):g}){name}, and {RELU}"
    logits = _logits_before(graph, node)
    if logits is not None:
        return f"it comes after the logits {logits.name!r}: {keep_only(graph, logits)}"
    return next(
        (remedy for remedy, operators in REMEDIES.items() if node.op in operators.split()), "export the network without it"
    )


def keep_only(graph: gs.Graph, output: gs.Tensor) -> str:
    """How a user cuts a file so that it ends in ``output``."""
    return f"keep that alone, with onnx.utils.extract_model(FILE, NEW, [{graph.inputs[0].name!r}], [{output.name!r}])"


def _logits_before(graph: gs.Graph, node: gs.Node) -> gs.Tensor | None:
    """What the last dense layer makes, where ``node`` only works on that and no layer with weights follows; else None."""
    if any(later.op in ("Conv", "Gemm", "MatMul") for later in _behind(node)):
        return None
    before: gs.Node | None = node
    for _ in graph.nodes:
        makers = [made for i in before.inputs if (made := maker(i)) is not None] if before is not None else []
        if len({id(m) for m in makers}) != 1:
            return None
        before = makers[0]
        if before.op == "Gemm":
            result: gs.Tensor = before.outputs[0]
            return result
    return None


def _behind(node: gs.Node) -> list[gs.Node]:
    """Every node that depends on ``node``."""
    found: dict[int, gs.Node] = {}
    waiting = [node]
    while waiting:
        for reader in (r for o in waiting.pop().outputs for r in o.outputs):
            if id(reader) not in found:
                found[id(reader)] = reader
                waiting.append(reader)
    return list(found.values())

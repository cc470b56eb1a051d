"""What a network ends in: logits [N, classes] of one label an image, which softmax trains; or features, under a new head."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.operators import ACTIVATIONS, POOLS
from wageubn_onnx.passes.importing.heads import RESHAPES
from wageubn_onnx.passes.importing.refusals import keep_only
from wageubn_onnx.passes.importing.surgery import at, bypass, insert, maker

HEAD = "--num-classes 10 for a new, untrained head of that many classes"
TWO = "pass --num-classes 2 for a new, untrained head of two classes"


def drop_answers(graph: gs.Graph, config: Config) -> None:
    """A Sigmoid at the end, and what takes the axis from [N, 1], go with the head that `Config.num_classes` replaces.

    Raises WageubnError, naming the node, where the head stays: it says that the classes are no alternatives.
    """
    for output in list(graph.outputs):
        last = output
        while (node := maker(last)) is not None and not last.outputs and _is_answer(node):
            one = _is_one(node.inputs[0])
            if config.num_classes is None:
                kind = "one logit, of two classes" if one else "several labels an image"
                remedy = TWO if one else f"pass {HEAD}"
                raise WageubnError(
                    f"{at(node)}: {node.op} at the end leaves {kind}, and the step trains softmax, one label of several; {remedy}"
                )
            last = node.inputs[0]
            bypass(graph, node)
            graph.cleanup()


def _is_answer(node: gs.Node) -> bool:
    return bool(
        node.op == "Sigmoid" or (node.op in RESHAPES and _is_one(node.inputs[0]) and len(node.outputs[0].shape or ()) == 1)
    )


def _is_one(tensor: gs.Tensor) -> bool:
    """Whether it is one number an image."""
    return tensor.shape is not None and math.prod(tensor.shape[1:]) == 1


def settle_output(graph: gs.Graph, config: Config) -> bool:
    """Let the network end in one output [N, ...] of logits, or of features; whether these are features.

    With `Config.num_classes` a map is pooled to features, on which `head` puts a dense layer. Raises WageubnError, naming the
    outputs, where they are several, or none that softmax can train.
    """
    if len(graph.outputs) != 1:
        _refuse_several(graph)
    (output,) = graph.outputs
    if maker(output) is None:
        raise WageubnError(f"output {output.name!r} does not depend on the image; it must be logits [N, classes]")
    rank, replaced = len(output.shape or ()), config.num_classes is not None
    where = f"output {output.name!r} is {_shape(output)}"
    if (rank, replaced) == (4, False):
        raise WageubnError(
            f"{where}, a map; it must be logits [N, classes]: this is a backbone without a classifier; pass {HEAD}, on its "
            "features"
        )
    if rank == 4:
        graph.outputs = [_features(graph, output)]
        return True
    if rank == 1 and not replaced:
        raise WageubnError(f"{where}, one number an image; it must be logits [N, classes]: {TWO}")
    if rank != 2:
        raise WageubnError(f"{where}; it must be logits [N, classes]: end the network there")
    if not _is_classified(output):
        if not replaced:
            raise WageubnError(
                f"{where}, pooled features; it must be logits [N, classes]: this is a backbone without a classifier; pass {HEAD}"
            )
        return True
    if output.shape[1] < 2 and not replaced:
        raise WageubnError(f"{where}, one logit, and softmax over one class learns nothing: {TWO}")
    return False


def _refuse_several(graph: gs.Graph) -> None:
    shown = ", ".join(f"{output.name!r} {_shape(output)}" for output in graph.outputs) or "none"
    rows = [output for output in graph.outputs if len(output.shape or ()) == 2 and maker(output) is not None]
    remedy = ""
    if rows:
        best = max(rows, key=_depth)
        remedy = f"; {best.name!r} is computed last: {keep_only(graph, best)}"
    raise WageubnError(f"the network must end in one output of logits [N, classes]; it has {shown}{remedy}")


def _shape(tensor: gs.Tensor) -> str:
    """With N for the batch."""
    return "of unknown shape" if tensor.shape is None else f"[{', '.join(map(str, ['N', *tensor.shape[1:]]))}]"


def _depth(output: gs.Tensor) -> int:
    """How many nodes lead to ``output``."""
    found: set[int] = set()
    waiting = list(output.inputs)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting += [made for i in node.inputs if (made := maker(i)) is not None]
    return len(found)


def _is_classified(output: gs.Tensor) -> bool:
    """Whether a layer with weights makes the output: a dense one, or a convolution whose maps are averaged.

    BatchNormalization or a sum before the pool makes features, and so does a pool of features. (BatchNormalization of a dense
    layer's results is the classifier's own.)
    """
    node = maker(output)
    while node is not None and node.op in (*POOLS, *ACTIVATIONS, "Flatten"):
        node = maker(node.inputs[0])
    if node is not None and node.op == "BatchNormalization" and list(node.outputs[0].shape or [])[2:] == [1, 1]:
        node = maker(node.inputs[0])
    return node is not None and node.op in ("Conv", "Gemm")


def _features(graph: gs.Graph, output: gs.Tensor) -> gs.Tensor:
    """A map's averages, flattened."""
    (last,) = output.inputs
    pooled = output
    if list(output.shape[2:]) != [1, 1]:
        pooled = insert(graph, "GlobalAveragePool", f"{last.name}/pool", {}, [output], [*output.shape[:2], 1, 1], [last])
    shape = [pooled.shape[0], math.prod(pooled.shape[1:])]
    return insert(graph, "Flatten", f"{last.name}/flatten", {"axis": 1}, [pooled], shape, [last])

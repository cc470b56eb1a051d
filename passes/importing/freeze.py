"""What is not trained: whole layers by name or by their distance from the logits, and the running statistics of every BN."""

from __future__ import annotations

from fnmatch import fnmatchcase

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass

WEIGHTY = ("Conv", "Gemm")
SHOWN = 6  # names in a message


def freeze_parameters(g: Model, config: Config) -> None:
    """Mark the parameters that `Config.freeze`, `train_last` and `bn` leave as they are; the file of `forward` does not show it.

    A frozen layer is frozen whole: its BN keeps its running statistics too, and computes what it does in inference. Raises
    WageubnError for a pattern that matches no layer, for more layers than there are, and where nothing or not the new head would
    be trained.
    """
    layers = list(dict.fromkeys(state.layer for state in g.states.values()))
    frozen = {layer for pattern in config.freeze for layer in _matching(pattern, layers)}
    if config.train_last is not None:
        frozen |= set(layers) - _last(g, config.train_last)
    for state in g.states.values():
        if state.layer in frozen or (config.bn == "frozen" and state.kind in ("running_mean", "running_var")):
            state.frozen = True
    head = g.tag(g.named["logits"]).layer
    if config.num_classes is not None and head in frozen:
        raise WageubnError(
            f"layer {head!r}: is the new head of {config.num_classes} classes and must be trained; do not freeze it"
        )
    if all(state.frozen for state in g.states.values() if state.kind not in ("running_mean", "running_var")):
        raise WageubnError("every layer is frozen: nothing is left to train; freeze fewer")


def _matching(pattern: str, layers: list[str]) -> list[str]:
    found = [layer for layer in layers if fnmatchcase(layer, pattern)]
    if not found:
        names = ", ".join(layers[:SHOWN]) + (f", ... ({len(layers)} in all)" if len(layers) > SHOWN else "")
        raise WageubnError(f"freeze {pattern!r}: matches no layer with parameters; they are {names}")
    return found


def _last(g: Model, count: int) -> set[str]:
    """The last ``count`` layers with weights, and the BNs that read one of them with nothing but weightless operators between."""
    weighty = [g.tag(node.outputs[0]).layer for node in g.graph.nodes if node.op in WEIGHTY]
    if count > len(weighty):
        raise WageubnError(f"train-last {count}: the network has {len(weighty)} layers with weights; give that many at most")
    trained = set(weighty[-count:])
    following: set[str] = set()  # tensors that come from a trained layer
    for node in g.graph.nodes:
        layer = g.tag(node.outputs[0]).layer
        follows = any(i.name in following for i in node.inputs)
        if node.op == "BatchNormalization" and follows:
            trained.add(layer)
        if layer in trained if node.op in WEIGHTY else follows:
            following.add(node.outputs[0].name)
    return trained


PASS = Pass("freeze", "mark what is not trained: layers by name, all but the last ones, or BN's statistics", freeze_parameters)

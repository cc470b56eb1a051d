"""BN that was folded into a convolution at export comes back, with statistics measured on calibration images.

Every convolution is judged by itself: an exporter folds where it can, and leaves BN in other places. A convolution w*x + b that
no BN reads becomes BN(w*x) with mean E[w*x], variance Var[w*x], gamma sqrt(variance + epsilon) and
beta mean + b: the same function, and BN's training behaviour. The same for a BN whose importer knew only its scale and offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.dryrun import evaluator
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.operators import POOLS
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.importing.advice import keeping_batch_norm
from wageubn_onnx.passes.importing.formats import check_input, normalised
from wageubn_onnx.ranges import is_affine

Array = np.ndarray[Any, Any]
EPSILON, MOMENTUM = 1e-5, 0.9
BATCH = 8  # images at once, of which every convolution's output is kept
SHOWN = 3  # layers in a message
PARAMETERS = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}


def restore_batch_norm(g: Model, config: Config) -> None:
    """Give every folded convolution a BN of its own, ``LAYER.bn``; ``notes['folded']`` says how close the logits come, or None.

    ``config.keep_folded`` leaves the convolutions as they are, and freezes the statistics of a BN that has none of its own.
    Raises WageubnError where BN was folded and the config has neither images nor that.
    """
    g.notes["folded"] = None
    convolutions, unknown = _folded(g), _unknown(g)
    if not convolutions and _has_others(g, unknown):
        for node in unknown:  # a constant map: the file keeps its BNs
            _freeze(g, node.inputs[1:])
        unknown = []
    found = [*convolutions, *unknown]
    if not found:
        return
    layers = [g.tag(node.outputs[0]).layer for node in found]
    if config.keep_folded:
        for node in unknown:
            _freeze(g, node.inputs[3:])
        return
    if config.calibrate is None:
        raise WageubnError(_refusal(g, layers, len(convolutions)))
    check_input(g, config)
    images = normalised(config.calibrate, config)
    tensors = [node.outputs[0] for node in convolutions] + [node.inputs[0] for node in unknown]
    moments, before = _measure(g, tensors, images)
    for node in convolutions:
        _add_batch_norm(g, node, moments[node.outputs[0].name])
    for node in unknown:
        _set_statistics(g, node, moments[node.inputs[0].name])
    _, after = _measure(g, [], images)
    gap = float(abs(after - before).max())
    relative = gap / max(float(abs(before).max()), np.finfo(np.float32).tiny)
    g.notes["folded"] = {"layers": layers, "images": len(images), "max_difference": gap, "relative_difference": relative}
    g.notes["said"].append(
        f"BatchNormalization recovered from {len(images)} images at {_listed(layers)}: logits differ by at most {gap:.2g}, "
        f"{relative:.1e} of the greatest"
    )


def _freeze(g: Model, operands: Sequence[Tensor]) -> None:
    for operand in operands:
        g.states[operand.name].frozen = True


def _refusal(g: Model, layers: list[str], biased: int) -> str:
    """layers: all that were found; biased: how many of them are convolutions."""
    count = sum(node.op == "Conv" for node in g.graph.nodes)
    places = [f"{biased} of {count} convolutions with a bias and no BN"] if biased else []
    places += [f"{len(layers) - biased} scales and offsets without statistics"] if biased < len(layers) else []
    return (
        f"{' and '.join(places)}: BatchNormalization was folded at export, at {_listed(layers)}; pass --calibrate DATA to "
        "recover it from images, or --keep-folded to train without it, as where there never was any; or "
        f"{keeping_batch_norm(g.notes['producer'])}"
    )


def _listed(layers: list[str]) -> str:
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return ", ".join(repr(layer) for layer in layers[:SHOWN]) + more


# -- what was folded ------------------------------------------------------------------------------------------------------

KEEP_ORDER = (*POOLS, "Pad")  # between a convolution and its BN


def _folded(g: Model) -> list[gs.Node]:
    """Convolutions with a bias, which folding always makes, but for those that a BN reads and the one that makes the logits.

    Nothing tells a bias that the network had by design: the user judges.
    """
    head = g.named["logits"]
    while head.inputs and head.inputs[0].op in ("Flatten", "GlobalAveragePool", "AveragePool"):
        head = head.inputs[0].inputs[0]
    biased = [node for node in g.graph.nodes if node.op == "Conv" and len(node.inputs) > 2]
    return [node for node in biased if node.outputs[0] is not head and not _has_batch_norm(g, node.outputs[0])]


def _has_batch_norm(g: Model, tensor: Tensor) -> bool:
    """Whether a BN reads ``tensor``, at once or behind pooling and padding; a constant map is none."""
    waiting = [tensor]
    while waiting:
        for user in waiting.pop().outputs:
            if user.op == "BatchNormalization" and not is_affine(g, user):
                return True
            if user.op in KEEP_ORDER:
                waiting.append(user.outputs[0])
    return False


def _unknown(g: Model) -> list[gs.Node]:
    """BNs of which the source has no statistics: their running mean says ``calibrate``."""
    return [n for n in g.graph.nodes if n.op == "BatchNormalization" and g.states[n.inputs[3].name].info.get("calibrate")]


def _has_others(g: Model, unknown: list[gs.Node]) -> bool:
    """Whether the network has a BN that is neither one of ``unknown`` nor a constant map."""
    norms = [node for node in g.graph.nodes if node.op == "BatchNormalization" and not is_affine(g, node)]
    return len(norms) > len(unknown)


# -- what is measured -----------------------------------------------------------------------------------------------------


@dataclass
class _Moments:
    """Mean and variance per channel, float64 [C], of all values seen so far."""

    count: int
    mean: Array
    variance: Array

    @staticmethod
    def of(value: Array) -> _Moments:
        """Of [N, C, H, W]."""
        exact = value.astype(np.float64)
        return _Moments(value.size // value.shape[1], exact.mean((0, 2, 3)), exact.var((0, 2, 3)))

    def __add__(self, other: _Moments) -> _Moments:
        """Of both together (Chan et al., 1979)."""
        count = self.count + other.count
        share, shift = other.count / count, other.mean - self.mean
        variance = self.variance * (1 - share) + other.variance * share + shift**2 * share * (1 - share)
        return _Moments(count, self.mean + shift * share, variance)


def _measure(g: Model, tensors: list[Tensor], images: Array) -> tuple[dict[str, _Moments], Array]:
    """Moments of ``tensors`` by name, and the logits, over all ``images``."""
    found: dict[str, _Moments] = {}
    logits = []
    for results in _batches(g, tensors, images):
        logits.append(results.pop(g.named["logits"].name))
        for name, value in results.items():
            moments = _Moments.of(value)
            found[name] = found[name] + moments if name in found else moments
    return found, np.concatenate(logits)


def _batches(g: Model, tensors: list[Tensor], images: Array) -> Iterator[dict[str, Array]]:
    """``tensors`` and the logits by name, a few images after the other."""
    run = evaluator(g, {tensor.name: tensor for tensor in [*tensors, g.named["logits"]]})
    for start in range(0, len(images), BATCH):
        yield run({"images": images[start : start + BATCH]})


# -- what is changed ------------------------------------------------------------------------------------------------------


def _add_batch_norm(g: Model, convolution: gs.Node, moments: _Moments) -> None:
    """A BN behind ``convolution`` that takes over its bias; ``moments`` are those of its output, bias included."""
    output, bias = convolution.outputs[0], convolution.inputs.pop()
    g.graph.inputs.remove(bias)
    offset = g.states.pop(bias.name).value.astype(np.float64)
    variance = moments.variance.astype(np.float32)
    values = {
        "gamma": np.sqrt(variance.astype(np.float64) + EPSILON),
        "beta": moments.mean,
        "running_mean": moments.mean - offset,
        "running_var": variance,
    }
    layer = _new_layer(g, g.tag(output).layer)
    with g.context(layer=layer, source=g.tag(output).source, path="A"):
        states = []
        for kind, value in values.items():
            with g.context(path=f"BN.{kind}"):
                states.append(g.state(f"{layer}.{PARAMETERS[kind]}", kind, layer, value.astype(np.float32)).tensor)
        result = g.op("BatchNormalization", output, *states, name="bn", role="Y", epsilon=EPSILON, momentum=MOMENTUM)
    g.replace_uses(output, result)
    nodes = g.graph.nodes
    nodes.insert(next(i for i, node in enumerate(nodes) if node is convolution) + 1, nodes.pop())
    g.reordered()


def _set_statistics(g: Model, node: gs.Node, moments: _Moments) -> None:
    """gamma, beta and the statistics of a BN so that it computes what it did: gamma/sigma stays, and beta - mean·gamma/sigma."""
    gamma, beta, mean, variance = (g.states[tensor.name] for tensor in node.inputs[1:])
    slope = gamma.value / np.sqrt(variance.value.astype(np.float64) + node.attrs["epsilon"])
    offset = beta.value - mean.value * slope
    mean.value, variance.value = moments.mean.astype(np.float32), moments.variance.astype(np.float32)
    node.attrs["epsilon"] = EPSILON
    gamma.value = (slope * np.sqrt(variance.value.astype(np.float64) + EPSILON)).astype(np.float32)
    beta.value = (offset + mean.value * slope).astype(np.float32)


def _new_layer(g: Model, convolution: str) -> str:
    """``CONVOLUTION.bn``, or with a number where the source has such a name."""
    taken = {state.layer for state in g.states.values()} | set(g.states)
    name, count = f"{convolution}.bn", 1
    while name in taken or any(f"{name}.{suffix}" in taken for suffix in PARAMETERS.values()):
        count += 1
        name = f"{convolution}.bn{count}"
    return name


PASS = Pass("folded", "BN that was folded into convolutions at export, recovered from calibration images", restore_batch_norm)

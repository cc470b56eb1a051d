"""A new head: the last Gemm for another number of classes, its weights drawn anew; or one on top of a backbone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass

Array = np.ndarray[Any, Any]
SEED = 0


LAYER = "head"  # of a network that has none


def replace_head(g: Model, config: Config) -> None:
    """Where `Config.num_classes` asks for it: weight [classes, features] uniform in +-1/sqrt(features), the bias, if any, 0.

    So PyTorch initialises a Linear (He et al., arXiv 1502.01852, with a = sqrt(5)). The seed is fixed. A backbone, which ends in
    features, gets such a layer with a bias on top. Raises WageubnError where the logits come from something else than a Gemm.
    """
    if config.num_classes is None:
        return
    if g.notes["features"]:
        _add_head(g, config.num_classes)
        return
    logits, classes = g.named["logits"], config.num_classes
    (gemm,) = logits.inputs
    if gemm.op != "Gemm":
        source = g.tag(logits).source or gemm.name
        raise WageubnError(f"node {source!r}: the logits come from {gemm.op}, and only a Gemm can be replaced by a new head")
    weight, *biases = (g.states[i.name] for i in gemm.inputs[1:])
    weight.assign(_drawn(classes, weight.value.shape[1]))
    for bias in biases:
        bias.assign(np.zeros(classes, np.float32))
    logits.shape = [logits.shape[0], classes]
    g.notes["classes"] = classes


def _drawn(classes: int, features: int) -> Array:
    """Float32 [classes, features]."""
    reach = 1 / math.sqrt(features)
    return np.random.default_rng(SEED).uniform(-reach, reach, (classes, features)).astype(np.float32)


def _add_head(g: Model, classes: int) -> None:
    features = g.named["logits"]
    layer, count = LAYER, 1
    while (
        any(state.layer == layer for state in g.states.values()) or f"{layer}.weight" in g.states or f"{layer}.bias" in g.states
    ):
        count += 1
        layer = f"{LAYER}{count}"
    with g.context(layer=layer, source=g.tag(features).source, path="A"):
        with g.context(path="W"):
            weight = g.state(f"{layer}.weight", "W", layer, _drawn(classes, features.shape[1]))
        with g.context(path="bias"):
            bias = g.state(f"{layer}.bias", "bias", layer, np.zeros(classes, np.float32))
        g.named["logits"] = g.op("Gemm", features, weight.tensor, bias.tensor, name="gemm", role="C", transB=1)
    g.notes["classes"] = classes


PASS = Pass("head", "on request, a new last layer for another number of classes", replace_head)

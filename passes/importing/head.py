"""A new head: the last Gemm for another number of classes, its weights drawn anew."""

from __future__ import annotations

import math

import numpy as np

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass

SEED = 0


def replace_head(g: Model, config: Config) -> None:
    """Where `Config.num_classes` asks for it: weight [classes, features] uniform in +-1/sqrt(features), the bias, if any, 0.

    So PyTorch initialises a Linear (He et al., arXiv 1502.01852, with a = sqrt(5)). The seed is fixed. Raises WageubnError where
    the logits come from something else than a Gemm.
    """
    if config.num_classes is None:
        return
    logits, classes = g.named["logits"], config.num_classes
    (gemm,) = logits.inputs
    if gemm.op != "Gemm":
        raise WageubnError(f"node {gemm.name!r}: the logits come from {gemm.op}, and only a Gemm can be replaced by a new head")
    weight, *biases = (g.states[i.name] for i in gemm.inputs[1:])
    features = weight.value.shape[1]
    reach = 1 / math.sqrt(features)
    weight.assign(np.random.default_rng(SEED).uniform(-reach, reach, (classes, features)).astype(np.float32))
    for bias in biases:
        bias.assign(np.zeros(classes, np.float32))
    logits.shape = [logits.shape[0], classes]
    g.notes["classes"] = classes


PASS = Pass("head", "on request, a new last layer for another number of classes", replace_head)

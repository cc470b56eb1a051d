"""A model as it is just before or just after one pass: what the tests of single passes start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from networks import BATCH, MEAN, STD, tiny
from wageubn_onnx.config import Config
from wageubn_onnx.graph import DOMAIN, Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.pipeline import FORWARD, FP_TRAINING, QUANT_TRAINING, places

Made = tuple[Model, Config]


def before(step: Pass, folder: Path, network: Callable[[], onnx.ModelProto] = tiny, **options: Any) -> Made:
    """The training half of ``network`` when ``step`` is about to run, and the configuration with which it runs."""
    onnx.save(network(), folder / "source.onnx")
    config = Config(**{"batch": BATCH, "mean": MEAN, "std": STD, "keep_folded": True} | options)
    model: Any = FORWARD(folder / "source.onnx", config)
    config = replace(config, profile=config.profile.on(*places(model)))
    for each in (*FP_TRAINING.passes, *QUANT_TRAINING.passes):
        if each is step:
            return model, config
        model = each(model, config)
    raise LookupError(step.name)


def after(step: Pass, folder: Path, network: Callable[[], onnx.ModelProto] = tiny, **options: Any) -> Made:
    """The same when it has run."""
    model, config = before(step, folder, network, **options)
    return step(model, config), config


def quantizers(g: Model, *roles: str) -> dict[tuple[str, str], gs.Node]:
    """The quantize nodes of these roles, or all, by layer and role."""
    found = [node for node in g.graph.nodes if node.domain == DOMAIN and "role" in node.attrs]
    return {(g.tag(n.outputs[0]).layer, n.attrs["role"]): n for n in found if not roles or n.attrs["role"] in roles}


def formats(g: Model, *roles: str) -> dict[tuple[str, str], tuple[str, int, float, float]]:
    """Function, bits, least and greatest mantissa of the same."""
    return {at: (n.op, n.attrs["bits"], n.attrs["lo"], n.attrs["hi"]) for at, n in quantizers(g, *roles).items()}

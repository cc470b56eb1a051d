"""What would fit into a device's memory: the network converted again, for smaller batches and fewer trained layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from wageubn_onnx.config import Config
from wageubn_onnx.export.base import Bundle
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import Format, Profile


def what_fits(bundle: Bundle, needed: Callable[[Bundle], int], budget: int) -> str:
    """A sentence: the largest halved batch whose step needs at most ``budget`` bytes, else the most last layers at a batch of 1.

    needed: bytes of a bundle, which is made anew from the folder's forward.onnx each time: nothing is extrapolated.
    """
    if bundle.folder == Path():
        return "convert for a smaller batch, or with --train-last"
    source, config = bundle.folder / bundle.manifest["fp_eval"]["model"], _config(bundle)
    size = needed(bundle)
    while config.batch > 1:
        config = replace(config, batch=config.batch // 2)
        size = needed(_bundle(source, config))
        if size <= budget:
            return f"convert with --batch {config.batch}, which needs {size:,}"
    layers = {e["layer"] for e in bundle.manifest["tensors"].values() if e.get("kind") == "W"}
    for count in range(len(layers) - 1, 0, -1):
        size = needed(_bundle(source, replace(config, train_last=count)))
        if size <= budget:
            return f"convert with --batch 1 --train-last {count}, which needs {size:,}"
    return f"even --batch 1 --train-last 1 needs {size:,}"


def _bundle(source: Path, config: Config) -> Bundle:
    made = convert(source, config)
    return Bundle(made.files["int_training"], made.files["int_eval"], made.state, made.manifest)


def _config(bundle: Bundle) -> Config:
    """What the folder was converted with, as far as sizes depend on it."""
    manifest = bundle.manifest
    exceptions = tuple((e["layers"], _formats(e["formats"])) for e in manifest["exceptions"])
    profile = Profile(manifest["profile"], "", _formats(manifest["formats"]), exceptions)
    statistics = {e["layer"] for e in manifest["frozen"].values() if "running" in e["kind"]}
    frozen = {e["layer"] for e in manifest["frozen"].values() if "running" not in e["kind"]}
    images = next(i for i in bundle.step.graph.input if i.name == manifest["step"]["images"])
    return Config(
        batch=images.type.tensor_type.shape.dim[0].dim_value,
        keep_folded=True,
        profile=profile,
        freeze=tuple(sorted(frozen)),
        bn="frozen" if statistics - frozen else "batch",
    )


def _formats(table: dict[str, Any]) -> dict[str, Format]:
    return {path: Format(**entry) for path, entry in table.items()}

"""How large each forward tensor may get, for the static formats: from the BN parameters, or measured with --calibrate."""

from __future__ import annotations

from typing import Any

import numpy as np

from wageubn_onnx import ranges
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass


def note_ranges(g: Model, config: Config) -> None:
    """Put `ranges.Moments` by layer into ``notes['ranges']``, the image's under ``input``.

    Raises WageubnError where normalisation constants or calibration images do not fit the network's input.
    """
    check_input(g, config)
    channels = g.named["images"].shape[1]
    pixels = np.array([0.0, 255.0])[:, None] * config.scale
    expected = ranges.estimate(g, np.broadcast_to((pixels - config.mean) / config.std, (2, channels)))
    if config.calibrate is not None:
        expected |= ranges.measure(g, normalised(config.calibrate, config))
    g.notes["ranges"] = {g.tag(n.outputs[0]).layer: expected[n.outputs[0].name] for n in g.graph.nodes}
    g.notes["ranges"]["input"] = expected["images"]


def check_input(g: Model, config: Config) -> None:
    """Raise WageubnError where normalisation constants or calibration images do not fit the network's input."""
    channels, *size = g.named["images"].shape[1:]
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (1, channels):
            raise WageubnError(f"{name} has {len(values)} values and the image {channels} channels; give one, or one a channel")
    if config.calibrate is not None and list(config.calibrate.shape[1:]) != [channels, *size]:
        raise WageubnError(
            f"calibration images are {list(config.calibrate.shape[1:])}, the network takes {[channels, *size]}; give its size"
        )


def normalised(images: np.ndarray[Any, Any], config: Config) -> np.ndarray[Any, Any]:
    """uint8 [n, C, H, W] -> float32 (pixel * scale - mean) / std."""
    mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (config.mean, config.std))
    return np.asarray((images.astype(np.float32) * np.float32(config.scale) - mean) / std, np.float32)


PASS = Pass("ranges", "the expected range of every forward tensor, from BN's parameters or from calibration images", note_ranges)

"""How large each forward tensor may get, for the static formats: from the BN parameters, or measured with --calibrate."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx import ranges
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.importing.contradictions import MOST_MAGNITUDE
from wageubn_onnx.profiles import Format

Array = np.ndarray[Any, Any]
LEAST_SPREAD = 2.0**-20


def note_ranges(g: Model, config: Config) -> None:
    """Put `ranges.Moments` by layer into ``notes['ranges']``, the image's under ``input``.

    Raises WageubnError where normalisation constants or calibration images do not fit the network's input.
    """
    check_input(g, config)
    channels = g.named["images"].shape[1]
    pixels = np.array([0.0, 255.0])[:, None] * config.scale
    bounds = np.broadcast_to((pixels - config.mean) / config.std, (2, channels))
    expected = ranges.estimate(g, bounds)
    if config.calibrate is not None:
        expected |= ranges.measure(g, normalised(config.calibrate, config))
    for node in g.graph.nodes:
        reach = float(expected[node.outputs[0].name].reach.max(initial=0))
        if not reach <= MOST_MAGNITUDE:
            layer = g.tag(node.outputs[0]).layer
            raise WageubnError(f"layer {layer!r}: its values may reach {reach:.2g}, beyond 2^60; export a healthy checkpoint")
    for node in g.graph.nodes:
        if ranges.is_affine(g, node):
            x, form = expected[node.inputs[0].name], config.profile.format("BN.x", g.tag(node.outputs[0]).layer)
            if node.inputs[0] is g.named["images"]:
                g.notes["said"] += _doubly_scaled(g, node, np.ptp(bounds, 0))
                _centre(g, node, form, bounds.mean(0), np.ptp(bounds, 0) / 2)
            else:
                _centre(g, node, form, x.mean, np.minimum(ranges.SPREAD * x.deviation, x.reach + abs(x.mean)))
    g.notes["ranges"] = {g.tag(n.outputs[0]).layer: expected[n.outputs[0].name] for n in g.graph.nodes}
    g.notes["ranges"]["input"] = expected["images"]


LEAST_CONTRAST = 1 / 16  # of what a network makes of its image by itself: normalised pixels cover 1 to 5


def _doubly_scaled(g: Model, node: gs.Node, spread: Array) -> list[str]:
    """A line for the user where the network's own normalisation leaves next to nothing of pixels that are scaled already."""
    gamma, _, _, variance = (g.states[operand.name].value for operand in node.inputs[1:])
    contrast = float((abs(gamma) / np.sqrt(variance + node.attrs["epsilon"]) * spread).max())
    if contrast >= LEAST_CONTRAST:
        return []
    return [
        f"the source normalises its images itself and makes a range of {contrast:.2g} of pixels that are scaled before; "
        "if it takes pixels from 0 to 255, pass --preset raw"
    ]


def _centre(g: Model, node: gs.Node, form: Format, mean: Array, spread: Array) -> None:
    """Give an affine BN statistics by which x-hat fills its format and does not saturate; the function stays as it is.

    The deviation is a power of two: a channel's ``spread`` around its ``mean`` ends where x-hat's ``form`` does.
    """
    gamma, beta, running_mean, variance = (g.states[operand.name] for operand in node.inputs[1:])
    end = 1.0 if form.is_float else (form.greatest + 1) * 2.0**form.exponent
    deviation = 2.0 ** np.ceil(np.log2(np.maximum(spread, LEAST_SPREAD) / end))
    centre = mean.astype(np.float32).astype(np.float64)
    for state, value in (
        (beta, beta.value + gamma.value * centre),
        (gamma, gamma.value * deviation),
        (running_mean, centre),
        (variance, deviation**2),
    ):
        state.assign(value.astype(np.float32))


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


def normalised(images: Array, config: Config) -> Array:
    """uint8 [n, C, H, W] -> float32 (pixel * scale - mean) / std."""
    mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (config.mean, config.std))
    return np.asarray((images.astype(np.float32) * np.float32(config.scale) - mean) / std, np.float32)


PASS = Pass("ranges", "the expected range of every forward tensor, from BN's parameters or from calibration images", note_ranges)

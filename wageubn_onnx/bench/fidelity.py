"""How near integers come to FP32: the gradients of a training step, and every layer's output in inference.

Both sides start from the folder's initial states, which hold the same network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.bench.plots import figure
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.models import probe
from wageubn_onnx.runtime.session import FloatSession, TrainingSession
from wageubn_onnx.training.data import Dataset, batches, sample

Array = NDArray[Any]
SETTLING = 8  # steps
SUFFIX = ".gradient"
ROLES = ("I", "C", "A", "S", "Z")  # quantizers of the forward half that FP32 has a tensor for
CHUNK = 64  # images at a time in inference


@dataclass(frozen=True)
class GradientFidelity:
    """One parameter's gradient in integers beside FP32, means over batches; None where FP32's is all 0.

    cosine: of the angle between the two. ratio: the integer gradient's Euclidean norm over FP32's.
    """

    key: str
    kind: str
    cosine: float | None
    ratio: float | None


@dataclass(frozen=True)
class ForwardFidelity:
    """One layer's output: ``decibels`` is 10 log10(sum of FP32^2 / sum of (integers - FP32)^2); None where nothing differs."""

    layer: str
    role: str
    decibels: float | None


# -- gradients ------------------------------------------------------------------------------------------------------------


def gradient_fidelity(
    folder: str | os.PathLike[str], data: Dataset, count: int, threads: int | None = None
) -> list[GradientFidelity]:
    """Compare the parameter gradients of ``count`` training batches, each from the initial states, in the network's order.

    Exponents that a profile delays are first found on the batch, by a few steps that keep nothing else. A weight that `convert`
    scaled by powers of two is compared as the integer step sees it: FP32's gradient is divided by them. Raises WageubnError where
    the folder exposes no gradients, or ``data`` has no batch for it.
    """
    integer, floating = TrainingSession(folder, threads), FloatSession(folder, threads)
    formats = integer.folder.section("tensors")
    keys = [name.removesuffix(SUFFIX) for name in floating.extra_outputs if name.endswith(SUFFIX)]
    if not keys:
        raise WageubnError(f"{folder}: its steps expose no gradients; convert the model again with --expose-gradients")
    rows = batches(len(data.x_train), integer.batch, epoch=0, seed=0)[:count]
    if not len(rows):
        raise WageubnError(f"{len(data.x_train)} training images: fewer than the {integer.batch} of one step")
    pairs: dict[str, list[tuple[float, float]]] = {key: [] for key in keys}
    for images, labels in ((data.x_train[chosen], data.y_train[chosen]) for chosen in rows):
        found, expected = _integer_gradients(integer, keys, images, labels), _float_gradients(floating, keys, images, labels)
        for key in keys:
            scaled = expected[key] / _scale(formats[key], expected[key].ndim)
            if scaled.any():
                pairs[key].append(compare(found[key], scaled))
    return [_summary(key, formats[key]["kind"], pairs[key]) for key in keys]


def compare(found: Array, expected: Array) -> tuple[float, float]:
    """Return the cosine and the norm of ``found`` relative to ``expected``, which is not all 0; the cosine of 0 is 0."""
    a, b = (np.ravel(x).astype(np.float64) for x in (found, expected))
    ratio = float(np.linalg.norm(a) / np.linalg.norm(b))
    return (float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if ratio else 0.0), ratio


def _integer_gradients(session: TrainingSession, keys: list[str], images: Array, labels: Array) -> dict[str, Array]:
    _settle(session, images, labels)
    names = [f"{key}{SUFFIX}" for key in keys]
    exponents = [f"{name}.exponent" for name in names]
    extra = session.step(images, labels, fetch=[*names, *exponents]).extra
    return {
        key: np.ldexp(extra[name].astype(np.float64), int(extra[exponent]))
        for key, name, exponent in zip(keys, names, exponents, strict=True)
    }


def _settle(session: TrainingSession, images: Array, labels: Array) -> None:
    """Load the initial state, its delayed exponents as `SETTLING` steps on this batch find them."""
    initial = session.folder.state_file("state")
    session.load(initial)
    held = [key for key, entry in session.folder.section("tensors").items() if entry.get("kind") == "exponent"]
    for _ in range(SETTLING if held else 0):
        session.step(images, labels)
        found = session.state()
        session.load(initial)
        session.update({key: found[key] for key in held})


def _float_gradients(session: FloatSession, keys: list[str], images: Array, labels: Array) -> dict[str, Array]:
    session.load(session.folder.state_file("fp_state"))
    extra = session.step(images, labels, fetch=[f"{key}{SUFFIX}" for key in keys]).extra
    return {key: extra[f"{key}{SUFFIX}"].astype(np.float64) for key in keys}


def _scale(entry: Mapping[str, Any], rank: int, axis: int = 0) -> Array:
    """2^scale_log2 of a state, to be multiplied along ``axis`` of a tensor of ``rank``; 1 where it is not scaled."""
    log2 = np.array(entry.get("scale_log2", [0]))
    shape = [1] * rank
    shape[axis] = len(log2)
    factors: Array = np.exp2(log2).reshape(shape)
    return factors


def _summary(key: str, kind: str, pairs: list[tuple[float, float]]) -> GradientFidelity:
    if not pairs:
        return GradientFidelity(key, kind, None, None)
    cosine, ratio = np.mean(pairs, axis=0)
    return GradientFidelity(key, kind, float(cosine), float(ratio))


# -- inference ------------------------------------------------------------------------------------------------------------


def forward_fidelity(
    folder: str | os.PathLike[str], data: Dataset, count: int, threads: int | None = None
) -> list[ForwardFidelity]:
    """Compare every layer's output in integer inference with FP32's on ``count`` test images, in the network's order.

    The layers are those that inference has: image (I), convolutions (C), activations (A), residual
    sums (S), logits (Z). A convolution's output is divided by the powers of two that `convert` scaled its weights by.
    Raises WageubnError for images that the network does not take.
    """
    session = FloatSession(folder, threads)
    images = session.check_images(sample(data.x_test, count))
    places = list(_places(session.folder))
    signal, noise = np.zeros(len(places)), np.zeros(len(places))
    integer, floating = _Integers(session.folder, places, threads), _Floats(session, places, threads)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        for i, (found, expected) in enumerate(zip(integer.run(chunk), floating.run(chunk), strict=True)):
            signal[i] += np.square(expected, dtype=np.float64).sum()
            noise[i] += np.square(found - expected).sum()
    return [
        ForwardFidelity(place.layer, place.role, float(10 * np.log10(s / n)) if s and n else None)
        for place, s, n in zip(places, signal, noise, strict=True)
    ]


@dataclass(frozen=True)
class _Place:
    """A layer's output: ``found`` in int_eval on the grid 2^exponent, ``expected`` in forward (None: the image).

    exponent: a number, or one a channel [1, C, 1, 1], which the state holds.
    """

    layer: str
    role: str
    found: str
    exponent: Array
    expected: str | None


def _places(folder: ArtifactFolder) -> Iterator[_Place]:
    integer, forward = (onnx.load(folder.model(name), load_external_data=False) for name in ("eval", "fp_eval"))
    made = {node.name: node.output[0] for node in integer.graph.node}
    state, _ = load_tensors(folder.state_file("state"))
    layers = {p.value: node.output[0] for node in forward.graph.node for p in node.metadata_props if p.key == "wageubn.layer"}
    for entry in folder.section("quantizers"):
        image = entry["role"] == "I"
        if entry["role"] in ROLES and entry["node"] in made and (image or entry["layer"] in layers):
            expected = None if image else layers[entry["layer"]]
            exponent = state[entry["exponent"]] if "exponent" in entry else np.array(-entry["fraction"])
            yield _Place(entry["layer"], entry["role"], made[entry["node"]], exponent, expected)


class _Integers:
    """int_eval with every place as an output."""

    def __init__(self, folder: ArtifactFolder, places: list[_Place], threads: int | None) -> None:
        self.places, self.section = places, folder.section("eval", "images")
        self.session = probe(folder.model("eval"), [place.found for place in places], threads)
        state, _ = load_tensors(folder.state_file("state"))
        inputs = {node.name for node in self.session.get_inputs()}
        self.state = {name: state[key] for key, name, _ in folder.state_names("state") if name in inputs}
        parameters = [*folder.section("tensors").values(), *folder.manifest.get("frozen", {}).values()]
        self.weights = {entry["layer"]: entry for entry in parameters if entry.get("kind") == "W"}

    def run(self, images: Array) -> Iterator[Array]:
        feeds = {self.section["images"]: images, **self.state}
        values = self.session.run([place.found for place in self.places], feeds)
        for place, value in zip(self.places, values, strict=True):
            real = np.ldexp(value.astype(np.float64), place.exponent)
            scaled = place.role == "C" and place.layer in self.weights
            yield real / _scale(self.weights[place.layer], real.ndim, axis=1) if scaled else real


class _Floats:
    """forward with every place as an output."""

    def __init__(self, session: FloatSession, places: list[_Place], threads: int | None) -> None:
        self.places, self.owner = places, session
        self.section = session.folder.section("fp_eval", "images")
        self.names = [place.expected for place in places if place.expected]
        self.session = probe(session.folder.model("fp_eval"), self.names, threads)

    def run(self, images: Array) -> Iterator[Array]:
        pixels = self.owner.normalised(images)
        values = dict(zip(self.names, self.session.run(self.names, {self.section["images"]: pixels}), strict=True))
        for place in self.places:
            yield values[place.expected] if place.expected else pixels


# -- plots ----------------------------------------------------------------------------------------------------------------


def plot_gradients(found: list[GradientFidelity], file: Path) -> None:
    """Draw the cosines of all parameters, in the network's order, to ``file`` (.svg or .png)."""
    with figure(file) as axes:
        for kind in dict.fromkeys(entry.kind for entry in found):
            chosen = [(i, entry.cosine) for i, entry in enumerate(found) if entry.kind == kind and entry.cosine is not None]
            axes.plot([i for i, _ in chosen], [cosine for _, cosine in chosen], "o-", markersize=4, linewidth=0.8, label=kind)
        axes.set(xlabel="parameter, from first layer to last", ylabel="cosine of integer and FP32 gradient", ylim=(None, 1.02))
        axes.legend()


def plot_forward(found: list[ForwardFidelity], file: Path) -> None:
    """Draw every layer's signal-to-noise ratio, in the network's order, to ``file`` (.svg or .png)."""
    shown = [entry for entry in found if entry.decibels is not None]
    with figure(file, height=max(3.0, 0.2 * len(shown))) as axes:
        axes.barh([f"{entry.layer} ({entry.role})" for entry in shown], [entry.decibels for entry in shown])
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.set(xlabel="signal to quantization noise, dB")

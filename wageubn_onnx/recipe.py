"""The recipe of an integer stage: all that its graph follows from, small enough to lie in the file itself.

Conversion is deterministic, and few of its decisions depend on what the weights are: the powers of two that scale them, and the
exponents of the formats. So the network without its weights, the formats of all data paths, and the magnitudes and ranges behind
those decisions are enough to make the graph a second time. `convert` writes the recipe into the metadata of the integer stages;
the audit makes the graph of it and compares.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import google.protobuf.message
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model, State, node_tag
from wageubn_onnx.passes.importing.forward import build_forward
from wageubn_onnx.passes.quantize.rescale import greatest, power
from wageubn_onnx.profiles import Profile, restored, table
from wageubn_onnx.ranges import SPREAD, Moments
from wageubn_onnx.stages import check_stage

Array = np.ndarray[Any, Any]
Kind = TypeVar("Kind")
Numbers = Mapping[int, tuple[float, float, float]]  # channel -> mean, deviation, reach
LARGEST = 2**29  # elements of all parameters: 2 GiB, more than any network that is converted in memory
LONGEST = 2**16  # pads, strides, rows of a kernel, images of a batch
IMAGES = "images"
MAGNITUDES = ("W", "gamma", "beta", "bias")  # the kinds of parameters that a format depends on


@dataclass(frozen=True)
class Recipe:
    """network: `forward` without the values of its parameters. frozen: those that are not trained, by key.

    magnitudes: of a weight and every output channel, e where its greatest magnitude lies in [2^(e-1), 2^e), None for zeros; of
    gamma, beta and a bias the greatest magnitude. ranges: layer -> moments of the channels that decide on a format, the image's
    under ``input``. config: without calibration images.
    """

    network: onnx.ModelProto
    frozen: tuple[str, ...]
    magnitudes: Mapping[str, list[int | None] | float]
    ranges: Mapping[str, Numbers]
    config: Config

    @staticmethod
    def of(source: Model, network: onnx.ModelProto, config: Config) -> Recipe:
        """The recipe of the stages that ``config`` makes of ``source``, whose file is ``network``."""
        bare = onnx.ModelProto()
        bare.CopyFrom(network)
        del bare.graph.value_info[:], bare.graph.initializer[:]
        kept = [t for t in network.graph.initializer if t.name not in source.states]  # axes and pads
        bare.graph.initializer.extend(kept)
        weights = {state.layer: _by_channel(state.value) for state in source.states.values() if state.kind == "W"}
        ranges = {layer: _deciding(moments, weights.get(layer)) for layer, moments in source.notes["ranges"].items()}
        magnitudes = {key: _magnitude(state) for key, state in source.states.items() if state.kind in MAGNITUDES}
        frozen = tuple(key for key, state in source.states.items() if state.frozen)
        return Recipe(bare, frozen, magnitudes, ranges, config)

    def of_inference(self) -> Recipe:
        """The recipe of `int_eval`, to which what only the step has makes no difference."""
        return replace(self, config=replace(self.config, health=False, expose_gradients=False))

    # -- as text ------------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """One line; the same recipe gives the same text."""
        config, profile = self.config, self.config.profile
        return json.dumps(
            {
                "network": base64.b64encode(self.network.SerializeToString(deterministic=True)).decode(),
                "frozen": list(self.frozen),
                "magnitudes": dict(self.magnitudes),
                "ranges": {layer: {str(c): list(m) for c, m in found.items()} for layer, found in self.ranges.items()},
                "batch": config.batch,
                "input": {"scale": config.scale, "mean": list(config.mean), "std": list(config.std)},
                "weight_decay": config.weight_decay,
                "expose_gradients": config.expose_gradients,
                "health": config.health,
                "profile": {
                    "name": profile.name,
                    "momentum": profile.momentum,
                    "constant_bits": profile.constant_bits,
                    "formats": table(profile.formats),
                    "exceptions": [{"layers": layers, "formats": table(formats)} for layers, formats in profile.exceptions],
                },
            },
            sort_keys=True,
        )

    @staticmethod
    def from_json(value: Any) -> Recipe:
        """The recipe that `to_json` wrote, parsed as JSON. Raises WageubnError where it is none."""
        fields = _typed(value, dict, "the recipe")
        pixels = _get(fields, "input", dict)
        mean, std = (tuple(_number(v, key) for v in _get(pixels, key, list)) for key in ("mean", "std"))
        config = Config(
            batch=_get(fields, "batch", int),
            mean=mean,
            std=std,
            scale=_number(pixels.get("scale"), "scale"),
            weight_decay=_number(fields.get("weight_decay"), "weight_decay"),
            expose_gradients=_get(fields, "expose_gradients", bool),
            health=_get(fields, "health", bool),
            profile=_profile(_get(fields, "profile", dict)),
        )
        _require(config.batch <= LONGEST, "its batch is larger than any that is trained")
        ranges = {
            layer: {_channel(c): _moments(m) for c, m in _typed(found, dict, f"the range of {layer!r}").items()}
            for layer, found in _get(fields, "ranges", dict).items()
        }
        return Recipe(
            _network(_get(fields, "network", str)),
            tuple(_typed(key, str, "a frozen key") for key in _get(fields, "frozen", list)),
            _get(fields, "magnitudes", dict),
            ranges,
            config,
        )

    # -- as a network -------------------------------------------------------------------------------------------------

    def source(self, parameters: Mapping[str, Array] | None = None) -> Model:
        """The `forward` stage, with these ``parameters``, or with others of the same magnitudes.

        Raises WageubnError where the recipe contradicts itself.
        """
        shapes = {v.name: _shape(v) for v in self.network.graph.input if v.name != IMAGES}
        if sum(map(math.prod, shapes.values())) > LARGEST:
            raise WageubnError(f"its recipe's network has more than {LARGEST} parameters")
        values = {key: self._value(key, shape) for key, shape in shapes.items()} if parameters is None else parameters
        _require(values.keys() == shapes.keys(), "the parameters are not those of the recipe's network")
        model = build_forward(_read(self.network, values), self.network.graph.name)
        unknown = next((key for key in self.frozen if key not in model.states), None)
        _require(unknown is None, f"freezes {unknown!r}, which its network does not have")
        for key in self.frozen:
            model.states[key].frozen = True
        channels = {model.tag(node.outputs[0]).layer: int(node.outputs[0].shape[1]) for node in model.graph.nodes}
        channels["input"] = int(model.named[IMAGES].shape[1])
        model.notes |= {"ranges": {layer: self._range(layer, count) for layer, count in channels.items()}}
        return model

    def _value(self, key: str, shape: tuple[int, ...]) -> Array:
        """float32 of these magnitudes: the first element of every output channel, or of all, zeros elsewhere."""
        found = self.magnitudes.get(key, 0.0)
        if isinstance(found, list):
            fits = len(found) == shape[0] and all(e is None or (isinstance(e, int) and -150 < e < 128) for e in found)
            _require(fits, f"the magnitudes of {key!r} are not one a channel")
            rows = np.zeros((shape[0], math.prod(shape[1:])), np.float32)
            rows[:, 0] = [0.0 if e is None else 2.0 ** (e - 1) for e in found]
            return rows.reshape(shape)
        value = np.zeros(math.prod(shape), np.float32)
        value[0] = _number(found, f"the magnitude of {key!r}")
        return value.reshape(shape)

    def _range(self, layer: str, channels: int) -> Moments:
        found = self.ranges.get(layer)
        _require(found is not None, f"has no range of layer {layer!r}")
        moments = np.zeros((3, channels))
        for channel, numbers in (found or {}).items():
            _require(channel < channels, f"the range of {layer!r} has too many channels")
            moments[:, channel] = numbers
        return Moments(*moments)


def _by_channel(weight: Array) -> Array:
    """The greatest magnitude of every output channel."""
    return np.asarray(greatest(weight.reshape(len(weight), -1), 1))


def _magnitude(state: State) -> list[int | None] | float:
    if state.kind != "W":
        return float(abs(state.value).max())
    found = _by_channel(state.value)
    return [int(e) if g > 0 else None for g, e in zip(found, np.frexp(found)[1], strict=True)]


def _deciding(moments: Moments, weights: Array | None) -> Numbers:
    """The channels of greatest reach and of greatest spread, as they are and with the channels of the ``weights`` rescaled."""
    seen = [moments.reach, abs(moments.mean) + SPREAD * moments.deviation]
    if weights is not None:
        seen += [np.ldexp(values, power(weights).astype(int)) for values in seen]
    channels = sorted({int(values.argmax()) for values in seen})
    return {c: (float(moments.mean[c]), float(moments.deviation[c]), float(moments.reach[c])) for c in channels}


def _read(network: onnx.ModelProto, values: Mapping[str, Array]) -> gs.Graph:
    """The graph of ``network`` with its parameters as constants, and with the layer and the source that its nodes name."""
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(network))
    constants = {key: gs.Constant(key, value) for key, value in values.items()}
    for node, proto in zip(graph.nodes, network.graph.node, strict=True):
        tag = node_tag(proto)
        node.layer, node.origins = tag.layer, tag.source.split(",")
        for i, operand in enumerate(node.inputs):
            if operand.name in constants:
                node.inputs[i] = constants[operand.name]
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name == IMAGES]
    return graph


# -- what a recipe must be ------------------------------------------------------------------------------------------------


def _network(text: str) -> onnx.ModelProto:
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, google.protobuf.message.DecodeError):
        raise WageubnError("its network is not ONNX") from None
    graph, dtypes = model.graph, {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    _require(dtypes == {onnx.TensorProto.FLOAT}, "its network has an input or output that is not float32")
    windows = [abs(i) for node in graph.node for attribute in node.attribute for i in attribute.ints]
    _require(max(windows, default=0) <= LONGEST, "its network has a window out of reason")
    check_stage(model, "forward")
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    _require(all(node.output[0] in read for node in graph.node), "its network has a node that nothing reads")
    for value in onnx.shape_inference.infer_shapes(model).graph.value_info:
        size = math.prod(d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value"))
        _require(size <= LARGEST, f"tensor {value.name!r} of its network is larger than any that is trained")
    images = [value for value in model.graph.input if value.name == IMAGES]
    _require(len(images) == len(model.graph.output) == 1, "its network has not one image and one output")
    _require(all(all(node.input) for node in model.graph.node), "its network leaves out operands")
    _require(not {t.name for t in model.graph.initializer} & {v.name for v in model.graph.input}, "its parameters have values")
    return model


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    _require(bool(shape) and min(shape) > 0, f"parameter {value.name!r} has no fixed shape")
    return shape


def _profile(fields: dict[str, Any]) -> Profile:
    exceptions = [
        (_get(entry, "layers", str), _get(entry, "formats", dict))
        for entry in (_typed(e, dict, "an exception") for e in _get(fields, "exceptions", list))
    ]
    profile = restored(
        _get(fields, "name", str),
        _get(fields, "formats", dict),
        exceptions,
        momentum=_number(fields.get("momentum"), "momentum"),
        constant_bits=_get(fields, "constant_bits", int),
    )
    _require(profile.has_integers, f"profile {profile.name} has no integer form")
    return profile


def _channel(text: str) -> int:
    _require(text.isascii() and text.isdigit() and len(text) < 10, f"{text[:20]!r} is no channel")
    return int(text)


def _moments(value: Any) -> tuple[float, float, float]:
    found = _typed(value, list, "a range")
    _require(len(found) == 3, "a range is not mean, deviation and reach")
    mean, deviation, reach = (_number(v, "a range") for v in found)
    return mean, deviation, reach


def _get(fields: dict[str, Any], key: str, kind: type[Kind]) -> Kind:
    return _typed(fields.get(key), kind, key)


def _typed(value: Any, kind: type[Kind], what: str) -> Kind:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WageubnError(f"{what} is not {'an' if kind is int else 'a'} {kind.__name__}")
    return value


def _number(value: Any, what: str) -> float:
    """A finite number of float32's range."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2.0**127
    _require(is_number, f"{what} is not a finite number")
    return float(value)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise WageubnError(reason)

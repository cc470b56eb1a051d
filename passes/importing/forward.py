"""Source graph -> `forward`: the same function in normalised nodes, every parameter a named state, the batch symbolic."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from wageubn_onnx.config import Config
from wageubn_onnx.errors import UnsupportedOperator, WageubnError
from wageubn_onnx.graph import Model, State, Tensor
from wageubn_onnx.onnxir.infer import window
from wageubn_onnx.operators import Table
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.importing.affine import FIXED, UNKNOWN
from wageubn_onnx.passes.importing.contradictions import MOST_MAGNITUDE
from wageubn_onnx.passes.importing.endings import drop_answers, settle_output
from wageubn_onnx.passes.importing.read import read_source
from wageubn_onnx.passes.importing.refusals import refuse_unknown
from wageubn_onnx.passes.importing.spelling import respell
from wageubn_onnx.passes.importing.surgery import at, origins, values
from wageubn_onnx.passes.importing.windows import padding
from wageubn_onnx.sound import MOST_ELEMENTS


def import_forward(path: str | os.PathLike[str], config: Config) -> Model:
    """The `forward` stage of the network in ``path``.

    Raises WageubnError for anything unsound or unsupported, naming file, node and operator.
    """
    read = read_source(path)
    source = respell(read, config)
    drop_answers(source, config)
    refuse_unknown(source, BUILDERS)
    has_features = settle_output(source, config)
    model = build_forward(source, Path(path).absolute().stem)
    model.notes["features"] = has_features
    for key in read.found.get("frozen", []):
        if key in model.states:  # a bias before BN is none
            model.states[key].frozen = True
    model.notes |= {
        "files": read.found.get("files") or [str(path)],
        "said": read.found.get("notes", []),
        "producer": read.model.producer_name,
    }
    return model


def build_forward(source: gs.Graph, name: str) -> Model:
    """The `forward` stage of a graph that is in its spelling: one image, one output, parameters that are constants.

    Raises WageubnError for anything unsound or unsupported, naming node and operator.
    """
    if len(source.nodes) > MOST_NODES:
        raise WageubnError(f"{len(source.nodes):,} nodes to convert; at most {MOST_NODES:,} can be (a ResNet-1202 has 4,206)")
    return _Forward(source, name).build()


MOST_NODES = 5_000  # each becomes some hundred of the step


class _Forward:
    """Builds the normalised model node by node."""

    def __init__(self, source: gs.Graph, name: str) -> None:
        self.source = source
        self.model = Model.empty("forward", name)
        self.values: dict[str, Tensor] = {}  # source tensor -> ours

    def build(self) -> Model:
        model, (image,) = self.model, self.source.inputs
        with model.context(made_by=PASS.name):
            with model.context(layer="input", source=image.name, path="I"):
                model.named["images"] = model.input("images", np.float32, ["N", *image.shape[1:]])
            self.values[image.name] = model.named["images"]
            for node in self.source.nodes:
                with model.context(layer=layer_name(node), source=",".join(origins(node)), path="A"):
                    self.values[node.outputs[0].name] = self._sized(BUILDERS.of(node.op, at(node))(self, node), node)
        logits = self.values[self.source.outputs[0].name]
        model.named["logits"] = logits
        model.notes["classes"] = int(logits.shape[1])
        return model

    @staticmethod
    def _sized(result: Tensor, node: gs.Node) -> Tensor:
        """A result with something in it, and not more than memory could hold."""
        sizes = result.shape[1:]
        if not 0 < math.prod(sizes) <= MOST_ELEMENTS:
            raise WageubnError(
                f"{at(node)}: {node.op} makes {list(sizes)} of each image; it must be 1 to {MOST_ELEMENTS:,} elements: give a "
                "smaller image, or correct the export"
            )
        return result

    def operand(self, tensor: gs.Tensor, node: gs.Node) -> Tensor:
        if tensor.name not in self.values:
            raise WageubnError(f"{at(node)}: its input {tensor.name!r} is a constant; only images flow through a ResNet")
        return self.values[tensor.name]

    def parameter(self, tensor: gs.Tensor, kind: str, node: gs.Node) -> Tensor:
        """A constant operand as a state keyed by its own name; shared parameters are refused."""
        if not isinstance(tensor, gs.Constant):
            raise WageubnError(f"{at(node)}: its {kind} {tensor.name!r} is computed, not stored; export it as an initializer")
        if tensor.name in self.model.states:
            raise WageubnError(f"{at(node)}: its {kind} {tensor.name!r} is shared with another node; give each node its own")
        if tensor.values.dtype != np.float32:
            raise WageubnError(f"{at(node)}: its {kind} {tensor.name!r} is {tensor.values.dtype}; export in float32")
        if not (abs(tensor.values) <= MOST_MAGNITUDE).all():
            raise WageubnError(f"{at(node)}: its {kind} {tensor.name!r} comes to NaN or beyond 2^60; export a healthy checkpoint")
        path = f"BN.{kind}" if kind.startswith("running") else kind
        with self.model.context(path=path):
            return self.model.state(tensor.name, kind, layer_name(node), np.ascontiguousarray(tensor.values)).tensor

    @staticmethod
    def mark(states: list[State], statistics: str | None) -> None:
        """Note what is known of a BN that the source has taken apart."""
        if statistics == UNKNOWN:
            states[2].info["calibrate"] = True
        elif statistics == FIXED:
            for state in states:
                state.frozen = True

    # -- one builder an operator ------------------------------------------------------------------------------------

    def conv(self, node: gs.Node) -> Tensor:
        x, weight = self.operand(node.inputs[0], node), node.inputs[1]
        w, group = self.parameter(weight, "W", node), int(node.attrs.get("group", 1))
        attrs = _window_attributes(node, x, w.shape[2:])
        y = self.model.op("Conv", x, w, name="conv", role="C", group=group, **attrs)
        if len(node.inputs) < 3 or node.inputs[2].is_empty():
            return y
        users, bias = node.outputs[0].outputs, values(node, 2)
        mean = values(users[0], 3) if [user.op for user in users] == ["BatchNormalization"] else None
        if mean is not None and bias is not None and users[0].inputs[0] is node.outputs[0]:  # BN subtracts it again
            users[0].inputs[3].values = mean - bias
            return y
        b = self.parameter(node.inputs[2], "bias", node)
        y.inputs[0].inputs.append(b)
        return y

    def batch_norm(self, node: gs.Node) -> Tensor:
        x = self.operand(node.inputs[0], node)
        if len(x.shape) != 4:
            raise UnsupportedOperator(f"{at(node)}: BatchNormalization of {list(x.shape)} has no rule; only of maps")
        kinds = ("gamma", "beta", "running_mean", "running_var")
        operands = [self.parameter(t, kind, node) for t, kind in zip(node.inputs[1:5], kinds, strict=True)]
        states = [self.model.states[operand.name] for operand in operands]
        self.mark(states, node.attrs.get("statistics"))
        attrs = {"epsilon": float(node.attrs.get("epsilon", 1e-5)), "momentum": float(node.attrs.get("momentum", 0.9))}
        return self.model.op("BatchNormalization", x, *operands, name="bn", role="Y", **attrs)

    def relu(self, node: gs.Node) -> Tensor:
        return self.model.op("Relu", self.operand(node.inputs[0], node), name="relu", role="A")

    def add(self, node: gs.Node) -> Tensor:
        a, b = (self.operand(i, node) for i in node.inputs)
        if a.shape != b.shape:
            raise WageubnError(f"{at(node)}: Add of {a.shape} and {b.shape}; a residual sum needs equal shapes")
        return self.model.op("Add", a, b, name="add", role="sum")

    def max_pool(self, node: gs.Node) -> Tensor:
        x = self.operand(node.inputs[0], node)
        attrs = _window_attributes(node, x, node.attrs["kernel_shape"])
        if attrs.pop("dilations") != [1, 1]:
            raise UnsupportedOperator(f"{at(node)}: MaxPool with dilations has no rule")
        return self.model.op("MaxPool", x, name="maxpool", role="A", **attrs)

    def average_pool(self, node: gs.Node) -> Tensor:
        x = self.operand(node.inputs[0], node)
        attrs = _window_attributes(node, x, node.attrs["kernel_shape"])
        own = [int(p) for p in node.attrs.get("pads", [0] * 4)]
        counts_pads = bool(node.attrs.get("count_include_pad", 0)) and (any(own) or not node.attrs.get("ceil_mode", 0))
        if counts_pads and node.attrs.get("ceil_mode", 0) and attrs["pads"] != own:  # what ceil_mode adds never counts
            raise UnsupportedOperator(f"{at(node)}: AveragePool that counts pads and has a partial window has no rule")
        if attrs.pop("dilations") != [1, 1]:
            raise UnsupportedOperator(f"{at(node)}: AveragePool with dilations has no rule")
        attrs["count_include_pad"] = int(counts_pads)
        return self.model.op("AveragePool", x, name="avgpool", role="A", **attrs)

    def global_average_pool(self, node: gs.Node) -> Tensor:
        return self.model.op("GlobalAveragePool", self.operand(node.inputs[0], node), name="gap", role="A")

    def pad(self, node: gs.Node) -> Tensor:
        """Zeros around a map, or for more channels, that no window took over."""
        x, amounts = self.operand(node.inputs[0], node), padding(node)
        fill, mode = values(node, 2, np.zeros(1)), node.attrs.get("mode", "constant")
        if mode != "constant":
            raise UnsupportedOperator(
                f"{at(node)}: Pad with mode {mode!r} has no rule here; only before a MaxPool each of whose windows sees the "
                "pixels that it sees copies of: pad with zeros (mode constant)"
            )
        if amounts is None or fill is None or fill.any() or amounts.shape != (2, 4) or amounts[:, 0].any() or (amounts < 0).any():
            raise UnsupportedOperator(f"{at(node)}: Pad has a rule only with 0, of channels, rows and columns")
        return self.model.op("Pad", x, self.model.ints(*amounts.reshape(-1)), name="pad")

    def flatten(self, node: gs.Node) -> Tensor:
        if node.attrs.get("axis", 1) != 1:  # `to_flatten` has made it so where that is the same
            raise UnsupportedOperator(f"{at(node)}: Flatten from axis {node.attrs['axis']} mixes images; it must be from axis 1")
        return self.model.op("Flatten", self.operand(node.inputs[0], node), name="flatten", axis=1)

    def gemm(self, node: gs.Node) -> Tensor:
        attrs = node.attrs
        if attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0 or attrs.get("transA", 0):
            raise UnsupportedOperator(f"{at(node)}: Gemm with alpha, beta or transA other than 1, 1, 0 has no rule")
        x = self.operand(node.inputs[0], node)
        w = self.parameter(node.inputs[1], "W", node)
        bias = []
        if len(node.inputs) > 2 and not node.inputs[2].is_empty():
            offset = node.inputs[2]
            if isinstance(offset, gs.Constant):  # Gemm spreads a bias of one entry, or [1, classes]; a state is one a class
                offset.values = np.broadcast_to(offset.values.reshape(-1), (w.shape[0],))
            bias.append(self.parameter(offset, "bias", node))
        return self.model.op("Gemm", x, w, *bias, name="gemm", role="C", transB=1)


BUILDERS = Table[Callable[[_Forward, gs.Node], Tensor]](
    "builder",
    Conv=_Forward.conv,
    BatchNormalization=_Forward.batch_norm,
    Relu=_Forward.relu,
    Add=_Forward.add,
    MaxPool=_Forward.max_pool,
    AveragePool=_Forward.average_pool,
    GlobalAveragePool=_Forward.global_average_pool,
    Pad=_Forward.pad,
    Flatten=_Forward.flatten,
    Gemm=_Forward.gemm,
)


def layer_name(node: gs.Node) -> str:
    """A node's layer: the one that it carries, or else what its names say."""
    known: str | None = getattr(node, "layer", None)
    return known or layer_of(node.op, [i.name for i in node.inputs], node.name, node.outputs[0].name)


def layer_of(op: str, inputs: Sequence[str], name: str, output: str) -> str:
    """The weight's name without the suffix where it has one that speaks, else the node's own name."""
    if op in ("Conv", "Gemm", "BatchNormalization") and len(inputs) > 1:
        stem = re.sub(r"[._/](weight|gamma|kernel|scale|W|w)(:0)?$", "", inputs[1])
        if stem != inputs[1]:
            return stem
    return name or f"{op}_{output}"


def _window_attributes(node: gs.Node, x: Tensor, kernel: Any) -> dict[str, Any]:
    """kernel_shape, strides, pads and dilations, all explicit: auto_pad and ceil_mode spelled out or refused."""
    if len(kernel) != 2:
        raise UnsupportedOperator(f"{at(node)}: {node.op} over {len(kernel)} axes has no rule; only images, 2 axes")
    kernel = [int(k) for k in kernel]
    strides = [int(s) for s in node.attrs.get("strides", [1, 1])]
    dilations = [int(d) for d in node.attrs.get("dilations", [1, 1])]
    pads = [int(p) for p in node.attrs.get("pads", [0, 0, 0, 0])]
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(2):
            size = x.shape[2 + axis]
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - size, 0)
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            pads[axis], pads[axis + 2] = before, total - before
    if node.attrs.get("ceil_mode", 0):
        for axis in range(2):
            geometry = (kernel[axis], strides[axis], pads[axis], pads[axis + 2], dilations[axis])
            pads[axis + 2] += _ceiling(x.shape[2 + axis], *geometry)
    if math.prod(kernel) > MOST_TAPS:
        raise UnsupportedOperator(f"{at(node)}: {node.op} over windows of {kernel} has no rule; {MOST_TAPS:,} pixels at most")
    for axis in range(2):
        windows = window(x.shape[2 + axis], kernel[axis], strides[axis], pads[axis], pads[axis + 2], dilations[axis])
        if windows == 1:  # the least stride that leaves no room for a second one
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            strides[axis] = x.shape[2 + axis] + pads[axis] + pads[axis + 2] - reach + 1
        if windows < 1:
            raise WageubnError(f"{at(node)}: {node.op} kernel {kernel} does not fit its input {list(x.shape)}")
    padded = [x.shape[2 + axis] + pads[axis] + pads[axis + 2] for axis in range(2)]
    if math.prod((x.shape[1], *padded)) > MOST_ELEMENTS or math.prod(strides) > MOST_TAPS:
        raise WageubnError(f"{at(node)}: {node.op} with pads {pads} and strides {strides} has no rule; correct the export")
    return {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}


MOST_TAPS = 1024  # pixels of a window, and of a stride's step: each is a node of the step


def _ceiling(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """How much padding at the end gives a partial last window its room; none where that would start beyond the image."""
    reach = dilation * (kernel - 1) + 1
    missing = -(size + before + after - reach) % stride
    last = size + before + after + missing - reach  # where the last window starts
    return missing if last < size + before else 0


PASS = Pass("import", "read the source file and rewrite it in the one spelling of this stage", import_forward)

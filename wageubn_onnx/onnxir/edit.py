"""A model in the making: its nodes by their outputs, and new ones in the place of old."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from wageubn_onnx.composites import Body, kind_of, made
from wageubn_onnx.graph import DOMAIN, PREFIX
from wageubn_onnx.onnxir.nodes import without_nodes
from wageubn_onnx.onnxir.tidy import needed
from wageubn_onnx.onnxir.view import View

T = onnx.TensorProto
MOVES = ("Cast", "Identity", "MaxPool", "Reshape", "Transpose", "Slice", "Pad", "Unsqueeze")  # elements of their input, or zeros

Rewrite = Callable[["Edit"], None]  # a pass


def rewritten(model: onnx.ModelProto, passes: Mapping[str, Rewrite], bounds: dict[str, int] | None = None) -> onnx.ModelProto:
    """``model`` after these passes, by their names, one after the other.

    bounds: of tensors by name, known from earlier passes; those that these passes find are added.
    """
    edit = Edit(model, bounds)
    for name, rewrite in passes.items():
        edit.begin(name)
        rewrite(edit)
    return edit.done()


class Edit(View):
    """A copy of ``model``, whose nodes `done` copies. A pass sees what the one before it left; what it puts in comes after it."""

    def __init__(self, model: onnx.ModelProto, bounds: dict[str, int] | None = None) -> None:
        self.model = without_nodes(model)
        super().__init__(self.model.graph)
        self.made_by = ""
        self.arrange(model.graph.node)
        self._bounds = {} if bounds is None else bounds  # of what took the place of a quantizer
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._dropped: set[str] = set()
        self._count = 0

    def begin(self, made_by: str) -> None:
        """Start the pass ``made_by``, which the metadata of what it puts in will name."""
        self.made_by = made_by
        self._settle()

    def done(self) -> onnx.ModelProto:
        """The model, without what nothing needs any more."""
        self._settle()
        self.model.graph.node.extend(needed(self.nodes, [output.name for output in self.model.graph.output]))
        return self.model

    def arrange(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take ``nodes``, in their order, in the place of all that there are."""
        self.nodes: list[onnx.NodeProto] = []
        self.makers, self.readers = {}, {}
        for node in nodes:
            self._append(self.nodes, node)

    def _settle(self) -> None:
        if not self._before and not self._dropped:
            return
        nodes: list[onnx.NodeProto] = []
        gone: dict[int, onnx.NodeProto] = {}
        for node in self.nodes:
            name = node.name
            for new in self._before.get(name, ()):
                self._append(nodes, new)
            if name in self._dropped:
                gone[id(node)] = node
            else:
                nodes.append(node)
        for name in {name for node in gone.values() for name in node.output}:
            if id(self.makers[name]) in gone:
                del self.makers[name]
        for name in {name for node in gone.values() for name in node.input}:
            self.readers[name] = [reader for reader in self.readers[name] if id(reader) not in gone]
        self.nodes, self._before, self._dropped = nodes, {}, set()

    def _append(self, nodes: list[onnx.NodeProto], node: onnx.NodeProto) -> None:
        nodes.append(node)
        for name in node.output:
            self.makers[name] = node
        for name in node.input:
            self.readers.setdefault(name, []).append(node)

    # ---- what is there ----

    def calls(self, kind: str) -> list[onnx.NodeProto]:
        """The calls of a composite, such as ``ConvWeightGradient``, in the order of the graph."""
        return [node for node in self.nodes if kind_of(node.op_type) == kind]

    def products(self, call: onnx.NodeProto) -> int:
        """Into how many integer products of matrices the body of ``call`` splits its sum, so that none leaves int32."""
        (body,) = (f for f in self.model.functions if f.name == call.op_type)
        return sum(node.op_type == "MatMulInteger" for node in body.node)

    def bound(self, name: str) -> int | None:
        """The greatest magnitude of an integer tensor, as far as its values, its quantizer (seen through nodes that only move
        elements) or its dtype of 8 bits say."""
        value = self.constant(name)
        if value is not None:
            return int(abs(value.astype(np.int64)).max(initial=0))
        known = self._known_bound(name)
        if known is not None:
            return known
        return 128 if self.dtype(name) == T.INT8 else 255 if self.dtype(name) == T.UINT8 else None

    def _known_bound(self, name: str) -> int | None:
        """What its maker says of ``name``, or said what made it before: whatever takes a node's place gives the same integers."""
        maker = self.makers.get(name)
        if maker is None or name in self._bounds:
            return self._bounds.get(name)
        own = {a.name: int(a.i) for a in maker.attribute if a.name in ("least", "greatest")}
        if name == maker.output[0] and len(own) == 2:
            return max(-own["least"], own["greatest"])
        if self.dtype(name) == T.UINT8 and "greatest" in own:
            return own["greatest"]
        bits_alone = maker.op_type == "Cast" and {self.dtype(name), self.dtype(maker.input[0])} == {T.INT8, T.UINT8}
        if (maker.op_type in MOVES and not bits_alone) or kind_of(maker.op_type) == "FlipKernel":
            return self.bound(maker.input[0])
        if maker.op_type in ("Concat", "Mul"):
            parts = [self.bound(operand) for operand in maker.input]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                return max(known) if maker.op_type == "Concat" else math.prod(known)
        return None

    # ---- what is put in ----

    def declare(self, name: str, dtype: int, shape: Sequence[int]) -> str:
        """State the type of a new tensor, for the passes after this one; return ``name``."""
        info = helper.make_tensor_value_info(name, dtype, list(shape))
        self.model.graph.value_info.append(info)
        self._shapes.pop(name, None)
        self.types[name] = info.type.tensor_type
        return name

    def put(self, value: Any, dtype: Any) -> str:
        """A new initializer's name."""
        self._count += 1
        name = f"{self.made_by}/const.{self._count}"
        tensor = numpy_helper.from_array(np.asarray(value, dtype), name)
        self.model.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def before(self, anchor: onnx.NodeProto, kind: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """Put a node right before ``anchor``, with the metadata of that; return its output, a new tensor if none is named.

        A kind with a dot, ``wageubn.X``, is a call of a function of this project's domain.
        """
        self._count += 1
        name = f"{anchor.name}/{self.made_by}.{self._count}"
        domain, _, op = kind.rpartition(".")
        node = helper.make_node(op, list(inputs), [output or name], name, domain=domain, **attrs)
        for prop in anchor.metadata_props:
            node.metadata_props.add(key=prop.key, value=prop.value + (f",{self.made_by}" if prop.key == PREFIX + "pass" else ""))
        self._before.setdefault(anchor.name, []).append(node)
        return output or name

    def replace(self, anchor: onnx.NodeProto, kind: str, inputs: Sequence[str], **attrs: Any) -> None:
        """Put a node in the place of ``anchor``, whose first output it makes."""
        known = self._known_bound(anchor.output[0])
        if known is not None:
            self._bounds[anchor.output[0]] = known
        self.before(anchor, kind, inputs, anchor.output[0], **attrs)
        self._dropped.add(anchor.name)

    def compose(
        self, anchor: onnx.NodeProto, kind: str, inputs: Sequence[str], body: Body, outputs: Sequence[str] = ()
    ) -> list[str]:
        """Put a call of a composite with this ``body`` right before ``anchor``, its first results called ``outputs``.

        Return the names of the others. Those that are called take the place of what made them, which is to be dropped.
        """
        operands = [gs.Variable(name, helper.tensor_dtype_to_np_dtype(self.dtype(name)), self.shape(name)) for name in inputs]
        found = made(kind, operands, body)
        self.functions([found.function])
        for name in outputs:
            known = self._known_bound(name)
            if known is not None:
                self._bounds[name] = known
        first = self.before(anchor, f"{DOMAIN}.{found.function.name}", inputs, *outputs[:1])
        names = [first, *outputs[1:], *(f"{first}:{i}" for i in range(max(len(outputs), 1), len(found.types)))]
        call = self._before[anchor.name][-1]
        call.output[:] = names
        others = list(zip(names, found.types, strict=True))[len(outputs) :]
        return [self.declare(name, helper.np_dtype_to_tensor_dtype(of.dtype), of.shape) for name, of in others]

    def drop(self, node: onnx.NodeProto) -> None:
        """Take ``node`` away, which nothing reads any more."""
        self._dropped.add(node.name)

    def choose(self, anchor: onnx.NodeProto, condition: str, kind: str, inputs: Sequence[str], **attrs: Any) -> None:
        """Put an If in the place of ``anchor``: a node as `before` makes it where ``condition`` holds, else ``anchor``.

        What only ``anchor`` needs is left where it is: `sink-into-branches` moves it into the branch.
        """
        output = anchor.output[0]
        domain, _, op = kind.rpartition(".")
        then = helper.make_node(op, list(inputs), [f"{output}/then"], f"{anchor.name}/then", domain=domain, **attrs)
        then.metadata_props.extend(anchor.metadata_props)
        other = onnx.NodeProto.FromString(anchor.SerializeToString())
        other.name += "/else"
        other.output[0] = f"{output}/else"
        branches = [
            helper.make_graph(
                [node], name, [], [helper.make_tensor_value_info(node.output[0], self.dtype(output), self.shape(output))]
            )
            for name, node in (("then", then), ("else", other))
        ]
        self.replace(anchor, "If", [condition], then_branch=branches[0], else_branch=branches[1])

    def functions(self, bodies: Iterable[onnx.FunctionProto]) -> None:
        """Add functions; one that is there gets the new body."""
        known = {f.name: f for f in self.model.functions if f.domain == DOMAIN}
        for body in bodies:
            (known.get(body.name) or self.model.functions.add()).CopyFrom(body)

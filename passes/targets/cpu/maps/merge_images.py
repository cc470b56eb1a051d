"""Several images as one, for kernels that see one place of each map.

    QLinearConv(x [N, H, W, C], w [O, C, 1, 1])  ->  Reshape(QLinearConv(Reshape(x, [N / k, H, k * W, C]), w), [N, H, W, O])

onnxruntime's QLinearConv takes image by image: for each it calls its threads together and puts a kernel that is found at run time
into the order that its products want. Where a kernel sees no neighbours, the rows of several images are the rows of one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wageubn_onnx.onnxir.nodes import MICROSOFT, attributes, copied, only_typed, without_nodes
from wageubn_onnx.onnxir.view import View, branches
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.cpu.machine import LAST

LARGEST = 2**21  # elements of an image's maps: its sums, of 32 bits, should stay in the cache
FLATTEST = 2**19  # the same of a depthwise kernel, which does little else than store them
Shape = tuple[int, ...]


def merge_images(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integers; of an inlined model whose maps have their channels last."""
    changed = without_nodes(model)
    targets: dict[Shape, str] = {}
    _Merge(changed.graph, View(model.graph), targets).rewrite()
    for shape, name in targets.items():
        changed.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return changed


class _Merge:
    """A graph in the making: the main one, or a branch. view: of what it was. targets: names of the shapes asked for."""

    def __init__(self, graph: onnx.GraphProto, view: View, targets: dict[Shape, str]) -> None:
        self.graph, self.view, self.targets = graph, view, targets
        self.suffix = f"/merged/{graph.name}" if view.around else "/merged"
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, Shape], str] = {}

    def rewrite(self) -> None:
        """Fill the graph with the nodes of ``view``, in their new forms."""
        for node in self.view.graph.node:
            if _convolves(node):
                node = copied(node)
                for branch in branches(node):
                    _Merge(branch, View(copied(branch), self.view), self.targets).rewrite()
            if node.op_type != "QLinearConv" or node.domain != MICROSOFT or not self.merge(node):
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        only_typed(self.graph)

    def merge(self, node: onnx.NodeProto) -> bool:
        """Put a convolution of fewer, larger images in the place of ``node``, where it sees no neighbours."""
        described = attributes(node)
        shape, kernel = self.view.shape(node.input[0]), self.view.shape(node.input[3])
        if len(shape) != 4 or len(kernel) != 4 or any(described.get("pads", ())) or max(described.get("strides", (1,))) > 1:
            return False
        images, rows, columns, channels = shape
        height = rows - kernel[2] + 1
        if kernel[3] > 1 or height > 1 < kernel[2]:
            return False
        most = (FLATTEST if kernel[1] == 1 else LARGEST) // (height * columns * max(channels, kernel[0]))
        together = max(count for count in range(1, images + 1) if images % count == 0 and (count == 1 or count <= most))
        fewer = (images // together, rows, together * columns, channels)
        if together == 1:
            return False
        merged = self.reshaped(node.input[0], fewer) if kernel[2] == 1 else self.side_by_side(node.input[0], fewer)
        if not merged:
            return False
        copy = copied(node)
        copy.input[0] = merged
        copy.output[0] += self.suffix
        self.nodes.append(copy)
        self.reshape(copy.output[0], (images, height, columns, kernel[0]), node.output[0])
        return True

    def side_by_side(self, name: str, shape: Shape) -> str:
        """Maps that are the rows of one image, put together as rows of ``shape``; "" where they are not."""
        concat = self.view.maker(name, "Concat")
        if concat is None or attributes(concat)["axis"] != 1 or len(concat.input) != shape[1]:
            return ""
        if (name, shape) not in self.made:
            copy = copied(concat)
            copy.input[:] = [self.reshaped(part, (shape[0], 1, *shape[2:])) for part in concat.input]
            copy.output[0] += self.suffix
            copy.name += self.suffix
            self.nodes.append(copy)
            self.made[name, shape] = copy.output[0]
        return self.made[name, shape]

    def reshaped(self, name: str, shape: Shape) -> str:
        """``name`` in another ``shape``."""
        maker = self.view.maker(name, "Reshape")
        if maker is not None:
            name = maker.input[0]
        if (name, shape) not in self.made:
            self.made[name, shape] = self.reshape(name, shape, f"{name}{self.suffix}/" + "x".join(map(str, shape)))
        return self.made[name, shape]

    def reshape(self, name: str, shape: Shape, output: str) -> str:
        target = self.targets.setdefault(shape, "merge-images/" + "x".join(map(str, shape)))
        self.nodes.append(helper.make_node("Reshape", [name, target], [output], f"{output}/reshape"))
        return output


def _convolves(node: onnx.NodeProto) -> bool:
    """Whether a branch of ``node`` holds what might be merged."""
    return any(inner.op_type == "QLinearConv" for branch in branches(node) for inner in branch.node)


PASS = Form("merge-images", "several images as one where a kernel sees no neighbours", merge_images, needs=LAST)

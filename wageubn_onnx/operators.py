"""THE list of the operators of `forward`, what is true of each, and what a table with an entry for each of them is.

An operator that stands here has an entry in every `Table` of the package, or the suite fails (tests/test_operators.py).
CONTRIBUTING.md shows how one is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import onnx

from wageubn_onnx.errors import UnsupportedOperator


@dataclass(frozen=True)
class Operator:
    """What is true of an operator, whoever asks.

    operands: how many of its first inputs are activations; the others are parameters and constants. elementwise: an element of
    the result depends on the operands' elements at its own place alone, so the order of axes and of channels does not matter.
    moves: the result holds elements of the operand, or zeros. pools: an element of the result is the maximum or the mean of a
    part of a channel.
    """

    operands: int = 1
    elementwise: bool = False
    moves: bool = False
    pools: bool = False


OPERATORS = {
    "Conv": Operator(),
    "Gemm": Operator(),
    "BatchNormalization": Operator(),
    "Relu": Operator(elementwise=True),
    "Add": Operator(operands=2, elementwise=True),
    "MaxPool": Operator(moves=True, pools=True),
    "AveragePool": Operator(pools=True),
    "GlobalAveragePool": Operator(pools=True),
    "Pad": Operator(moves=True),
    "Flatten": Operator(moves=True),
}
ELEMENTWISE = tuple(name for name, operator in OPERATORS.items() if operator.elementwise)
ACTIVATIONS = tuple(name for name in ELEMENTWISE if OPERATORS[name].operands == 1)  # functions of one number
MOVES = tuple(name for name, operator in OPERATORS.items() if operator.moves)
POOLS = tuple(name for name, operator in OPERATORS.items() if operator.pools)

Entry = TypeVar("Entry")


class Table(dict[str, Entry]):
    """An entry for each operator of `forward`; ``what`` says in a message what an entry is."""

    def __init__(self, what: str, /, **entries: Entry) -> None:
        super().__init__(entries)
        self.what = what

    def of(self, operator: str, where: str) -> Entry:
        """The entry of ``operator``. Raises UnsupportedOperator, naming the node ``where``, for one that has none."""
        if operator not in self:
            raise UnsupportedOperator(f"{where}: operator {operator} has no {self.what}; supported: {', '.join(sorted(self))}")
        return self[operator]


def refuse_others(model: onnx.ModelProto, file: str) -> None:
    """Raise UnsupportedOperator, naming ``file`` and node, where ``model`` has operators that a `forward` does not."""
    for node in model.graph.node:
        if node.domain or node.op_type not in OPERATORS:
            raise UnsupportedOperator(
                f"{file}: node {node.name!r}: {node.op_type} is no operator of a forward model; convert the model again"
            )

"""The walk: forward through the rules, collecting pullbacks, then back through them, summing what meets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from wageubn_onnx.autodiff.rules import RULES, Pullback, batch_norm_frozen
from wageubn_onnx.graph import Model, Tag, Tensor


@dataclass(frozen=True)
class Step:
    """One operator of the tape: its tag in `forward`, result, operands and pullback."""

    tag: Tag
    result: Tensor
    operands: list[Tensor]
    pullback: Pullback


def replay(forward: Model, target: Model, bound: dict[str, Tensor], training: bool) -> list[Step]:
    """Emit ``forward``'s nodes into ``target`` by their rules; ``bound`` maps its inputs, and then every tensor, to target's.

    A BatchNormalization takes its running statistics, and leaves them, where they are frozen and wherever nothing is trained.
    Raises UnsupportedOperator for an operator without a rule, naming the node.
    """
    tape: list[Step] = []
    for node in forward.graph.nodes:
        gradient_rule = RULES.of(node.op, f"node {node.name!r}")
        operands = [bound.get(i.name, i) for i in node.inputs]  # a constant stays what it is
        tag = forward.tag(node.outputs[0])
        with target.beside(tag):
            rule = batch_norm_frozen if _is_frozen(forward, node, training) else gradient_rule
            result, pullback = rule(target, node.attrs, operands)
        tape.append(Step(tag, result, operands, pullback))
        bound[node.outputs[0].name] = result
    return tape


def _is_frozen(forward: Model, node: gs.Node, training: bool) -> bool:
    """Whether ``node`` is a BatchNormalization that uses its running statistics."""
    if node.op != "BatchNormalization":
        return False
    return not training or all(forward.states[i.name].frozen for i in node.inputs[3:])


def backward(model: Model, tape: list[Step], seed: Tensor, of: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """dL/dt for every tensor t named in ``wanted`` and all between them and ``of``, given ``seed`` = dL/d``of``; by tensor name.

    What depends on none of ``wanted`` gets no error. One that reaches a tensor from several readers is summed in a node of role
    ``E.sum``.
    """
    reached = set(wanted)
    for step in tape:
        if any(operand.name in reached for operand in step.operands):
            reached.add(step.result.name)
    errors: dict[str, Tensor] = {of.name: seed}
    for step in reversed(tape):
        if step.result.name not in errors or step.result.name not in reached:
            continue
        with model.context(layer=step.tag.layer, source=step.tag.source, path="E1"):
            for operand, error in zip(step.operands, step.pullback(errors[step.result.name]), strict=True):
                if error is None or operand.name not in reached:
                    continue
                met = errors.get(operand.name)
                errors[operand.name] = error if met is None else model.op("Add", met, error, name="error", role="E.sum")
    return errors

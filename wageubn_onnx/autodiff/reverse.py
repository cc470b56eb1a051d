"""The walk: forward through the rules, collecting pullbacks, then back through them, summing what meets."""

from __future__ import annotations

from dataclasses import dataclass

from wageubn_onnx.autodiff.rules import RULES, Pullback, batch_norm_inference
from wageubn_onnx.errors import UnsupportedOperator
from wageubn_onnx.graph import Model, Tensor


@dataclass(frozen=True)
class Step:
    """One operator of the tape: its layer, result, operands and pullback."""

    layer: str
    result: Tensor
    operands: list[Tensor]
    pullback: Pullback


def replay(forward: Model, target: Model, bound: dict[str, Tensor], training: bool) -> list[Step]:
    """Emit ``forward``'s nodes into ``target`` by their rules; ``bound`` maps its inputs, and then every tensor, to target's.

    Raises UnsupportedOperator for an operator without a rule, naming the node.
    """
    tape: list[Step] = []
    for node in forward.graph.nodes:
        if node.op not in RULES:
            raise UnsupportedOperator(f"node {node.name!r}: no gradient rule for operator {node.op}")
        operands = [bound.get(i.name, i) for i in node.inputs]  # a constant stays what it is
        layer = forward.tag(node.outputs[0]).layer
        with target.context(layer=layer):
            if node.op == "BatchNormalization" and not training:
                result = batch_norm_inference(target, node.attrs, operands)
            else:
                result, pullback = RULES[node.op](target, node.attrs, operands)
                tape.append(Step(layer, result, operands, pullback))
        bound[node.outputs[0].name] = result
    return tape


def backward(model: Model, tape: list[Step], seed: Tensor, of: Tensor) -> dict[str, Tensor]:
    """dL/dt for every tensor t on the tape, given ``seed`` = dL/d``of``; by tensor name.

    An error that reaches a tensor from several readers is summed in a node of role ``E.sum``.
    """
    errors: dict[str, Tensor] = {of.name: seed}
    for step in reversed(tape):
        if step.result.name not in errors:
            continue
        with model.context(layer=step.layer):
            for operand, error in zip(step.operands, step.pullback(errors[step.result.name]), strict=True):
                if error is None:
                    continue
                met = errors.get(operand.name)
                errors[operand.name] = error if met is None else model.op("Add", met, error, name="error", role="E.sum")
    return errors

"""Q_lr on the learning rate and Q_U on every stored parameter: w' = Q(w - lr*a, 24), with a before Q_Acc."""

from __future__ import annotations

from dataclasses import replace

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, State, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, own_exponent, state_of
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating


def quantize_updates(g: Model, config: Config) -> None:
    """Insert after the learning rate and before every state that is a parameter, saturating at the state's stated bound."""
    rate = config.profile.format("lr")
    for lr in g.by_role("lr"):
        insert(g, lr, floating.direct, "lr", rate, rate.exponent)
    for step in g.by_role("U.step"):
        (update,) = step.outputs
        role = g.tag(update.outputs[0]).role
        state = state_of(g, step, role.removeprefix("U."))
        own = own_exponent(state)
        if own:  # a weight on its own exponent moves in its own units
            insert(g, step, _scaled, -own)
        insert(g, update.outputs[0], floating.direct, role, _wide(config, state), state.info["exponent"])


def _wide(config: Config, state: State) -> Format:
    """U with the state's stated bound, or with none."""
    stored, limit = config.profile.format("U", state.layer), state.info.get("limit")
    if limit is None or not stored.bounded:
        return replace(stored, bounded=False)
    return replace(stored, bits=limit.bit_length() + 1, least=-limit, greatest=limit)


def _scaled(g: Model, x: Tensor, log2: int) -> Tensor:
    return g.op("Mul", x, g.scalar(2.0**log2), name="own_units")


PASS = Pass(
    "quantize-updates", "Q_lr on the learning rate, Q_U on every stored parameter", quantize_updates,
    ("lr", "U.W", "U.gamma", "U.beta", "U.bias"),
)  # fmt: skip

"""Q_lr on the learning rate and Q_U on every stored parameter: w' = Q(w - lr*a, 24), with a before Q_Acc."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import insert, source, state_of
from wageubn_onnx.quantizers import floating


def quantize_updates(g: Model, config: Config) -> None:
    """Insert after the learning rate and before every state that is a parameter, saturating at the state's stated bound."""
    profile = config.profile
    for lr in g.by_role("lr"):
        bits = profile.learning_rate_fraction + 1
        insert(g, lr, lambda x: floating.direct(g, x, "lr", bits, -profile.learning_rate_fraction))
    for step in g.by_role("U.step"):
        (update,) = step.outputs
        kind = g.tag(update.outputs[0]).role.removeprefix("U.")
        state = state_of(g, step, kind)
        own = -profile.update_fraction - state.info["exponent"]
        if own:  # a weight on its own exponent moves in its own units
            insert(g, step, lambda x, k=own: g.op("Mul", x, g.scalar(2.0**-k), name="own_units"))
        bound, exponent = state.info["limit"], state.info["exponent"]
        insert(
            g, source(state.after).outputs[0],
            lambda x, r=f"U.{kind}", b=bound, e=exponent: floating.direct(g, x, r, b.bit_length() + 1, e, lo=-b, hi=b),
        )  # fmt: skip


PASS = Pass(
    "quantize-updates", "Q_lr on the learning rate, Q_U on every stored parameter", quantize_updates,
    ("lr", "U.W", "U.gamma", "U.beta", "U.bias"),
)  # fmt: skip

"""Note which quantizers every layer must have, before the first one stands: what the audit later holds the file to."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass

# Places that the gradient rules and the training passes mark, and that a quantizer of the same role must fill
REQUIRED = frozenset(
    [
        "I",
        "W",
        "bias",
        "C",
        "A",
        "E1",
        "E2",
        "E.sum",
        "gamma",
        "beta",
        "BN.mu",
        "BN.sigma",
        "BN.x",
        "BN.A",
        "BN.K",
        "BN.B",
        "BN.running_mean",
        "BN.running_mean.batch",
        "BN.running_var",
        "BN.running_var.batch",
        "G.W",
        "G.gamma",
        "G.beta",
        "G.bias",
        "G.decay",
        "M.coefficient",
        "M.W",
        "M.gamma",
        "M.beta",
        "M.bias",
        "lr",
        "U.W",
        "U.gamma",
        "U.beta",
        "U.bias",
        "S.t",
        "S.p",
        "loss",
    ]
)
# Roles whose format is another path's
PATHS = {
    **{f"U.{kind}": "U" for kind in ("W", "gamma", "beta", "bias")},
    **{f"BN.{name}{of}": "BN.running" for name in ("running_mean", "running_var") for of in ("", ".batch")},
    "S.t": "loss",
    "S.p": "loss",
}
# Grids that only keep integers aligned; with a path in float some follow from nothing
ALIGNED = {"BN.K", "BN.B", "G.decay"}


def expect(g: Model, config: Config) -> None:
    """Put layer -> sorted roles into ``notes['expected']``; the role C of the logits is Z. A path in float is not expected."""
    profile = config.profile

    def is_quantized(role: str, layer: str) -> bool:
        if role in ALIGNED:
            return profile.has_integers
        return not profile.format(PATHS.get(role, role), layer).is_float

    expected: dict[str, set[str]] = {}
    for node in g.graph.nodes:
        tensor = node.outputs[0]
        tag = g.tag(tensor)
        if tag.role in REQUIRED:
            role = "Z" if tensor is g.named["logits"] else tag.role
            if is_quantized(role, tag.layer):
                expected.setdefault(tag.layer, set()).add(role)
    g.notes["expected"] = {layer: sorted(roles) for layer, roles in sorted(expected.items())}


PASS = Pass("expect", "note which quantizers every layer must have", expect)

"""BN's statistics, parameters and output on their grids."""

from __future__ import annotations

from pathlib import Path

from until import after, formats, quantizers

from wageubn_onnx.passes.quantize import batchnorm

FORMATS = {
    "BN.mu": (16, -32767, 32767),
    "BN.sigma": (16, 1, 32767),
    "BN.x": (8, -127, 127),
    "gamma": (8, -127, 127),
    "beta": (8, -127, 127),
    "BN.running_mean": (24, -(2**23) + 1, 2**23 - 1),
    "BN.running_var": (38, 0, 2**36),
}


def test_every_bn_has_its_formats(tmp_path: Path) -> None:
    g, _ = after(batchnorm.PASS, tmp_path)
    layers = {s.layer for s in g.states.values() if s.kind == "gamma"}
    expected = {(layer, role): ("DirectQuantize", *f) for layer in layers for role, f in FORMATS.items()}
    assert len(layers) == 6 and formats(g, *FORMATS) == expected


def test_grids_follow_from_that_of_bn_s_input(tmp_path: Path) -> None:
    """mu on it, sigma twice as fine, the stored statistics 8 bits finer, of the square for the variance."""
    g, _ = after(batchnorm.PASS, tmp_path)
    found = {at: node.attrs.get("exponent") for at, node in quantizers(g).items()}
    for layer in ("stem", "a1", "a2", "b1", "b_short", "b2"):
        of, bn = found[layer, "C"], f"{layer}_bn"
        roles = ("BN.mu", "BN.sigma", "BN.running_mean", "BN.running_var", "BN.x")
        assert [found[bn, role] for role in roles] == [of, of - 1, of - 8, 2 * of - 8, -4]
        states = {s.kind: s.info["exponent"] for s in g.states.values() if s.layer == bn and s.kind != "momentum"}
        assert states == {"running_mean": of - 8, "running_var": 2 * of - 8, "gamma": -23, "beta": -23}


def test_gamma_is_read_over_twice_its_range(tmp_path: Path) -> None:
    g, _ = after(batchnorm.PASS, tmp_path)
    for (layer, role), node in quantizers(g, "gamma", "beta").items():
        (state,) = (s for s in g.states.values() if s.layer == layer and s.kind == role)
        step, reach = 2.0 ** node.attrs["exponent"], 2 * max(float(abs(state.value).max()), 0.25)
        assert 127 * step / 2 < reach <= 127 * step
        assert state.info["limit"] == 127 * step * 2**23

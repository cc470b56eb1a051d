"""Q_C after products, Q_Z on the logits."""

from __future__ import annotations

from pathlib import Path

from until import after, formats

from wageubn_onnx.passes.quantize import convolutions
from wageubn_onnx.passes.quantize.place import moments, source
from wageubn_onnx.profiles import load_profile


def test_every_product_s_output_has_16_bits_over_its_range(tmp_path: Path) -> None:
    g, _ = after(convolutions.PASS, tmp_path)
    layers = {s.layer for s in g.states.values() if s.kind == "W"}
    expected = {(layer, "Z" if layer == "fc" else "C"): ("DirectQuantize", 16, -32767, 32767) for layer in layers}
    assert formats(g, "C", "Z") == expected
    for tensor in g.by_role("C"):
        if tensor.inputs[0].domain:
            continue
        (node,) = (user for user in tensor.outputs if user.domain)
        room = 4 if g.tag(tensor).layer == "fc" else 1  # logits grow while a network trains
        reach = room * float(moments(g, tensor).reach.max())
        step = 2.0 ** node.attrs["exponent"]
        assert 32767 * step / 2 < reach <= 32767 * step
    assert source(g.named["logits"]).attrs["role"] == "Z"


def test_a_delayed_exponent_is_a_state_a_channel_before_a_bn(tmp_path: Path) -> None:
    g, config = after(convolutions.PASS, tmp_path, profile=load_profile("fast"))
    assert config.profile.format("C").delayed
    exponents = {s.layer: s.value.shape for s in g.states.values() if s.kind == "exponent"}
    channels = {"stem": 6, "a1": 6, "a2": 6, "b1": 8, "b2": 8, "b_short": 8}
    assert exponents == {layer: (1, c, 1, 1) for layer, c in channels.items()}
    assert {op for op, *_ in formats(g, "C").values()} == {"GridQuantize", "DirectQuantize"}  # head has no BN

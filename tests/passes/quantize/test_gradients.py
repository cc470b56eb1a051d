"""Q_GW on weight gradients, 15 bits on the others."""

from __future__ import annotations

from pathlib import Path

from until import after, formats, quantizers

from wageubn_onnx.passes.quantize import gradients


def test_every_parameter_s_gradient_has_its_quantizer(tmp_path: Path) -> None:
    g, _ = after(gradients.PASS, tmp_path)
    forms = {
        "W": ("ConstantQuantizeStochastic", 8, -127, 127),
        **dict.fromkeys(("gamma", "beta", "bias"), ("DirectQuantize", 15, -16383, 16383)),
    }
    expected = {(s.layer, f"G.{s.kind}"): forms[s.kind] for s in g.states.values() if s.kind in forms}
    found = formats(g, *(f"G.{kind}" for kind in forms))
    assert found == expected
    assert {n.attrs["exponent"] for n in quantizers(g, *(f"G.{kind}" for kind in forms)).values()} == {-14}


def test_weights_share_the_gradient_range_and_no_random_bits(tmp_path: Path) -> None:
    g, _ = after(gradients.PASS, tmp_path)
    nodes = quantizers(g, "G.W").values()
    assert all(node.inputs[1] is g.named["gradient_range"] for node in nodes)
    assert len({node.inputs[2].inputs[0].inputs[0].inputs[0].attrs["tensor"] for node in nodes}) == len(nodes)


def test_decay_lies_on_the_grid_of_its_gradient(tmp_path: Path) -> None:
    """The error's step times that of the activation or image that the product read."""
    g, _ = after(gradients.PASS, tmp_path, weight_decay=1e-3)
    nodes, reads = quantizers(g), {"stem": ("input", "I"), "a2": ("relu6", "A"), "fc": ("gap", "A")}
    for layer, read in reads.items():
        step = nodes[layer, "G.decay"].inputs[1].inputs[0]
        assert step.op == "Mul" and step.inputs[0] is nodes[layer, "E2"].outputs[1]
        assert float(step.inputs[1].values) == 2.0 ** nodes[read].attrs["exponent"]
    assert not {n.attrs["bits"] for (_, role), n in nodes.items() if role == "G.decay"} - {46}

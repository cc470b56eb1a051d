"""Q_W and Q_b where products read parameters."""

from __future__ import annotations

import math
from pathlib import Path

from until import after, formats, quantizers

from wageubn_onnx.passes.quantize import weights


def test_every_product_reads_a_weight_of_8_bits_below_1(tmp_path: Path) -> None:
    g, _ = after(weights.PASS, tmp_path)
    layers = {s.layer for s in g.states.values() if s.kind == "W"}
    assert formats(g, "W") == {(layer, "W"): ("DirectQuantize", 8, -127, 127) for layer in layers}
    for (layer, _role), node in quantizers(g, "W").items():
        (state,) = (s for s in g.states.values() if s.layer == layer and s.kind == "W")
        k = state.info["scale_log2"] if isinstance(state.info["scale_log2"], int) else 0
        assert node.inputs[0] is state.tensor
        assert node.attrs["exponent"] == -7 - k
        assert (state.info["exponent"], state.info["limit"]) == (-23 - k, 2**23 - 1)


def test_a_bias_has_16_bits_over_twice_its_range(tmp_path: Path) -> None:
    g, _ = after(weights.PASS, tmp_path)
    ((at, node),) = quantizers(g, "bias").items()
    (state,) = (s for s in g.states.values() if s.kind == "bias")
    assert at == ("fc", "bias") and formats(g, "bias")[at] == ("DirectQuantize", 16, -32767, 32767)
    exponent = math.ceil(math.log2(2 * max(float(abs(state.value).max()), 0.5) / 32767))
    assert node.attrs["exponent"] == exponent
    assert state.info == {"exponent": -23, "limit": 32767 * 2 ** (exponent + 23)}

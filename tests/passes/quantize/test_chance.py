"""The seed and the step's number: what random bits are a function of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from until import before

from wageubn_onnx.passes.quantize import chance


def test_the_step_is_counted_up_to_its_limit(tmp_path: Path) -> None:
    g, config = before(chance.PASS, tmp_path)
    g = chance.PASS(g, config)
    seed, step = g.named["seed"], g.states["step"]
    assert (seed.dtype, seed.shape, step.value.dtype, step.value.shape) == (np.int32, [], np.int32, ())
    assert step.value == 0 and step.info == {"exponent": 0, "limit": 2**31 - 2, "least": 0}
    add = step.after.inputs[0]
    least = add.inputs[0].inputs[0]
    assert (add.op, int(add.inputs[1].values)) == ("Add", 1)
    assert (least.op, least.inputs[0], int(least.inputs[1].values)) == ("Min", step.tensor, 2**31 - 3)

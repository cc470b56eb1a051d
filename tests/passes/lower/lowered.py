"""A few nodes of a quantized float graph, lowered and run both ways: what the tests of the lowering are written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from float64 import float64_copy, run_reference
from wageubn_onnx.config import Config
from wageubn_onnx.fixedpoint import Exponent, Fixed, Pair
from wageubn_onnx.graph import Model, Tensor, to_proto
from wageubn_onnx.onnxir.infer import dtype_for
from wageubn_onnx.passes.lower.integers import RULES
from wageubn_onnx.passes.lower.lowering import Lowering

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Format:
    """An input: mantissas in lo..hi on the grid 2^exponent."""

    shape: tuple[int, ...]
    lo: int = -127
    hi: int = 127
    exponent: int = -7

    def random(self, generator: np.random.Generator) -> Array:
        """int64 mantissas; about one in eight at an end of the range."""
        m = generator.integers(self.lo, self.hi, self.shape, endpoint=True)
        ends = generator.choice([self.lo, self.hi], self.shape)
        return np.where(generator.random(self.shape) < 0.125, ends, m)


class Lowered:
    """``build(g, **inputs)`` makes float nodes and returns the tensors to look at; here they stand lowered as well."""

    def __init__(self, build: Callable[..., Any], config: Config | None = None, **formats: Format) -> None:
        self.formats = formats
        self.source = Model.empty("quant_training", "case")
        inputs = {name: self.source.input(name, np.float32, f.shape) for name, f in formats.items()}
        with self.source.context(layer="layer"):
            result = build(self.source, **inputs)
        self.tensors: list[Tensor] = list(result) if isinstance(result, (tuple, list)) else [result]
        self.lowering = Lowering(self.source, Model.empty("int_training", "n"), config or Config(), RULES)
        g = self.lowering.g
        for name, f in formats.items():
            tensor = g.input(name, dtype_for(f.lo, f.hi), f.shape)
            self.lowering.values[name] = Fixed(tensor, Exponent(f.exponent), f.lo, f.hi)
        self.lowering.walk("lower-to-integers")

    def fixed(self, index: int = 0) -> Fixed:
        """The mantissas and bounds of a result; a pair's parts combined."""
        tensor = self.tensors[index]
        return self.lowering.fixed(self.lowering.value(tensor), tensor.inputs[0])

    def parts(self) -> dict[str, Fixed]:
        """Every tensor of mantissas that the nodes became, by the name of its source; a pair as two."""
        found: dict[str, Fixed] = {}
        for name, value in self.lowering.values.items():
            if isinstance(value, Fixed):
                found[name] = value
            if isinstance(value, Pair):
                found |= {f"{name} (high)": value.high, f"{name} (low)": value.low}
        return found

    def random(self, seed: int) -> dict[str, Array]:
        generator = np.random.default_rng(seed)
        return {name: f.random(generator) for name, f in self.formats.items()}

    def extreme(self, greatest: bool) -> dict[str, Array]:
        return {name: np.full(f.shape, f.hi if greatest else f.lo, np.int64) for name, f in self.formats.items()}

    def integers(self, feeds: dict[str, Array], wanted: dict[str, Fixed]) -> dict[str, tuple[Array, int]]:
        """(mantissa, exponent) of each of ``wanted``, on onnxruntime with and without optimizations, whose bits must be equal."""
        g = self.lowering.g
        outputs = {f"m{i}": x.tensor for i, x in enumerate(wanted.values())}
        exponents = {f"e{i}": x.exponent.tensor(g) for i, x in enumerate(wanted.values())}
        proto = to_proto(g, {k: g.op("Identity", t, name="output") for k, t in (outputs | exponents).items()})
        typed = {v.name: np.asarray(feeds[v.name]).astype(self.lowering.values[v.name].tensor.dtype) for v in proto.graph.input}
        runs = []
        for level in (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level, options.intra_op_num_threads = level, 1
            session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
            runs.append(dict(zip([o.name for o in session.get_outputs()], session.run(None, typed), strict=True)))
        for name in runs[0]:
            np.testing.assert_array_equal(runs[0][name], runs[1][name], f"{name}: optimized and plain differ")
        return {key: (runs[0][f"m{i}"].astype(np.int64), int(runs[0][f"e{i}"])) for i, key in enumerate(wanted)}

    def floats(self, feeds: dict[str, Array], wanted: list[Tensor]) -> list[Array]:
        """The float graph in float64."""
        proto = to_proto(self.source, {f"y{i}": self.source.op("Identity", t, name="output") for i, t in enumerate(wanted)})
        values = {name: np.ldexp(feeds[name].astype(np.float64), f.exponent) for name, f in self.formats.items()}
        used = {v.name for v in proto.graph.input}
        results = run_reference(float64_copy(proto), {k: v for k, v in values.items() if k in used})
        return [np.asarray(results[f"y{i}"]) for i in range(len(wanted))]

    def check(self, feeds: dict[str, Array]) -> list[Array]:
        """Demand that every result equals its float form exactly and keeps its bounds; return the results as float64."""
        fixed = {str(i): self.fixed(i) for i in range(len(self.tensors))}
        integers = self.integers(feeds, fixed)
        expected = self.floats(feeds, self.tensors)
        for key, wanted in zip(fixed, expected, strict=True):
            m, exponent = integers[key]
            np.testing.assert_array_equal(np.ldexp(m.astype(np.float64), exponent), wanted)
            assert fixed[key].lo <= m.min() <= m.max() <= fixed[key].hi
            assert list(fixed[key].tensor.shape) == list(m.shape)
        return expected

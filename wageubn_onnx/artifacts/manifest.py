"""The manifest: the contract by which any program can drive the step (format 2, docs/artifacts.md)."""

from __future__ import annotations

import hashlib
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from wageubn_onnx.artifacts.files import sha256
from wageubn_onnx.config import Config
from wageubn_onnx.fixedpoint import Exponent, Fixed, Pair, Value
from wageubn_onnx.graph import DOMAIN, Model, State
from wageubn_onnx.profiles import table
from wageubn_onnx.version import __version__

PACKAGES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
STEP_INPUTS = ("images", "labels", "lr", "gradient_range", "seed")


def describe(
    path: Path, source: Model, config: Config, fp_state: dict[str, Any], quantized: Model, step: Model | None
) -> dict[str, Any]:
    """The manifest of one conversion of ``path``.

    ``source`` is the `forward` stage; ``quantized`` knows each quantizer, the integer ``step``, if any, what it became.
    """
    rate = config.profile.format("lr")
    return {
        "format": 2,
        "source": {"file": path.absolute().name, "sha256": sha256_of_all([Path(file) for file in source.notes["files"]])},
        "notes": source.notes["said"],
        "folded": source.notes["folded"],
        "profile": config.profile.name,
        "formats": table(config.profile.formats),
        "exceptions": [{"layers": layers, "formats": table(formats)} for layers, formats in config.profile.exceptions],
        "tools": {"wageubn-onnx": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "input": {"scale": config.scale, "mean": list(config.mean), "std": list(config.std)},
        "optimizer": optimizer(config),
        "step": None,
        "eval": None,
        "fp_step": {"model": "fp_training.onnx", **{n: n for n in ("images", "labels", "lr", "loss", "correct")}},
        "fp_eval": {"model": "forward.onnx", "images": "images", "logits": "logits"},
        "quant_step": {"model": "quant_training.onnx", **{n: n for n in (*STEP_INPUTS, "loss", "correct")}},
        "quant_eval": {"model": "quant_eval.onnx", "images": "images", "logits": "logits"},
        "state": None,
        "quant_state": [_names(key) for key in quantized.carried],
        "fp_state": [_names(key) for key in fp_state],
        "frozen": {key: _parameter(state) for key, state in quantized.states.items() if state.frozen},
        "exponents": {} if rate.is_float else {"lr": rate.exponent},
        "quantizers": [_float_quantizer(quantized, node) for node in quantized.graph.nodes if _is_quantizer(node)],
        "tensors": {},
    } | (integers(quantized, step, config) if step else {})


def optimizer(config: Config) -> dict[str, float]:
    """Momentum and weight decay of the steps, as their graphs hold them."""
    return {
        "momentum": config.profile.momentum,
        "fp_momentum": config.momentum,
        "weight_decay": _rounded(config.weight_decay, config.profile.constant_bits),
        "fp_weight_decay": config.weight_decay,
    }


def integers(quantized: Model, step: Model, config: Config) -> dict[str, Any]:
    """What the manifest says of the integer ``step`` and of inference with it."""
    lowered: dict[str, Value] = step.notes["lowered"]
    return {
        "step": {"model": "int_training.onnx", **{n: n for n in (*STEP_INPUTS, "loss", "correct")}} | _health(step),
        "eval": {"model": "int_eval.onnx", "images": "images", "logits": "logits"},
        "state": [_names(key) for key in step.carried],
        "exponents": {"lr": config.profile.format("lr").exponent, **step.notes["exponents"]},
        "frozen": {key: _parameter(state) for key, state in quantized.states.items() if state.frozen},
        "quantizers": [entry for node in quantized.graph.nodes if (entry := _quantizer(quantized, node, lowered))],
        "tensors": {key: _state_format(state) for key, state in step.carried.items()} | _activations(quantized, lowered),
    }


def sha256_of_all(files: list[Path]) -> str:
    """Of one file its hash; of several that of the lines `sha256sum NAME...` prints of them, by name."""
    hashes = {file.name: sha256(file) for file in files}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()).hexdigest()


def _health(step: Model) -> dict[str, Any]:
    """What the rows of the health counters stand for, and the output that holds them; no rows where there is none."""
    entries = step.notes.get("health", [])
    return {"health": entries} | ({"health_output": "health"} if entries else {})


def _names(key: str) -> dict[str, str]:
    return {"in": key, "out": f"{key}.next", "key": key}


def _rounded(value: float, bits: int) -> float:
    step = 2.0 ** (int(np.frexp(value)[1]) - bits)
    return float(np.round(value / step) * step) if bits else value


def _state_format(state: State) -> dict[str, Any]:
    """dtype, exponent, least and greatest mantissa, and what else is known of a parameter."""
    entry = {"dtype": state.value.dtype.name, "shape": list(state.value.shape), "exponent": state.info["exponent"]}
    return entry | {"min": state.info["least"], "max": state.info["limit"]} | _parameter(state)


def _parameter(state: State) -> dict[str, Any]:
    """Kind and layer; ``scale_log2`` where the values are the source's times 2^that, per channel."""
    entry = {"kind": state.kind, "layer": state.layer}
    if isinstance(state.info.get("scale_log2"), list):
        entry["scale_log2"] = state.info["scale_log2"]
    return entry


def _is_quantizer(node: Any) -> bool:
    return node.domain == DOMAIN and "role" in node.attrs


def _float_quantizer(quantized: Model, node: Any) -> dict[str, Any]:
    """A quantize node of `quant_training`; ``fraction`` where its grid is static, and no bound where it does not saturate."""
    attrs = node.attrs
    entry = {"node": node.name, "layer": quantized.tag(node.outputs[0]).layer, "role": attrs["role"], "function": node.op}
    entry |= {"bits": attrs["bits"]} | ({"fraction": -attrs["exponent"]} if "exponent" in attrs else {})
    low, high = (value if math.isfinite(value) else None for value in (attrs["lo"], attrs["hi"]))
    return entry | {"min": low, "max": high, "rounding": attrs["rounding"]}


def _quantizer(quantized: Model, node: Any, lowered: dict[str, Value]) -> dict[str, Any] | None:
    if not _is_quantizer(node):
        return None
    value = lowered[node.outputs[0].name]
    fixed = value.low if isinstance(value, Pair) else value
    if not isinstance(fixed, Fixed) or not fixed.tensor.inputs:  # a frozen parameter's is no node any more
        return None
    entry = {
        "node": fixed.tensor.inputs[0].name,
        "layer": quantized.tag(node.outputs[0]).layer,
        "role": node.attrs["role"],
        "function": fixed.tensor.inputs[0].op,
        "bits": node.attrs["bits"],
    }
    return entry | _exponent(fixed.exponent) | {"min": fixed.lo, "max": fixed.hi, "rounding": node.attrs["rounding"]}


def _exponent(exponent: Exponent) -> dict[str, Any]:
    """``fraction`` where static; else the ``exponent`` tensors of the step, to be summed, and what is to be added to them.

    Those of ``exponent_minus`` are to be subtracted.
    """
    if exponent.is_static:
        return {"fraction": -exponent.static}
    names, minus = ([t.name for t in side] for side in (exponent.terms, exponent.minus))
    if len(names) == 1 and not minus and not exponent.static:
        return {"exponent": names[0]}
    return {"exponent": names, "exponent_offset": exponent.static} | ({"exponent_minus": minus} if minus else {})


def _activations(quantized: Model, lowered: dict[str, Value]) -> dict[str, Any]:
    """The format of every activation of the step, by its tensor in `int_training`."""
    found = {}
    for tensor in quantized.by_role("A", "I", "S", "Z"):
        value = lowered.get(tensor.name)
        if isinstance(value, Fixed) and tensor.inputs[0].domain == DOMAIN:
            entry = {"dtype": value.tensor.dtype.name, "exponent": value.exponent.static, "min": value.lo, "max": value.hi}
            found[value.tensor.name] = entry
    return found

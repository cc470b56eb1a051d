"""State files: the tensors of a state, and what the file says of them; everything it says is checked here, in one place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from wageubn_onnx.artifacts.files import load_tensors
from wageubn_onnx.errors import WageubnError

INT64 = range(-(2**63), 2**63)


# -- rules: each is a function of a value, a list [rule] of any length, a tuple of one rule an element, or a table by key, where
# -- a key in ... stands for any, and one that ends with ? may be absent


def text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def integer(value: Any) -> bool:
    """A whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and value in INT64


def count(value: Any) -> bool:
    """A whole number from 0 on."""
    return integer(value) and value >= 0


def number(value: Any) -> bool:
    """A number; of a float run that diverged not a finite one."""
    return isinstance(value, float) or integer(value)


def anything(value: Any) -> bool:
    """Any JSON value."""
    return True


def or_none(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """``rule``, or null."""

    def checked(value: Any) -> bool:
        return value is None or rule(value)

    checked.__doc__ = f"{str(rule.__doc__).rstrip('.')}, or null."
    return checked


STATE = {"signature?": {...: (text, [count], or_none(text))}, "classes?": [text]}
CHECKPOINT = STATE | {
    "run": {...: anything},
    "position": {
        "step": count,
        "loss_sum": number,
        "correct": or_none(count),
        "test_accuracy": or_none(number),
        "metrics_bytes": count,
    },
    "health?": {"steps": count, "saturated": [integer], "all_zero": [integer], "least": [integer], "greatest": [integer]},
}


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of a state file or checkpoint, and its metadata, {} in the file of another program.

    The metadata has the keys of `STATE`, of a checkpoint also those of `CHECKPOINT`, and what the caller of `Session.save` added.
    Raises WageubnError, naming the entry, where the file or one of these is damaged.
    """
    tensors, metadata = load_tensors(path)
    wrong = fault(metadata, CHECKPOINT if "position" in metadata else STATE, "metadata")
    if wrong:
        raise WageubnError(f"{path}: {wrong}; restore the file from a copy")
    return tensors, metadata


def fault(value: Any, rule: Any, where: str) -> str | None:
    """What is wrong with ``value``, the first that ``rule`` finds; None where nothing is."""
    if callable(rule):
        return None if rule(value) else f"{where} is {_shown(value)}, not {_lower(rule.__doc__)}"
    if isinstance(rule, dict):
        if not isinstance(value, dict):
            return f"{where} is {_shown(value)}, not an object"
        if ... in rule:
            return _first(fault(entry, rule[...], f"{where}.{key}") for key, entry in value.items())
        missing = [key for key in rule if not key.endswith("?") and key not in value]
        if missing:
            return f"{where} lacks {missing[0]!r}"
        names = {key: key.removesuffix("?") for key in rule}
        present = [(name, rule[key]) for key, name in names.items() if name in value]
        return _first(fault(value[name], inner, f"{where}.{name}") for name, inner in present)
    if not isinstance(value, list) or (isinstance(rule, tuple) and len(value) != len(rule)):
        size = f" of {len(rule)}" if isinstance(rule, tuple) else ""
        return f"{where} is {_shown(value)}, not a list{size}"
    rules = rule if isinstance(rule, tuple) else rule * len(value)
    return _first(fault(entry, inner, f"{where}[{i}]") for i, (entry, inner) in enumerate(zip(value, rules, strict=True)))


def _first(faults: Any) -> str | None:
    return next((found for found in faults if found), None)


def _shown(value: Any) -> str:
    shown = ascii(value) if not isinstance(value, int) or value in INT64 else "a huge number"
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _lower(doc: str) -> str:
    return doc[0].lower() + doc[1:].rstrip(".")

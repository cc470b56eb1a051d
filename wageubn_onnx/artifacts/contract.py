"""What manifest.json must hold: the types of docs/artifacts.md as a table, so that every reader of a folder may rely on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wageubn_onnx.errors import WageubnError

SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Whole:
    """An integer of a range."""

    least: int
    greatest: int


@dataclass(frozen=True)
class Each:
    """An object with any keys, and values of one form."""

    form: Any


@dataclass(frozen=True)
class Either:
    """One of several forms."""

    forms: tuple[Any, ...]


NAME, ANY_TEXT, NUMBER, YES_OR_NO = "a name", str, float, bool  # a layer without a name is ANY_TEXT
EXPONENT, COUNT, MANTISSA = Whole(-1000, 1000), Whole(0, 2**62), Either((Whole(-(2**62), 2**62), float, None))
NAMES = [NAME]
STATES = Either(([{"in": NAME, "out": NAME, "key": NAME}], None))
# Keys with a question mark may be missing
FORMAT = {
    "bits": COUNT,
    "fraction": Either((EXPONENT, None)),
    "function": NAME,
    "rounding": NAME,
    "least": MANTISSA,
    "greatest": MANTISSA,
    "bounded": YES_OR_NO,
    "delayed": YES_OR_NO,
}
PARAMETER = {"kind?": NAME, "layer?": ANY_TEXT, "scale_log2?": [EXPONENT]}
TENSOR = PARAMETER | {"dtype": NAME, "exponent": EXPONENT, "min": MANTISSA, "max": MANTISSA, "shape?": [COUNT]}
QUANTIZER = {
    "node": NAME,
    "layer": ANY_TEXT,
    "role": NAME,
    "function": NAME,
    "bits": COUNT,
    "fraction?": EXPONENT,
    "exponent?": Either((NAME, NAMES)),
    "exponent_offset?": EXPONENT,
    "exponent_minus?": NAMES,
    "min": MANTISSA,
    "max": MANTISSA,
    "rounding": NAME,
}
COUNTED = {"node": NAME, "layer": ANY_TEXT, "role": NAME, "elements": Whole(1, 2**62)}
INTEGER_STEP = {
    f"{key}?": NAME for key in ("images", "labels", "lr", "gradient_range", "seed", "loss", "correct", "health_output")
}
STEP = {"model": NAME, "health?": [COUNTED]} | INTEGER_STEP
EVALUATION = {"model": NAME, "images?": NAME, "logits?": NAME}
CONTRACT = {
    "source?": {"file": ANY_TEXT, "sha256": ANY_TEXT},
    "notes?": [ANY_TEXT],
    "profile?": ANY_TEXT,
    "formats?": Each(FORMAT),
    "exceptions?": [{"layers": ANY_TEXT, "formats": Each(FORMAT)}],
    "tools?": Each(ANY_TEXT),
    "input?": {"scale": NUMBER, "mean": [NUMBER], "std": [NUMBER]},
    "optimizer?": {f"{key}?": NUMBER for key in ("momentum", "fp_momentum", "weight_decay", "fp_weight_decay")},
    **{f"{key}?": Either((STEP, None)) for key in ("step", "fp_step", "quant_step")},
    **{f"{key}?": Either((EVALUATION, None)) for key in ("eval", "fp_eval", "quant_eval")},
    **{f"{key}?": STATES for key in ("state", "fp_state", "quant_state")},
    "frozen?": Each(PARAMETER),
    "exponents?": Each(EXPONENT),
    "quantizers?": [QUANTIZER],
    "tensors?": Each(TENSOR),
    "target?": {"name": ANY_TEXT, "options": Each(Either((ANY_TEXT, YES_OR_NO, NUMBER, None)))},
}


def check_contract(manifest: dict[str, Any], where: str, remedy: str) -> None:
    """Raise WageubnError, naming the key, for the first entry of ``manifest`` that is missing, or not what the contract says."""
    problem = next(_problems(manifest, CONTRACT, ""), None)
    if problem is None:
        problem = next(_misfits(manifest), None)
    if problem is not None:
        raise WageubnError(f"{where}: {problem}; {remedy}")


def _misfits(manifest: dict[str, Any]) -> Iterator[str]:
    """What two entries say of one tensor, and do not agree on."""
    for key, entry in manifest.get("tensors", {}).items():
        shape, scale = entry.get("shape"), entry.get("scale_log2")
        if scale is not None and (not shape or len(scale) != shape[0]):
            yield f"tensors.{key} has {len(scale)} scale_log2 and the shape {shape}"


def _problems(value: Any, form: Any, place: str) -> Iterator[str]:
    """What of ``value`` is not of ``form``."""
    if isinstance(form, Either):
        found = [next(_problems(value, each, place), None) for each in form.forms]
        if None not in found:
            yield next(filter(None, found))
    elif isinstance(form, Each):
        if not isinstance(value, dict):
            yield _wrong(value, "an object", place)
        else:
            for key, entry in value.items():
                yield from _problems(entry, form.form, f"{place}.{key}" if place else key)
    elif isinstance(form, dict):
        yield from _object(value, form, place)
    elif isinstance(form, list):
        if not isinstance(value, list):
            yield _wrong(value, "a list", place)
        else:
            for index, entry in enumerate(value):
                yield from _problems(entry, form[0], f"{place}[{index}]")
    elif isinstance(form, Whole):
        if type(value) is not int or not form.least <= value <= form.greatest:
            yield _wrong(value, f"a whole number in {form.least}..{form.greatest}", place)
    elif form is NUMBER:
        if type(value) not in (int, float) or not math.isfinite(value):
            yield _wrong(value, "a number", place)
    elif form is None:
        if value is not None:
            yield _wrong(value, "null", place)
    elif form is NAME:
        if not isinstance(value, str) or not value:
            yield _wrong(value, NAME, place)
    elif type(value) is not form:
        yield _wrong(value, {str: "a text", bool: "true or false"}[form], place)


def _object(value: Any, form: dict[str, Any], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield _wrong(value, "an object", place)
        return
    for key, entry in form.items():
        name = key.removesuffix("?")
        inner = f"{place}.{name}" if place else name
        if name in value:
            yield from _problems(value[name], entry, inner)
        elif name == key:
            yield f"{place!r} lacks {name!r}"


def _wrong(value: Any, wanted: str, place: str) -> str:
    return f"{place} is {repr(value)[:SHOWN]}, not {wanted}"

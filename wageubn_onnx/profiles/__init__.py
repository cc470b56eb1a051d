"""Profiles: tables of formats, one a data path, read from TOML; never a branch inside a pass.

A profile extends another and names what it changes. `load_profile` takes the name of a file beside this one, or the path of a
user's own; whatever contradicts itself, or has no integer form, is refused with the reason.
"""

from __future__ import annotations

import pathlib
import sys
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from wageubn_onnx.errors import WageubnError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

HERE = pathlib.Path(__file__).parent
NAMES = sorted(p.stem for p in HERE.glob("*.toml"))


@dataclass(frozen=True)
class Format:
    """How one data path is quantized.

    bits: of a mantissa, with its sign. fraction: fractional bits of a fixed grid; None where the grid comes from the tensor's
    range. function: direct, shift, flag, align or constant. rounding: half_even, half_up, stochastic.
    least, greatest: the mantissas at which it saturates.
    """

    bits: int
    fraction: int | None = None
    function: str = "direct"
    rounding: str = "half_even"
    least: int = 0  # 0: symmetric
    greatest: int = 0  # 0: 2^(bits-1) - 1

    def __post_init__(self) -> None:
        greatest = self.greatest or 2 ** (self.bits - 1) - 1
        object.__setattr__(self, "greatest", greatest)
        object.__setattr__(self, "least", self.least or -greatest)

    @property
    def exponent(self) -> int:
        """Of the fixed grid."""
        if self.fraction is None:
            raise WageubnError("a format without a fixed grid is used as one; this is a fault of a pass")
        return -self.fraction


@dataclass(frozen=True)
class Path:
    """What a data path may have. Bits are the most; forward: inference computes it too, so nothing may be random."""

    functions: tuple[str, ...]
    bits: int
    forward: bool = False
    fixed: bool = False  # needs `fraction`


PATHS: dict[str, Path] = {
    "I": Path(("direct",), 8, forward=True),
    "W": Path(("direct",), 8, forward=True, fixed=True),
    "bias": Path(("direct",), 16, forward=True),
    "A": Path(("direct",), 8, forward=True),
    "S": Path(("direct",), 16, forward=True),
    "C": Path(("direct",), 16, forward=True),
    "Z": Path(("direct",), 16, forward=True),
    "gamma": Path(("direct",), 8, forward=True),
    "beta": Path(("direct",), 8, forward=True),
    "BN.mu": Path(("direct",), 16, forward=True),
    "BN.sigma": Path(("direct",), 16, forward=True),
    "BN.x": Path(("direct",), 8, forward=True, fixed=True),
    "BN.running": Path(("direct",), 28),
    "BN.A": Path(("shift",), 14),
    "loss": Path(("direct",), 32, fixed=True),
    "E1": Path(("shift",), 16),
    "E2": Path(("flag", "shift"), 16),
    "E.sum": Path(("align",), 16),
    "G.W": Path(("constant",), 8, fixed=True),
    **{f"G.{kind}": Path(("direct",), 24, fixed=True) for kind in ("gamma", "beta", "bias")},
    "M.coefficient": Path(("direct",), 8, fixed=True),
    **{f"M.{kind}": Path(("direct",), 24, fixed=True) for kind in ("W", "gamma", "beta", "bias")},
    "lr": Path(("direct",), 16, fixed=True),
    "U": Path(("direct",), 30, fixed=True),
}
ROUNDINGS = ("half_even", "half_up", "stochastic")
RANDOM = ("E1", "E2", "G.W", "G.gamma", "G.beta", "G.bias")  # the paths that may round stochastically
WHOLE = ("I", "M.coefficient", "lr", "U", "loss")  # one for all layers
KEYS = {f.name: f.type for f in fields(Format)}


@dataclass(frozen=True)
class Profile:
    """Formats by data path, exceptions by layer, and the few numbers that are no format.

    exceptions: pairs of a layer's name (or a pattern with * and ?; ``first`` and ``last`` for the outermost layers with weights)
    and formats by path; a later one wins. momentum: m of the integer step. constant_bits: of constant factors.
    """

    name: str
    summary: str
    formats: dict[str, Format]
    exceptions: tuple[tuple[str, dict[str, Format]], ...] = ()
    momentum: float = 0.75
    constant_bits: int = 12
    edges: tuple[str, str] = ("", "")  # the first and the last layer with weights

    def format(self, path: str, layer: str = "") -> Format:
        """The format of a path, at a layer."""
        found = self.formats[path]
        for pattern, formats in self.exceptions:
            names = {"first": self.edges[0], "last": self.edges[1]}
            if path in formats and layer and fnmatchcase(layer, names.get(pattern, pattern)):
                found = formats[path]
        return found

    def on(self, first: str, last: str) -> Profile:
        """The profile for a network whose outermost layers with weights have these names."""
        return replace(self, edges=(first, last))


def load_profile(name: str) -> Profile:
    """The profile of that name, or of the TOML file at that path.

    Raises WageubnError, naming profile, path and reason, for one that contradicts itself.
    """
    if name in NAMES:
        return _load(HERE / f"{name}.toml")
    if name.endswith(".toml"):
        return _load(pathlib.Path(name))
    raise WageubnError(f"profile {name!r}: no such profile; use {', '.join(NAMES)}, or the path of a .toml file")


@cache
def _load(file: pathlib.Path) -> Profile:
    text = _read(file)
    name = file.stem
    numbers = {k: v for k, v in text.items() if not isinstance(v, dict) and k != "extends"}
    layers = text.get("layers", {})
    _require(isinstance(layers, dict), name, "layers must be a table of layer names or patterns")
    formats = {path: _format(name, path, values) for path, values in _flat(text).items()}
    missing = [path for path in PATHS if path not in formats]
    _require(not missing, name, f"lacks the data path {missing[0] if missing else ''}; start from another with extends")
    exceptions = []
    for pattern, tables in layers.items():
        _require(isinstance(tables, dict), name, f"layers.{pattern} must be a table of data paths")
        found = {}
        for path, values in _flat(tables).items():
            _require(path not in WHOLE, name, f"{path} is one for all layers; set it outside layers")
            merged = _flat(text).get(path, {}) | values
            found[path] = _format(f"{name}, layer {pattern}", path, merged)
        exceptions.append((pattern, found))
    known = {f.name: f for f in fields(Profile)}
    for key, value in numbers.items():
        _require(key in known and key not in ("name", "edges"), name, f"unknown key {key!r}")
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
        wanted = kinds[str(known[key].type)]
        fits = isinstance(value, wanted) and isinstance(value, bool) == (wanted == (bool,))
        _require(fits, name, f"{key} has the wrong type")
    profile = Profile(name=name, formats=formats, exceptions=tuple(exceptions), **({"summary": ""} | numbers))
    _check(profile)
    return profile


def _read(file: pathlib.Path, seen: tuple[pathlib.Path, ...] = ()) -> dict[str, Any]:
    """The file's tables over those of what it extends."""
    if not file.is_file():
        raise WageubnError(f"{file}: no such profile; use {', '.join(NAMES)}, or the path of a .toml file")
    _require(file not in seen, file.stem, "extends itself")
    try:
        text: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WageubnError(f"{file}: not TOML ({' '.join(str(error).split())})") from None
    if "extends" not in text:
        return text
    base = str(text.pop("extends"))
    parent = HERE / f"{base}.toml" if base in NAMES else file.parent / base
    return _merged(_read(parent, (*seen, file)), text)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def _flat(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"BN": {"mu": {...}}} or {"BN.mu": {...}} as {"BN.mu": {...}}, without `layers` and plain values."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        if key == "layers" or not isinstance(value, dict):
            continue
        nested = {f"{key}.{k}": v for k, v in value.items() if isinstance(v, dict)}
        found |= nested or {key: value}
    return found


def _format(where: str, path: str, values: dict[str, Any]) -> Format:
    _require(path in PATHS, where, f"no data path {path!r}; the paths are {', '.join(PATHS)}")
    for key, value in values.items():
        _require(key in KEYS, where, f"{path} has the unknown key {key!r}; the keys are {', '.join(KEYS)}")
        kind = {"str": str, "bool": bool}.get(str(KEYS[key]), int)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        _require(fits, where, f"{path}.{key} is {value!r}; it must be of type {kind.__name__}")
    _require("bits" in values, where, f"{path} has no bits")
    made, rule = Format(**values), PATHS[path]
    _require(made.rounding in ROUNDINGS, where, f"{path} has the rounding {made.rounding!r}; it must be {', '.join(ROUNDINGS)}")
    _require(
        made.function in rule.functions, where, f"{path} has the function {made.function!r}, not {' or '.join(rule.functions)}"
    )
    _require(2 <= made.bits <= rule.bits, where, f"{path} has {made.bits} bits; 2 to {rule.bits} have an integer form")
    _require(not rule.fixed or made.fraction is not None, where, f"{path} lies on a fixed grid and needs a fraction")
    dynamic = made.function in ("shift", "flag", "align")
    _require(not (dynamic and made.fraction is not None), where, f"{path} finds its grid at run time: leave out fraction")
    if made.rounding == "stochastic":
        reason = "inference computes it too and has no random bits" if rule.forward else "its sums must be exact"
        _require(path in RANDOM and made.function != "flag", where, f"{path} cannot round stochastically: {reason}")
    if made.function == "flag":
        _require(made.bits == 8, where, f'{path}: a flag pair has 8 bits, not {made.bits}; use function = "shift"')
    if made.function == "constant":
        _require(made.bits == 8, where, f"{path}: constant quantization has 8 bits, not {made.bits}")
    full = 2 ** (made.bits - 1)
    _require(
        -full <= made.least <= 0 < made.greatest <= full, where,
        f"{path} saturates at {made.least}..{made.greatest}, which {made.bits} bits do not hold",
    )  # fmt: skip
    return made


def _check(profile: Profile) -> None:
    """What several paths must agree on."""
    name, f = profile.name, profile.format
    m = f("M.coefficient")
    rounded = round(profile.momentum * 2 ** (m.fraction or 0))
    _require(profile.momentum >= 0, name, f"momentum {profile.momentum} is negative")
    _require(
        rounded < 2 ** (m.fraction or 0),
        name,
        f"momentum {profile.momentum} rounds to 1 on {m.fraction} fractional bits",
    )
    for kind in ("W", "gamma", "beta", "bias"):
        g, a = f(f"G.{kind}"), f(f"M.{kind}")
        most = g.greatest * 2.0**g.exponent / (1 - rounded / 2 ** (m.fraction or 0))
        _require(
            a.greatest * 2.0**a.exponent >= most * (1 - 2**-6), name,
            f"M.{kind} ends at {a.greatest * 2.0**a.exponent:.3g}, but gradients of G.{kind} add up to {most:.3g} with "
            f"momentum {profile.momentum}; give it more bits or a smaller fraction",
        )  # fmt: skip
    u, w = f("U"), f("W")
    _require((u.fraction or 0) >= (w.fraction or 0), name, "U is coarser than W: no update could ever change a weight by less")


def _require(holds: bool, where: str, reason: str) -> None:
    if not holds:
        raise WageubnError(f"profile {where}: {reason}")

"""Profiles: tables of formats, one a data path, read from TOML; never a branch inside a pass.

A profile extends another and names what it changes. `load_profile` takes the name of a file beside this one, or the path of a
user's own; whatever contradicts itself is refused with the reason. A profile may leave data paths in float: then the quantized
graphs can be made of it, but no integer ones.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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
    range. function: direct, shift, flag, align, grid, constant; exact: as many bits as the operands ask for; or float: the path
    is left as it is. rounding: half_even, half_up, stochastic. least, greatest: the mantissas at which it saturates; bounded =
    false: it does not. delayed: the run-time exponent is a state, found by the step before; of C and BN.A, one a channel.
    """

    bits: int = 32  # a float's
    fraction: int | None = None
    function: str = "direct"
    rounding: str = "half_even"
    least: int = 0  # 0: symmetric
    greatest: int = 0  # 0: 2^(bits-1) - 1
    bounded: bool = True
    delayed: bool = False

    def __post_init__(self) -> None:
        greatest = self.greatest or 2 ** (self.bits - 1) - 1
        object.__setattr__(self, "greatest", greatest)
        object.__setattr__(self, "least", self.least or -greatest)
        object.__setattr__(self, "delayed", self.delayed and not self.is_float)

    @property
    def is_float(self) -> bool:
        """Whether no quantizer stands on the path."""
        return self.function == "float"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest mantissa, infinite where it does not saturate."""
        return (self.least, self.greatest) if self.bounded else (-math.inf, math.inf)

    @property
    def exponent(self) -> int:
        """Of the fixed grid; 0 in float, where nothing lies on it."""
        if self.fraction is None and not self.is_float:
            raise WageubnError("a format without a fixed grid is used as one; this is a fault of a pass")
        return -(self.fraction or 0)


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
    "BN.K": Path(("exact", "grid"), 20),
    "loss": Path(("direct",), 32, fixed=True),
    "E1": Path(("shift",), 16),
    "E2": Path(("flag", "shift"), 16),
    "E.sum": Path(("align",), 16),
    "E.acc": Path(("grid",), 29),
    "G.W": Path(("constant",), 8, fixed=True),
    "G.decay": Path(("grid",), 46),
    **{f"G.{kind}": Path(("direct",), 24, fixed=True) for kind in ("gamma", "beta", "bias")},
    "M.coefficient": Path(("direct",), 8, fixed=True),
    **{f"M.{kind}": Path(("direct",), 24, fixed=True) for kind in ("W", "gamma", "beta", "bias")},
    "lr": Path(("direct",), 16, fixed=True),
    "U": Path(("direct",), 30, fixed=True),
}
ROUNDINGS = ("half_even", "half_up", "stochastic")
ERRORS = ("E1", "E2", "E.sum")
DELAYED = ("C", "BN.A", *ERRORS)  # the paths whose exponent may be a state
RANDOM = ("E1", "E2", "G.W", "G.gamma", "G.beta", "G.bias")  # the paths that may round stochastically
WHOLE = ("I", "M.coefficient", "lr", "U", "loss")  # one for all layers
KEYS = {f.name: f.type for f in fields(Format)}


@dataclass(frozen=True)
class Profile:
    """Formats by data path, exceptions by layer, and the few numbers that are no format.

    exceptions: pairs of a layer's name (or a pattern with * and ?; ``first`` and ``last`` for the outermost layers with weights,
    ``pool`` for all that pool) and formats by path; a later one wins. momentum: m of the quantized step. constant_bits: of
    constant factors; 0 leaves them as they are. rescale: scale trained weights by powers of two into their grid. epsilon: added
    to BN's quantized sigma; 0 for the model's own, under the root. exact_backward: BN's backward reads x-hat before Q_BN.
    """

    name: str
    summary: str
    formats: dict[str, Format]
    exceptions: tuple[tuple[str, dict[str, Format]], ...] = ()
    momentum: float = 0.75
    constant_bits: int = 12
    rescale: bool = True
    epsilon: float = 0.0
    exact_backward: bool = False
    places: dict[str, list[str]] = field(default_factory=dict)  # first, last, pool: the layers that are so called

    def format(self, path: str, layer: str = "") -> Format:
        """The format of a path, at a layer."""
        found = self.formats[path]
        for pattern, formats in self.exceptions:
            names = self.places.get(pattern, [pattern])
            if path in formats and layer and any(fnmatchcase(layer, name) for name in names):
                found = formats[path]
        return found

    @property
    def is_delayed(self) -> bool:
        """Whether any error's exponent is a state, which needs a first value."""
        tables = (self.formats, *(formats for _, formats in self.exceptions))
        return any(table[path].delayed for table in tables for path in ERRORS if path in table)

    def on(self, first: str, last: str, pools: Sequence[str] = ()) -> Profile:
        """The profile for a network: the names of its outermost layers with weights, and of its pooling layers."""
        return replace(self, places={"first": [first], "last": [last], "pool": list(pools)})

    def with_float(self, *names: str) -> Profile:
        """The profile with these data paths in float, at every layer; M, say, stands for M.W, M.gamma and all others of M.

        Raises WageubnError for a name that is no path's.
        """
        for name in names:
            known = any(_belongs(path, name) for path in PATHS)
            _require(known, self.name, f"no data path {name!r}; the paths are {', '.join(PATHS)}")

        def left(formats: dict[str, Format]) -> dict[str, Format]:
            chosen = {path for path in formats if any(_belongs(path, name) for name in names)}
            return {path: replace(form, function="float") if path in chosen else form for path, form in formats.items()}

        exceptions = tuple((layers, left(formats)) for layers, formats in self.exceptions)
        return replace(self, name="-".join((self.name, *names)), formats=left(self.formats), exceptions=exceptions)

    @property
    def has_integers(self) -> bool:
        """Whether the integer graphs can be made of it: nothing of any layer is in float, unbounded, or unlike their BN."""
        tables = (self.formats, *(formats for _, formats in self.exceptions))
        grids = not any(form.is_float or not form.bounded for formats in tables for form in formats.values())
        return grids and self.constant_bits > 0 and self.rescale and not self.epsilon and not self.exact_backward


def _belongs(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def load_profile(name: str) -> Profile:
    """The profile of that name, or of the TOML file at that path; NAME-PATH-... is NAME with these data paths in float.

    Raises WageubnError, naming profile, path and reason, for one that contradicts itself.
    """
    if name.endswith(".toml"):
        return _load(pathlib.Path(name))
    base, *paths = name.split("-")
    if base in NAMES:
        profile = _load(HERE / f"{base}.toml")
        return profile.with_float(*paths) if paths else profile
    raise WageubnError(f"profile {name!r}: no such profile; use {', '.join(NAMES)}, or the path of a .toml file")


@cache
def _load(file: pathlib.Path) -> Profile:
    text = _read(file)
    name = file.stem
    numbers = {k: v for k, v in text.items() if not isinstance(v, dict) and k != "extends"}
    layers = text.get("layers", {})
    _require(isinstance(layers, dict), name, "layers must be a table of layer names or patterns")
    formats = {path: _format(name, path, values) for path, values in _flat(text).items()}
    _complete(name, formats)
    exceptions = []
    for pattern, tables in layers.items():
        _require(isinstance(tables, dict), name, f"layers.{pattern} must be a table of data paths")
        found = {}
        for path, values in _flat(tables).items():
            merged = _flat(text).get(path, {}) | values
            found[path] = _format(f"{name}, layer {pattern}", path, merged)
            alone = path == "U" and found[path].is_float  # its grid is one for all that lie on it
            _require(path not in WHOLE or alone, name, f"{path} is one for all layers; set it outside layers")
        exceptions.append((pattern, found))
    known = {f.name: f for f in fields(Profile)}
    for key, value in numbers.items():
        _require(key in known and key not in ("name", "places"), name, f"unknown key {key!r}")
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
        wanted = kinds[str(known[key].type)]
        fits = isinstance(value, wanted) and isinstance(value, bool) == (wanted == (bool,))
        _require(fits, name, f"{key} has the wrong type")
    profile = Profile(name=name, formats=formats, exceptions=tuple(exceptions), **({"summary": ""} | numbers))
    _check(profile)
    return profile


def table(formats: dict[str, Format]) -> dict[str, dict[str, Any]]:
    """Formats by data path as plain values, for JSON."""
    return {path: asdict(form) for path, form in formats.items()}


def restored(
    name: str, formats: dict[str, Any], exceptions: Sequence[tuple[str, dict[str, Any]]], momentum: float, constant_bits: int
) -> Profile:
    """The profile that `table` wrote the formats of. Raises WageubnError as for a file that contradicts itself."""

    def read(where: str, tables: dict[str, Any]) -> dict[str, Format]:
        found = {}
        for path, values in tables.items():
            _require(isinstance(values, dict), where, f"{path} must be a table")
            found[path] = _format(where, path, {key: value for key, value in values.items() if value is not None})
        return found

    kept = read(name, formats)
    _complete(name, kept)
    layers = tuple((pattern, read(f"{name}, layer {pattern}", tables)) for pattern, tables in exceptions)
    profile = Profile(name, "", kept, layers, momentum, constant_bits)
    _check(profile)
    return profile


def _complete(name: str, formats: dict[str, Format]) -> None:
    missing = [path for path in PATHS if path not in formats]
    _require(not missing, name, f"lacks the data path {missing[0] if missing else ''}; start from another with extends")


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
    made, rule = Format(**values), PATHS[path]
    if made.is_float:
        return made
    _require("bits" in values or made.function == "exact", where, f"{path} has no bits")
    _require(made.rounding in ROUNDINGS, where, f"{path} has the rounding {made.rounding!r}; it must be {', '.join(ROUNDINGS)}")
    _require(
        made.function in rule.functions, where, f"{path} has the function {made.function!r}, not {' or '.join(rule.functions)}"
    )
    _require(
        made.function == "exact" or 2 <= made.bits <= rule.bits,
        where,
        f"{path} has {made.bits} bits; 2 to {rule.bits} have an integer form",
    )
    _require(not rule.fixed or made.fraction is not None, where, f"{path} lies on a fixed grid and needs a fraction")
    _require(not made.delayed or path in DELAYED, where, f"{path} has no run-time exponent that could be delayed")
    _require(not made.delayed or made.function != "flag", where, f"{path}: a flag pair's two grids cannot be delayed")
    dynamic = made.function in ("shift", "flag", "align", "grid") or made.delayed
    _require(not (dynamic and made.fraction is not None), where, f"{path} finds its grid at run time: leave out fraction")
    if made.rounding == "stochastic":
        reason = "inference computes it too and has no random bits" if rule.forward else "its sums must be exact"
        _require(path in RANDOM and made.function != "flag", where, f"{path} cannot round stochastically: {reason}")
    if made.function == "flag":
        _require(made.bits == 8, where, f'{path}: a flag pair has 8 bits, not {made.bits}; use function = "shift"')
    if made.function == "constant":
        _require(made.bits == 8, where, f"{path}: constant quantization has 8 bits, not {made.bits}")
    _require(made.bounded or made.function == "direct", where, f"{path}: only direct quantization can be left unbounded")
    _require(made.bounded or not {"least", "greatest"} & set(values), where, f"{path} is unbounded: leave out least and greatest")
    full = 2 ** (made.bits - 1)
    _require(
        -full <= made.least <= 0 < made.greatest <= full, where,
        f"{path} saturates at {made.least}..{made.greatest}, which {made.bits} bits do not hold",
    )  # fmt: skip
    return made


def _check(profile: Profile) -> None:
    """What several paths must agree on."""
    name, f = profile.name, profile.format
    m, momentum = f("M.coefficient"), profile.momentum
    _require(profile.constant_bits >= 0, name, f"constant_bits {profile.constant_bits} is negative")
    _require(profile.epsilon >= 0, name, f"epsilon {profile.epsilon} is negative")
    _require(0 <= momentum < 1, name, f"momentum {momentum} is not in 0..1")
    if not m.is_float:
        momentum = round(momentum * 2.0**-m.exponent) * 2.0**m.exponent
    _require(momentum < 1, name, f"momentum {profile.momentum} rounds to 1 on {m.fraction} fractional bits")
    for kind in ("W", "gamma", "beta", "bias"):
        g, a = f(f"G.{kind}"), f(f"M.{kind}")
        if any(form.is_float or not form.bounded for form in (g, a)):
            continue
        most = g.greatest * 2.0**g.exponent / (1 - momentum)
        _require(
            a.greatest * 2.0**a.exponent >= most * (1 - 2**-6), name,
            f"M.{kind} ends at {a.greatest * 2.0**a.exponent:.3g}, but gradients of G.{kind} add up to {most:.3g} with "
            f"momentum {profile.momentum}; give it more bits or a smaller fraction",
        )  # fmt: skip
    for path in ("BN.mu", "BN.sigma"):
        own = f(path).fraction is not None and not f(path).is_float
        _require(not (own and f("C").delayed), name, f"{path} lies on the grid of a delayed C: leave out fraction")
    tables = [profile.formats, *(profile.formats | formats for _, formats in profile.exceptions)]
    for path in ("C", "BN.A"):
        split = any(table[path].delayed and not table["E2"].delayed for table in tables if not table["E2"].is_float)
        _require(not split, name, f"a delayed {path} gives errors an exponent a channel, which only a delayed E2 can read")
    u, w = f("U"), f("W")
    both = not u.is_float and not w.is_float
    _require(not both or u.exponent <= w.exponent, name, "U is coarser than W: no update could ever change a weight by less")


def _require(holds: bool, where: str, reason: str) -> None:
    if not holds:
        raise WageubnError(f"profile {where}: {reason}")

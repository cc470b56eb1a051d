"""Profiles: what a user's TOML may set, what is refused and why, and that what it sets reaches the graph."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest

from networks import BATCH, MEAN, STD, tiny
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.pipeline import convert
from wageubn_onnx.profiles import NAMES, PATHS, Format, load_profile
from wageubn_onnx.proofs.audit import audit_model


def own(folder: Path, text: str) -> str:
    file = folder / "own.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_profile_has_every_path(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and profile.summary
    assert set(profile.formats) == set(PATHS)


@pytest.mark.parametrize("name", [name for name in NAMES if load_profile(name).has_integers])
def test_a_named_profile_passes_the_audit(name: str, tmp_path: Path) -> None:
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    made = convert(tmp_path / "tiny.onnx", Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile(name)))
    for stage in ("int_training", "int_eval"):
        assert audit_model(made.files[stage]).findings == []


def test_what_a_profile_extends_stays() -> None:
    full8, e16 = load_profile("full8"), load_profile("e16")
    assert e16.format("E2") == Format(16, function="shift")
    assert {p for p in PATHS if e16.format(p) != full8.format(p)} == {"E2"}


def test_a_later_exception_wins(tmp_path: Path) -> None:
    text = 'extends = "full8"\n[layers."layer*".A]\nbits = 6\n[layers.layer2.A]\nbits = 5\n[layers.last.A]\nbits = 4\n'
    profile = load_profile(own(tmp_path, text)).on("stem", "fc")
    assert [profile.format("A", layer).bits for layer in ("stem", "layer1", "layer2", "fc")] == [8, 6, 5, 4]


def test_a_name_may_leave_paths_in_float(tmp_path: Path) -> None:
    """Whole groups too, at every layer; what they would be quantized to stays known."""
    full8, left = load_profile("full8"), load_profile("full8-BN-U")
    assert left.name == "full8-BN-U" and full8.has_integers and not left.has_integers
    assert {p for p in PATHS if left.format(p).is_float} == {"BN.mu", "BN.sigma", "BN.x", "BN.running", "BN.A", "BN.K", "U"}
    assert left.format("BN.mu").bits == 16
    text = 'extends = "full8"\n[layers.fc.W]\nbits = 5\nfraction = 4\n[layers.last.A]\nfunction = "float"\n'
    own_profile = load_profile(own(tmp_path, text)).on("stem", "fc")
    assert own_profile.format("A", "fc").is_float and not own_profile.format("A", "stem").is_float
    assert not own_profile.has_integers
    assert own_profile.with_float("W").format("W", "fc").is_float
    with pytest.raises(WageubnError, match="profile full8: no data path 'E3'"):
        load_profile("full8-E3")


@pytest.mark.parametrize(
    "key", ["constant_bits = 0", "rescale = false", "epsilon = 1e-5", "exact_backward = true", "A.bounded = false"]
)
def test_what_integers_do_not_compute_has_no_integer_form(key: str, tmp_path: Path) -> None:
    assert not load_profile(own(tmp_path, f'extends = "full8"\n{key}\n')).has_integers


def test_all_that_pool_are_one_place(tmp_path: Path) -> None:
    profile = load_profile(own(tmp_path, 'extends = "full8"\n[layers.pool.A]\nbits = 5\n')).on("stem", "fc", ["maxpool", "gap"])
    assert [profile.format("A", layer).bits for layer in ("stem", "maxpool", "relu", "gap", "pool")] == [8, 5, 8, 5, 8]


def test_momentum_in_float_may_be_any(tmp_path: Path) -> None:
    text = 'extends = "full8"\nmomentum = 0.9\n[M.coefficient]\nfunction = "float"\n'
    with pytest.raises(WageubnError, match="gradients of G.W add up"):
        load_profile(own(tmp_path, text))
    text += "".join(f'[M.{kind}]\nfunction = "float"\n' for kind in ("W", "gamma", "beta", "bias"))
    (tmp_path / "free.toml").write_text(text)
    assert load_profile(str(tmp_path / "free.toml")).momentum == 0.9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('extends = "nothing"', "no such profile"),
        ('extends = "full8"\n[E3]\nbits = 8', "no data path 'E3'"),
        ('extends = "full8"\n[A]\nwidth = 8', "unknown key 'width'"),
        ('extends = "full8"\n[A]\nbits = "8"', "must be of type int"),
        ('extends = "full8"\n[A]\nbits = 9', "A has 9 bits; 2 to 8"),
        ('extends = "full8"\n[A]\nrounding = "up"', "half_even, half_up, stochastic"),
        ('extends = "full8"\n[A]\nrounding = "stochastic"', "inference computes it too"),
        ('extends = "full8"\n[BN.A]\nrounding = "stochastic"', "cannot round stochastically"),
        ('extends = "full8"\n[E2]\nbits = 16', "a flag pair has 8 bits"),
        ('extends = "full8"\n[E1]\nfunction = "flag"', "function 'flag', not shift"),
        ('extends = "full8"\n[E1]\nfraction = 7', "finds its grid at run time"),
        ('extends = "full8"\n[E1]\ndelayed = 1', "must be of type bool"),
        ('extends = "full8"\n[A]\ndelayed = true', "no run-time exponent that could be delayed"),
        ('extends = "full8"\n[E2]\ndelayed = true', "a flag pair's two grids"),
        ('extends = "full8"\n[C]\ndelayed = true', "only a delayed E2"),
        ('extends = "fast"\n[layers.first.E2]\ndelayed = false', "only a delayed E2"),
        ('extends = "full8"\n[BN.A]\ndelayed = true', "a delayed BN.A gives errors an exponent a channel"),
        ('extends = "full8"\n[BN.K]\nfunction = "grid"\nbits = 40', "BN.K has 40 bits; 2 to 20"),
        ('extends = "full8"\n[BN.K]\nfunction = "shift"\nbits = 8', "function 'shift', not exact or grid"),
        ('extends = "full8"\n[C]\ndelayed = true\nfraction = 7', "finds its grid at run time"),
        ('extends = "full8"\n[A]\nleast = -300', "which 8 bits do not hold"),
        ('extends = "full8"\nmomentum = 0.9', "rounds to 1"),
        ('extends = "full8"\nmomentum = 1.0', "not in 0..1"),
        ('extends = "full8"\n[E1]\nbounded = false', "only direct quantization"),
        ('extends = "full8"\n[A]\nbounded = false\nleast = -3', "leave out least"),
        ('extends = "full8"\nconstant_bits = -1', "is negative"),
        ('extends = "full8"\nepsilon = -1e-5', "is negative"),
        ('extends = "fast"\n[BN.mu]\nfraction = 10', "on the grid of a delayed C"),
        ('extends = "full8"\n[layers.fc.lr]\nfunction = "float"', "one for all layers"),
        ('extends = "full8"\n[M.W]\nbits = 6', "gradients of G.W add up"),
        ('extends = "full8"\n[U]\nfraction = 5', "coarser than W"),
        ('extends = "full8"\nspeed = 1', "unknown key 'speed'"),
        ('extends = "full8"\nmomentum = "a"', "wrong type"),
        ('extends = "full8"\n[layers.fc.U]\nbits = 24', "one for all layers"),
        ('extends = "own.toml"', "extends itself"),
        ("[A]\nbits = 8", "lacks the data path"),
        ("bits = = 8", "not TOML"),
    ],
)
def test_a_contradictory_profile_is_refused_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match=reason) as raised:
        load_profile(own(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert ("nothing" if "nothing" in text else "own") in str(raised.value)


def test_a_profile_reaches_the_graph(tmp_path: Path) -> None:
    """Bits, bounds and roundings of the manifest are the profile's, by layer."""
    text = """
extends = "sq8"
[A]
bits = 7
least = -64
[E1]
rounding = "half_up"
[layers.first.E2]
bits = 16
[layers.last.W]
bits = 5
fraction = 4
"""
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    config = Config(batch=BATCH, mean=MEAN, std=STD, profile=load_profile(own(tmp_path, text)))
    made = convert(tmp_path / "tiny.onnx", config)
    entries = made.manifest["quantizers"]
    assert made.manifest["profile"] == "own"
    assert made.manifest["formats"]["A"] == asdict(Format(7, least=-64))
    assert [e["layers"] for e in made.manifest["exceptions"]] == ["first", "last"]
    assert made.manifest["exceptions"][1]["formats"] == {"W": asdict(Format(5, fraction=4))}
    assert {e["bits"] for e in entries if e["role"] == "A"} == {7}
    assert {e["rounding"] for e in entries if e["role"] == "E1"} == {"half_up"}
    assert {e["layer"]: e["bits"] for e in entries if e["role"] == "W"}["fc"] == 5
    assert sorted(e["bits"] for e in entries if e["role"] == "E2")[-2:] == [8, 16]


def test_the_command_line_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    arguments = ["convert", str(tmp_path / "tiny.onnx"), "-o", str(tmp_path / "out"), "--keep-folded", "--profile"]
    with pytest.raises(SystemExit) as done:
        cli.main([*arguments, own(tmp_path, 'extends = "sq8"')])
    assert done.value.code == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["profile"] == "own"
    with pytest.raises(SystemExit) as refused:
        cli.main([*arguments, "full9"])
    assert refused.value.code == 2
    assert "'full9': no such profile" in capsys.readouterr().err

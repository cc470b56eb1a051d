"""What `freeze` marks, what it leaves, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from networks import BATCH, MEAN, STD, TOPOLOGIES
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import Model, to_proto
from wageubn_onnx.pipeline import FORWARD

BLOCK_BN = {"a1_bn", "a2_bn", "b1_bn", "b2_bn", "b_short_bn", "stem_bn"}


def forward(folder: Path, topology: str = "tiny", **options: Any) -> Model:
    onnx.save(TOPOLOGIES[topology](), folder / "net.onnx")
    return FORWARD(folder / "net.onnx", Config(batch=BATCH, mean=MEAN, std=STD, keep_folded=True, **options))


def trained(model: Model) -> set[str]:
    """The layers that have anything left to train."""
    return {s.layer for s in model.states.values() if not s.frozen and not s.kind.startswith("running")}


def test_nothing_is_frozen_unasked(tmp_path: Path) -> None:
    assert not any(state.frozen for state in forward(tmp_path).states.values())


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (("a1",), {"a1"}),
        (("a1*",), {"a1", "a1_bn"}),
        (("stem", "b?"), {"stem", "b1", "b2"}),
        (("*_bn",), BLOCK_BN),
        (("[ab]2*", "a2"), {"a2", "a2_bn", "b2", "b2_bn"}),
    ],
)
def test_a_pattern_freezes_whole_layers(patterns: tuple[str, ...], frozen: set[str], tmp_path: Path) -> None:
    """A BN by its own name, with its statistics; every parameter of a layer or none."""
    model = forward(tmp_path, freeze=patterns)
    assert {s.layer for s in model.states.values() if s.frozen} == frozen
    assert all(s.frozen == (s.layer in frozen) for s in model.states.values())


@pytest.mark.parametrize(
    ("topology", "count", "layers"),
    [
        ("tiny", 1, {"fc"}),
        ("tiny", 2, {"fc", "head"}),
        ("tiny", 3, {"fc", "head", "b2", "b2_bn"}),  # the other branch of the same sum stays frozen
        ("tiny", 4, {"fc", "head", "b_short", "b_short_bn", "b2", "b2_bn"}),
        ("preactivation", 1, {"fc"}),
        ("preactivation", 2, {"fc", "b2", "last_bn"}),  # a BN behind the sum that b2 goes into
        ("preactivation", 3, {"fc", "b2", "last_bn", "b1", "b_bn2"}),
        ("plain", 3, {"fc", "c2", "c1", "c1_bn"}),
    ],
)
def test_the_last_layers_are_trained_with_their_bns(topology: str, count: int, layers: set[str], tmp_path: Path) -> None:
    assert trained(forward(tmp_path, topology, train_last=count)) == layers


def test_frozen_statistics_leave_gamma_and_beta(tmp_path: Path) -> None:
    model = forward(tmp_path, bn="frozen")
    assert {s.kind for s in model.states.values() if s.frozen} == {"running_mean", "running_var"}
    assert not any(s.kind.startswith("running") for s in model.states.values() if not s.frozen)


def test_options_add_up(tmp_path: Path) -> None:
    model = forward(tmp_path, train_last=4, freeze=("b2",), bn="frozen")
    assert trained(model) == {"fc", "head", "b_short", "b_short_bn", "b2_bn"}
    assert model.states["b2_bn.running_mean"].frozen and not model.states["b2_bn.weight"].frozen


def test_the_file_of_forward_is_the_same(tmp_path: Path) -> None:
    models = (forward(tmp_path), forward(tmp_path, train_last=2, bn="frozen"))
    files = [to_proto(model, {"logits": model.named["logits"]}) for model in models]
    assert files[0].SerializeToString(deterministic=True) == files[1].SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": ("conv9",)}, r"freeze 'conv9': matches no layer .* stem, stem_bn, a1, .* \(14 in all\)"),
        ({"freeze": ("a1", "A1*")}, "freeze 'A1\\*'"),
        ({"freeze": ("*",)}, "every layer is frozen"),
        ({"freeze": ("fc",), "train_last": 1}, "every layer is frozen"),
        ({"train_last": 9}, "train-last 9: the network has 8 layers with weights"),
        ({"train_last": 0}, "train-last 0: at least one layer"),
        ({"bn": "running"}, "bn 'running': must be batch or frozen"),
        ({"num_classes": 7, "freeze": ("f*",)}, "layer 'fc': is the new head of 7 classes"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match=words):
        forward(tmp_path, **options)

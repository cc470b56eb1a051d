"""A few hundred mutants, always the same; `make fuzz` tries more, of any seed."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from networks import tiny

from .kinds import KINDS, faults
from .models import mutated
from .same import DIFFERENT, compare
from .worker import Outcome, forked

ROOT = Path(__file__).resolve().parents[2]
# Kind by kind, so that processes share the work; most go to the kinds that take half a second a mutant
COUNTS = dict.fromkeys(KINDS, 8) | {"models": 120, "profiles": 60, "data": 6, "states": 6, "stages": 5, "checkpoints": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_no_mutant_finds_a_fault(kind: str) -> None:
    """In a process of its own: one that has no threads, so that it can be forked."""
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "0", "--count", str(COUNTS[kind]), "--kind", kind]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_seed_gives_the_same_mutants_again() -> None:
    contents = [[mutated(tiny(), random.Random(f"s {i}"))[0] for i in range(20)] for _ in range(2)]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) > 15


def outcome(code: int = 0, stderr: bytes = b"", stdout: bytes = b"", peak: int = 0, timed_out: bool = False) -> Outcome:
    return Outcome(("convert",), code, 1.0, peak, stdout, stderr, timed_out)


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (outcome(0), ""),
        (outcome(1), ""),
        (outcome(2, b"note: something\nerror: one line\n"), ""),
        (outcome(2, b"error: one\nerror: two\n"), "not one line"),
        (outcome(2, b"no message\n"), "not one line"),
        (outcome(3, b"error: a fault\n"), "exit 3"),
        (outcome(-11), "exit -11"),
        (outcome(-9, timed_out=True), "hangs"),
        (outcome(0, peak=5 * 2**30), "memory"),
        (outcome(0, stdout=b"a \x1b[31mname\n"), "raw character"),
        (outcome(0, stdout="a \u202ename\n".encode()), "raw character"),
        (outcome(0, b"RuntimeWarning: overflow\n"), "noise"),
    ],
)
def test_what_counts_as_a_fault(made: Outcome, kind: str) -> None:
    found = [fault.kind for fault in faults(made)]
    assert len(found) == bool(kind)
    assert all(kind in each for each in found)


def test_a_child_that_raises_hangs_or_eats_memory_is_told(tmp_path: Path) -> None:
    def hang() -> None:
        while True:
            pass

    assert forked(lambda: print("said"), tmp_path).stdout == b"said\n"
    raised = forked(lambda: [][0], tmp_path)
    assert raised.code == 70 and b"IndexError" in raised.stderr
    assert forked(hang, tmp_path, seconds=0.3).timed_out


@pytest.mark.parametrize("change", [0.0, 1e-2])
def test_other_numbers_are_noticed(tmp_path: Path, change: float) -> None:
    """One weight of `forward` off by a hundredth of the greatest: more than rounding explains."""
    from wageubn_onnx.config import Config
    from wageubn_onnx.pipeline import convert

    onnx.save(tiny(), tmp_path / "tiny.onnx")
    convert(tmp_path / "tiny.onnx", Config(batch=2), tmp_path / "out")
    model = onnx.load(tmp_path / "out/forward.onnx")
    (weight,) = (t for t in model.graph.initializer if t.name == "stem.weight")
    values = numpy_helper.to_array(weight).copy()
    values.flat[5] += np.float32(change * abs(values).max())
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    result = forked(lambda: compare(tmp_path / "tiny.onnx", tmp_path / "changed.onnx"), tmp_path)
    assert result.code == (DIFFERENT if change else 0), result

"""A hundred mutants, always the same; `make fuzz` tries more, of any seed."""

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
from .same import DIFFERENT
from .worker import Outcome

ROOT = Path(__file__).resolve().parents[2]
# Kind by kind, so that processes share the work; most go where a mutant takes half a second. `make fuzz` tries any number
COUNTS = dict.fromkeys(KINDS, 4) | {"models": 40, "profiles": 30, "options": 6, "checkpoints": 2, "data": 3}


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Of Python, without threads, so that it can be forked: a fork of a process with threads may wait for ever."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_no_mutant_finds_a_fault(kind: str) -> None:
    result = in_a_process("-m", "tests.fuzz", "--seed", "0", "--count", str(COUNTS[kind]), "--kind", kind)
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


CHILDREN = """
import sys
from pathlib import Path
from tests.fuzz.worker import forked

folder = Path(sys.argv[1])

def hang():
    while True:
        pass

assert forked(lambda: print("said"), folder).stdout == b"said\\n"
raised = forked(lambda: [][0], folder)
assert raised.code == 70 and b"IndexError" in raised.stderr
assert forked(hang, folder, seconds=0.3).timed_out
"""


def test_a_child_that_raises_or_hangs_is_told(tmp_path: Path) -> None:
    result = in_a_process("-c", CHILDREN, str(tmp_path))
    assert result.returncode == 0, result.stderr


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
    script = "import sys; from pathlib import Path; from tests.fuzz.same import compare; compare(*map(Path, sys.argv[1:]))"
    result = in_a_process("-c", script, str(tmp_path / "tiny.onnx"), str(tmp_path / "changed.onnx"))
    assert result.returncode == (DIFFERENT if change else 0), result.stderr

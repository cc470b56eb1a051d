"""What works on one operator of `forward` works on all of them, and CONTRIBUTING.md says how one more is added."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from autodiff.test_rules import CASES
from wageubn_onnx.onnxir import infer
from wageubn_onnx.operators import OPERATORS, Table
from wageubn_onnx.passes.lower import integers
from wageubn_onnx.proofs import interpreter, intervals
from wageubn_onnx.stages import INTEGER_OPS, TRAINING_OPS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("passes", "wageubn_onnx") for path in sorted((ROOT / folder).rglob("*.py"))]
OF_FLOATS = {"Exp", "Log"}  # softmax and loss, in whose place quantize passes put functions
NOT_NEEDED = {"passes/targets/qoperator.py": {"BatchNormalization"}}  # int8.py makes convolutions of it
NEW = "LeakyRelu"


def tables() -> dict[str, Mapping[str, Any]]:
    """Every table with an entry for each operator, by its file."""
    found: dict[str, Mapping[str, Any]] = {"tests/autodiff/test_rules.py": CASES}
    for path in SOURCES:
        if "= Table[" in path.read_text():
            file = path.relative_to(ROOT)
            module = importlib.import_module(".".join(file.with_suffix("").parts).replace("passes", "wageubn_onnx.passes", 1))
            (found[str(file)],) = (value for value in vars(module).values() if isinstance(value, Table))
    return found


def lacking(operators: Collection[str]) -> dict[str, list[str]]:
    """What has no entry, by file."""
    found = {file: sorted(set(operators) - table.keys() - NOT_NEEDED.get(file, set())) for file, table in tables().items()}
    return {file: missing for file, missing in found.items() if missing}


def test_every_table_has_every_operator() -> None:
    assert len(tables()) > 5
    assert lacking(OPERATORS) == {}
    assert infer.TABLE.keys() >= OPERATORS.keys(), "wageubn_onnx/onnxir/infer.py"


def test_no_table_has_an_operator_that_is_none() -> None:
    others = {file: sorted(table.keys() - OPERATORS.keys()) for file, table in tables().items()}
    assert {file: names for file, names in others.items() if names and not file.startswith("tests/")} == {}


def test_every_operator_of_a_step_has_a_shape_and_an_integer_form() -> None:
    assert infer.TABLE.keys() >= TRAINING_OPS | INTEGER_OPS, "wageubn_onnx/onnxir/infer.py"
    assert integers.RULES.keys() >= TRAINING_OPS - OF_FLOATS, "passes/lower/integers.py"


def test_every_operator_of_an_integer_step_is_proven_and_computed_exactly() -> None:
    assert intervals.TRANSFER.keys() >= INTEGER_OPS, "wageubn_onnx/proofs/intervals.py"
    assert interpreter.OPERATORS.keys() >= INTEGER_OPS, "wageubn_onnx/proofs/interpreter.py"


# -- the recipe -----------------------------------------------------------------------------------------------------------


def recipe() -> dict[str, list[str]]:
    """The hunks of the diffs in CONTRIBUTING.md, by file."""
    blocks = re.findall(r"^```diff\n\+\+\+ (\S+)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    return {file: re.split(r"^@@\n", diff, flags=re.MULTILINE) for file, diff in blocks}


def applied(hunk: str, text: str) -> str:
    """``text`` with the lines of a hunk that begin with + beside those that do not, which it must have once."""
    lines = hunk.splitlines(keepends=True)
    assert all(line[0] in " +" for line in lines), hunk
    before = "".join(line[1:] for line in lines if line[0] == " ")
    assert text.count("\n" + before) == 1, f"not there once: {before!r}"
    return text.replace("\n" + before, "\n" + "".join(line[1:] for line in lines))


def test_the_recipe_names_every_file_that_a_new_operator_needs() -> None:
    assert NEW not in OPERATORS
    assert {"wageubn_onnx/operators.py", *lacking([NEW])} == set(recipe())


def test_the_recipe_is_all_that_a_new_operator_needs(tmp_path: Path) -> None:
    """In a copy: its tables agree, its gradient is right, and tests/added_operator.py trains and exports a network with it."""
    for folder in ("passes", "wageubn_onnx", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file, hunks in recipe().items():
        text = (tmp_path / file).read_text()
        for hunk in hunks:
            text = applied(hunk, text)
        (tmp_path / file).write_text(text)
    tests = [f"tests/{file}.py" for file in ("added_operator", "test_operators", "autodiff/test_rules")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}  # of PyTorch
    choice = ["-k", f"{NEW} or added_operator or (operators and not recipe)"]
    run = subprocess.run([*command, *choice], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr

"""Mutants of passes: does a test notice that a number or a comparison in a pass is another?

    python tests/mutants.py passes/targets/iree.py TEST [TEST ...] [--count 20] [--seed 0] [--timeout 120]

Each mutant is a copy of the checkout in which one integer is one greater, one fraction is doubled, or one comparison is another.
It runs the tests, but for slow ones, up to the first that fails; they must pass without it. What survives is printed: either it
computes the same, or a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("passes", "wageubn_onnx", "tests", "models", "benchmarks", "examples", "pyproject.toml", "README.md", "docs")
OTHER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Of a module: the line, what is another there, and the whole module."""
    for at, node in enumerate(ast.walk(ast.parse(source))):
        tree = ast.parse(source)
        changed = next(n for i, n in enumerate(ast.walk(tree)) if i == at)
        if isinstance(changed, ast.Constant) and type(changed.value) in (int, float):
            changed.value = changed.value + 1 if isinstance(changed.value, int) else changed.value * 2
        elif isinstance(changed, ast.Compare):
            changed.ops[0] = OTHER[type(changed.ops[0])]()
        else:
            continue
        yield node.lineno, f"{ast.unparse(node)} -> {ast.unparse(changed)}", ast.unparse(tree)  # type: ignore[attr-defined]


def passing(checkout: Path, tests: list[str], timeout: float) -> bool:
    """Whether all ``tests`` pass in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    try:
        environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--count", type=int, default=10**6, help="mutants, drawn from all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for the tests of one mutant")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Path(scratch)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, checkout)
        file, original = checkout / given.file, (ROOT / given.file).read_text(encoding="utf-8")
        if not passing(checkout, given.tests, given.timeout):
            sys.exit(f"{' '.join(given.tests)}: fail, or take too long, without a mutant")
        every = list(mutants(original))
        drawn = random.Random(given.seed).sample(every, min(given.count, len(every)))
        survivors = 0
        for line, change, source_text in sorted(drawn):
            file.write_text(source_text, encoding="utf-8")
            if passing(checkout, given.tests, given.timeout):
                survivors += 1
                print(f"{given.file}:{line}: {change} survives", flush=True)
        print(f"{given.file}: {len(drawn)} of {len(every)} mutants, {len(drawn) - survivors} caught")


if __name__ == "__main__":
    main()

"""Imports point one way: a room of the tree imports only from rooms below it, and no module from one that imports it."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

# From the lowest up. A room is a module or a package of wageubn_onnx, less what of it is a room of its own; those of one line
# are one room. The package itself is "", and what measures it, outside of it, "benchmarks".
ROOMS = [
    ["version"],
    ["symbols"],
    ["errors"],
    ["operators"],
    ["terminal"],
    ["checkout"],
    ["external"],
    ["sound"],
    ["profiles"],
    ["config"],
    ["graph", "onnxir", "composites"],  # a model infers what it is given (onnxir.infer); edits take composites as they stand
    ["fixedpoint"],
    ["geometry"],
    ["stages"],
    ["passbase"],
    ["dryrun"],
    ["ranges"],
    ["quantizers"],
    ["autodiff"],
    ["artifacts"],
    ["passes.importing"],
    ["passes.training"],
    ["passes.quantize"],
    ["passes.lower"],
    ["recipe"],
    ["proofs"],
    ["pipeline"],
    ["passes.targets"],
    ["passes"],
    ["runtime"],
    ["proofs.derivation", "proofs.origin", "proofs.audit"],  # they convert again, and open what a session runs
    ["training"],
    ["bench"],
    ["export"],
    ["graphdiff"],
    ["inspect"],
    ["cli"],
    [""],
    ["benchmarks"],
]
LEVELS = {name: level for level, names in enumerate(ROOMS) for name in names}


def modules() -> dict[str, Path]:
    """Every module by its name within wageubn_onnx, or from benchmarks on."""
    found = {}
    for top in ("wageubn_onnx", "passes", "benchmarks"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if "wageubn_onnx/passes/" in file.as_posix() or "files" in file.relative_to(ROOT).parts:
                continue  # the link; scripts that exports carry
            parts = list(file.relative_to(ROOT).with_suffix("").parts)[top == "wageubn_onnx" :]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported(file: Path) -> set[str]:
    """The modules of ours that a file imports anywhere, for its types too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if _ours(name) in MODULES else str(node.module) for name in full}
    return {_ours(name) for name in names if name.split(".")[0] in ("wageubn_onnx", "benchmarks")}


def _ours(name: str) -> str:
    return name.removeprefix("wageubn_onnx").lstrip(".")


def room(module: str) -> str:
    """The longest name of a room that the module's begins with."""
    parts = module.split(".") if module else []
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)] or [""]
    return next((name for name in names if name in LEVELS), "none")


IMPORTS = {name: imported(file) - {name} for name, file in MODULES.items()}


def upward(imports: dict[str, set[str]]) -> list[str]:
    """The imports that do not go down."""
    pairs = ((name, other) for name, others in imports.items() for other in others)
    return [f"{name} imports {other}" for name, other in pairs if LEVELS[room(name)] < LEVELS[room(other)]]


def test_every_module_is_in_a_room() -> None:
    rooms = {name: room(name) for name in MODULES}
    assert "none" not in rooms.values(), rooms
    assert set(rooms.values()) == set(LEVELS)


def test_rooms_import_from_rooms_below() -> None:
    assert not upward(IMPORTS)


def test_no_module_imports_one_that_imports_it() -> None:
    apart = IMPORTS | {"": set()}  # the package, whose names are imported on first use
    try:
        TopologicalSorter(apart).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("module", "other"), [("graph", "proofs.walk"), ("proofs.ranges", "runtime.session"), ("bench.ops", "cli")]
)
def test_an_arrow_that_runs_up_is_found(module: str, other: str) -> None:
    assert upward({module: {other}}) == [f"{module} imports {other}"]


def test_every_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py" and name != "benchmarks"}
    assert sorted(listed) == sorted(f"wageubn_onnx.{name}".rstrip(".") for name in packages)

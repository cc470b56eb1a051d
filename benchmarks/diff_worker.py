"""One comparison of two files by one tool, in its own process. Prints one JSON object: same, answer, seconds.

``python diff_worker.py KIND A B``, KIND one of `KINDS`; ``KIND`` alone asks whether the tool is installed and prints its
version. Other tools may live in an environment without this package: so this file needs nothing of it but for its own comparison.
Imports are not timed, reading files is.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Answer = tuple[bool, str]  # whether it says that the files are the same, and what it says
Comparison = Callable[[str, str], Answer]


def _ours() -> Comparison:
    from wageubn_onnx.graphdiff import diff

    def run(a: str, b: str) -> Answer:
        found = diff(a, b)
        if found.same:
            return True, f"{len(found.pairs)} nodes correspond"
        words = [f"{len(nodes)} {where}" for nodes, where in ((found.only_a, "only in A"), (found.only_b, "only in B")) if nodes]
        words += [f"{kind} {count}" for kind, count in found.counts.items()]
        changes = {c: sum(p.change == c for p in found.paths) for c in dict.fromkeys(p.change for p in found.paths)}
        paths = f"; paths of layers: {', '.join(f'{c} {n}' for c, n in changes.items())}" if changes else ""
        return False, f"{len(found.pairs)} nodes correspond, {', '.join(words)}{paths}"

    return run


def _onnxdiffer() -> Comparison:
    import onnx
    from onnxdiff.structs_parameters import OnnxDiff

    def run(a: str, b: str) -> Answer:
        found = OnnxDiff(onnx.load(a), onnx.load(b)).summary()
        words = [f"{m.same} of {m.a_total} and {m.b_total} {kind}" for kind, m in found.graph_matches.items() if kind != "misc"]
        return bool(found.exact_match and found.score == 1), f"score {found.score:.4f}; equal: {', '.join(words)}"

    return run


def _diffonnx() -> Comparison:
    import onnx
    from diffonnx import StaticDiff

    def run(a: str, b: str) -> Answer:
        found = StaticDiff(onnx.load(a), onnx.load(b)).summary()
        scores = ", ".join(f"{name} {score:.4f}" for name, score in found.score.items())
        words = [f"{m.same} of {m.a_total} and {m.b_total} {kind}" for kind, m in found.graph_matches.items() if kind != "misc"]
        return bool(found.exact_match), f"scores {scores}; equal: {', '.join(words)}"

    return run


def _onnxsim() -> Comparison:
    import onnx
    from onnxsim.model_info import diff_graphs

    def run(a: str, b: str) -> Answer:
        found = diff_graphs(onnx.load(a), onnx.load(b))
        parts = {
            "nodes removed": found.removed_nodes,
            "nodes added": found.added_nodes,
            "nodes changed": found.changed_nodes,
            "values removed": found.removed_values,
            "values added": found.added_values,
        }
        return not any(parts.values()), ", ".join(f"{len(part)} {what}" for what, part in parts.items() if part) or "nothing"

    return run


KINDS: dict[str, Callable[[], Comparison]] = {
    "wageubn-onnx": _ours,
    "onnxdiffer": _onnxdiffer,
    "diffonnx": _diffonnx,
    "onnxsim": _onnxsim,
}


def main(kind: str, *files: str) -> None:
    """Compare two files once, or say whether the tool is there."""
    said: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # tools print what they like
        try:
            said["version"] = version(kind) if kind != "wageubn-onnx" else ""
            run = KINDS[kind]()
        except (PackageNotFoundError, ImportError):
            said = {"version": None}
            files = ()
        if files:
            start = time.perf_counter()
            said["same"], said["answer"] = run(*files)
            said["seconds"] = time.perf_counter() - start
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

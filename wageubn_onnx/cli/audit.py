"""`audit`: the proof, and the table of ranges."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wageubn_onnx.cli.options import (
    PATH,
    example,
    json_option,
    print_json,
    reading,
    working,
)
from wageubn_onnx.terminal import print_table, say

if TYPE_CHECKING:
    from wageubn_onnx.proofs.ranges import Proof

TIGHTEST = 25  # rows of the table of ranges


@click.command(epilog=example("wageubn-onnx audit r20"))
@click.argument("path", metavar="MODEL_OR_DIR", type=PATH)
@click.option("--ranges", is_flag=True, help="Print what is proven of every tensor that could overflow, the tightest first.")
@click.option("--all", "every", is_flag=True, help="With --ranges: of every tensor, in all rows.")
@click.option("--no-session", is_flag=True, help="Of a folder: do not open what a session would run, which takes the longest.")
@json_option
@click.pass_context
def audit(ctx: click.Context, path: Path, ranges: bool, every: bool, no_session: bool, as_json: bool) -> None:
    """Prove that a graph is what the conversion makes of its network, computes with integers only and never overflows.

    Of a folder, that is its training step and its inference model, which are also compared with manifest.json and forward.onnx.
    Exits with 1 where anything was found.
    """
    from wageubn_onnx.artifacts.folder import ArtifactFolder
    from wageubn_onnx.proofs.audit import audit as run
    from wageubn_onnx.proofs.audit import audit_folder

    if every and not ranges:
        raise click.UsageError("--all needs --ranges", ctx)
    with working(f"auditing {path}"), reading(path):
        reports = audit_folder(ArtifactFolder(path), not no_session) if path.is_dir() else [(path, run(path))]
    passed = all(report.ok for _, report in reports)
    if as_json:
        found = [
            {
                "model": str(model),
                "ok": report.ok,
                "coverage": report.coverage,
                "float_parameters": report.float_parameters,
                "findings": [{"kind": f.kind, "where": f.where, "message": f.message} for f in report.findings],
                "uncompared": report.uncompared,
            }
            | ({"proof": _proof_json(report.proof, every)} if ranges and report.proof else {})
            for model, report in reports
        ]
        print_json({"ok": passed, "models": found})
    else:
        for model, report in reports:
            say(f"{model}: {'integers only' if report.ok else f'{len(report.findings)} findings'}")
            for finding in report.findings:
                say(f"  {finding.kind}: {finding.where}: {finding.message}")
            for name, value in report.coverage.items():
                say(f"  {name}: {value}")
            for reason in report.uncompared:
                say(f"  not compared: {reason}")
            if report.float_parameters:
                say(f"  powers of two, scales of QLinear operators: {', '.join(report.float_parameters)}")
            if ranges:
                _print_ranges(report.proof, every)
    ctx.exit(0 if passed else 1)


def _proof_json(proof: Proof, every: bool) -> dict[str, Any]:
    rows = proof.ranges if every else proof.growing
    return {"verdict": proof.verdict, "tensors": proof.tensors, "states": proof.states, "ranges": [asdict(r) for r in rows]}


def _print_ranges(proof: Proof | None, every: bool) -> None:
    if proof is None:
        say("no ranges: only integers have one")
        return
    found = proof.ranges if every else proof.growing[:TIGHTEST]
    rows = [[r.node, r.op, r.dtype, str(r.least), str(r.greatest), str(r.bits), f"{r.headroom:.1f}"] for r in found]
    title = "every tensor" if every else f"the {len(rows)} tightest of {len(proof.growing)} tensors that could overflow"
    print_table(title, ["node or function.tensor", "op", "dtype", "least", "greatest", "bits", "headroom"], rows)
    say(proof.verdict)

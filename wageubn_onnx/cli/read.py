"""`diff`, `inspect` and `passes`: what is in files, and what differs between them."""

from __future__ import annotations

from pathlib import Path

import click

from wageubn_onnx.cli.options import (
    PATH,
    example,
    json_option,
    print_json,
    reading,
    working,
)
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.terminal import print_table


@click.command(epilog=example("wageubn-onnx diff r20/fp_training.onnx r20/int_training.onnx --only layer3 --path E2"))
@click.argument("a", metavar="A_OR_DIR", type=PATH)
@click.argument("b", metavar="[B]", type=PATH, required=False)
@click.option(
    "--only", default="", metavar="PATTERN", help="What belongs to these layers: a name with * and ?, or what it begins with."
)
@click.option("--path", "data_path", default="", metavar="PATTERN", help="What belongs to these data paths: E2, W, BN, ...")
@click.option("--summary", is_flag=True, help="Print totals only.")
@click.option(
    "--html", type=PATH, metavar="FILE", help="Print totals, and write all layers' graphs side by side as a page to look at."
)
@json_option
@click.pass_context
def diff(
    ctx: click.Context, a: Path, b: Path | None, only: str, data_path: str, summary: bool, html: Path | None, as_json: bool
) -> None:
    """Say what differs between two ONNX files, whatever their nodes are called and however they are ordered.

    Two stages of the pipeline are compared by layer and data path. Of an artifact folder DIR, every stage is compared with the
    one that it is made of. Exits with 0 where the files are the same, with 1 where they differ.
    """
    from wageubn_onnx.artifacts.files import write_text
    from wageubn_onnx.graphdiff import align, align_folder, explain
    from wageubn_onnx.graphdiff.page import Collector, render
    from wageubn_onnx.graphdiff.report import print_diff

    if a.is_dir() != (b is None):
        raise click.UsageError("give two ONNX files, or one artifact folder", ctx)
    if html and not html.absolute().parent.is_dir():
        raise WageubnError(f"{html}: no such folder; make it first")
    page, found = Collector(), []
    with working("comparing"):
        for step in align_folder(a) if b is None else [align(a, b)]:
            found.append(explain(step).only(only, data_path))
            if html:
                page.add(step)
    if all(step.is_empty for step in found):
        raise WageubnError(
            f"no node belongs to layer {only or 'any'!r} and data path {data_path or 'any'!r}; give other patterns"
        )
    if html:
        write_text(html, render(page, a.absolute().name if b is None else f"{a.name} and {b.name}"))
    if as_json:
        reports = [step.to_json() for step in found]
        print_json(reports[0] if b else {"schema": reports[0]["schema"], "same": all(s.same for s in found), "steps": reports})
    else:
        for result in found:
            print_diff(result, summary or html is not None)
    ctx.exit(0 if all(step.same for step in found) else 1)


@click.command(epilog=example("wageubn-onnx inspect r20/int_training.onnx --layers"))
@click.argument("path", metavar="MODEL_OR_DIR", type=PATH)
@click.option("--layers", is_flag=True, help="Also what every layer costs.")
@json_option
def inspect(path: Path, layers: bool, as_json: bool) -> None:
    """Show what is in an ONNX file: inputs, operators, parameters, FLOPs, memory; of a folder, a line a stage.

    Of a stage with quantizers also the map, a row a layer and a column a data path: FUNCTION/BITS, with /ROUNDING where that is
    not half to even; GAP where one is missing. Memory is an estimate from the liveness of tensors.
    """
    from wageubn_onnx.inspect.summary import inspect_file, inspect_folder
    from wageubn_onnx.inspect.tables import stages, tables

    with working(f"inspecting {path}"), reading(path):
        found = inspect_folder(path) if path.is_dir() else [inspect_file(path)]
    if as_json:
        shown = [summary.to_json(layers) for summary in found]
        print_json(shown if path.is_dir() else shown[0])
        return
    for table in stages(str(path), found) if path.is_dir() else tables(found[0], layers):
        print_table(*table)


@click.command(epilog=example("wageubn-onnx passes"))
@json_option
def passes(as_json: bool) -> None:
    """List the stages and the passes that lead to them, in order, and the passes of targets."""
    from wageubn_onnx.passes.targets.table import PASSES
    from wageubn_onnx.pipeline import STAGES

    groups = [("stage", stage.name, stage.summary, stage.passes) for stage in STAGES]
    groups += [("target", name, "what `export` makes of int_training", passes) for name, passes in PASSES.items()]

    if as_json:
        print_json(
            [
                {
                    kind: name,
                    "summary": summary,
                    "passes": [{"name": p.name, "file": p.file, "summary": p.summary} for p in passes],
                }
                for kind, name, summary, passes in groups
            ]
        )
        return
    for kind, name, summary, passes in groups:
        rows = [[step.name, step.summary, step.file] for step in passes]
        title = name if kind == "stage" else f"target {name}"
        print_table(f"{title}: {summary}", ["pass", "does", "file"], rows)

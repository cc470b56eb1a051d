"""`export` and `verify`: other runtimes, and whether they compute the same bits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wageubn_onnx.cli.options import (
    PATH,
    example,
    json_option,
    print_json,
    working,
)
from wageubn_onnx.terminal import print_table, say

if TYPE_CHECKING:
    from wageubn_onnx.export.base import Option
    from wageubn_onnx.export.verify import Row


def _list_targets(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """A callback of ``--list``, which stands alone."""
    if not wanted or ctx.resilient_parsing:
        return
    from wageubn_onnx.export.table import TARGETS

    rows = [[target.name, target.summary, target.missing() or "ready"] for target in TARGETS]
    print_table("Export targets", ["target", "what it writes", "state"], rows)
    ctx.exit()


@functools.cache
def _options_of_targets() -> list[click.Parameter]:
    from wageubn_onnx.export.table import TARGETS

    return [_as_click(target.name, name, option) for target in TARGETS for name, option in target.options.items()]


def _as_click(target: str, name: str, option: Option) -> click.Option:
    meaning = f"{target}: {option.meaning}."
    if option.kind is bool:
        return click.Option([f"--{name}"], is_flag=True, help=meaning)
    return click.Option([f"--{name}"], type=PATH if option.kind is Path else str, help=meaning)


class Export(click.Command):
    """A command that takes the options of all targets, too, which each target declares (`Target.options`)."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own; the table of targets, which takes a while to load, is asked only here."""
        return [*super().get_params(ctx), *_options_of_targets()]


@click.command(cls=Export, epilog=example("wageubn-onnx export r20 --target onnxruntime -o r20-ort"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--target", required=True, help="The runtime to export to: `wageubn-onnx export --list` lists them.")
@click.option("-o", "--out", required=True, type=PATH, metavar="OUT", help="The folder to write.")
@click.option("--state", type=PATH, help="Begin with this trained state instead of the folder's initial one.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_targets, help="List the targets.")
def export(folder: Path, target: str, out: Path, state: Path | None, **options: Any) -> None:
    """Write the integer step of the converted folder DIR for another runtime, with all that it needs to train there.

    Targets inference and fp32 write the network alone, with the trained state: in 8 bits, or back in FP32.
    """
    from wageubn_onnx.export.export import export as run

    with working(f"exporting {folder} for {target}"):
        run(folder, target, out, state, **{name: value for name, value in options.items() if value})
    say(f"{out}: written; its README.md says how to use it")


@click.command(epilog=example("wageubn-onnx verify r20 --steps 10 --targets onnxruntime,interpreter"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--targets", default="", help="Comma-separated [default: every target, and both evaluators].")
@click.option("--steps", default=10, show_default=True, type=click.IntRange(min=1), help="Steps from the initial state.")
@click.option("--seed", default=0, show_default=True, help="Of images, labels and stochastic roundings.")
@click.option("--python", "pythons", multiple=True, type=PATH, help="The python of an environment with another onnxruntime.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context, folder: Path, targets: str, steps: int, seed: int, pythons: tuple[Path, ...], as_json: bool
) -> None:
    """Run the same steps of DIR on every target, and compare every state tensor and output bit for bit.

    Exits with 1 where a target differs; then names step, tensor and element, and the pass or kernel and the node where it begins.
    """
    from wageubn_onnx.export.verify import verify as run

    chosen = [name for name in targets.split(",") if name]
    rows = []
    with working(f"running {steps} steps of {folder}"):
        for row in run(folder, chosen, steps, seed, pythons):
            rows.append(row)
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        _print_verified(rows)
    ctx.exit(1 if any(row.wrong for row in rows) else 0)


def _print_verified(rows: Sequence[Row]) -> None:
    cells = [
        [
            row.target,
            row.runner,
            str(row.steps),
            str(row.tensors),
            row.unavailable or ("differs" if row.difference else "cannot run" if row.failure else "same bits"),
        ]
        for row in rows
    ]
    print_table("Against int_training.onnx in onnxruntime", ["target", "run by", "steps", "tensors compared", "result"], cells)
    for row in rows:
        if row.wrong:
            d = row.difference
            what = f"step {d.step}, {d.tensor}{d.index}: {d.found}, not {d.expected}" if d else row.failure
            begins = f"; {row.place.described}" if row.place else ""
            say(f"{row.target}{f', {row.runner}' if row.runner else ''}: {what}{begins}")

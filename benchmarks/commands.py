"""`wageubn-onnx bench convert`, `diff` and `accuracy`: what measures the project, as commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.convert import ConvertResult
from benchmarks.experiments import Experiment
from wageubn_onnx.cli.options import (
    PATH,
    example,
    json_option,
    print_json,
    training_python_option,
    working,
)
from wageubn_onnx.terminal import Terminal, print_table, say


@click.command(epilog=example("wageubn-onnx bench convert resnet50.onnx --rounds 5"))
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=PATH)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Conversions by each, in turns.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Images a training step takes.")
@training_python_option
@json_option
def convert(models: tuple[Path, ...], rounds: int, batch: int, training_python: Path | None, as_json: bool) -> None:
    """Time `convert` and measure its memory, by stages, beside onnxsim (where installed) and generate_artifacts.

    Without MODEL it takes ResNet-18, 50 and 152 of a checkout's models/resnet.py, untrained.
    """
    from benchmarks.convert import bench_convert

    with working("converting"):
        results = bench_convert(models, rounds, batch, training_python)
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        for result in results:
            _print_convert(result)


@click.command(epilog=example("wageubn-onnx bench diff --python other/bin/python --report docs/diff.md"))
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=PATH)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    type=PATH,
    metavar="PYTHON",
    help="Interpreter of an environment with tools that are not installed here; may be given again.",
)
@click.option("--limit", default=60.0, show_default=True, help="Seconds for one comparison.")
@click.option("--report", type=PATH, metavar="FILE", help="Rewrite the generated part of docs/diff.md.")
@json_option
def diff(models: tuple[Path, ...], pythons: tuple[Path, ...], limit: float, report: Path | None, as_json: bool) -> None:
    """Compare what `diff`, onnxdiffer, diffonnx and onnxsim say of the same pairs of files.

    Of the first MODEL: copies with one thing changed. Of each: its training step in float and in integers. Without MODEL it takes
    ResNet-18 and 50 of a checkout's models/resnet.py, untrained.
    """
    from benchmarks.diff import bench_diff, markdown, write_report

    with working("comparing"):
        result = bench_diff(models, pythons, limit)
    if report:
        write_report(report, result)
    if as_json:
        print_json(asdict(result))
    else:
        click.echo(markdown(result))


@click.command(epilog=example("wageubn-onnx bench accuracy fashion --data fashion.npz --jobs 2"))
@click.argument("name", metavar="[EXPERIMENT]", required=False)
@click.option("--data", "data_path", type=PATH, metavar="DATA", help="What the experiment trains on, as for `train`.")
@click.option("--model", type=PATH, metavar="FILE", help="The trained network, for an experiment that makes none.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Runs at once, a thread each.")
@click.option("--only", metavar="ARM", help="Do the runs of one arm.")
@click.option("--phase", type=click.Choice(["tune", "final"]), help="Do one phase [default: tune, then final].")
@click.option("--list", "listing", is_flag=True, help="Show what is done and what is left.")
@click.option("--report", is_flag=True, help="Write tables and plots of all results beside them.")
@click.option("--results", default="docs/accuracy", show_default=True, type=PATH, help="Folder of the results.")
@click.option("--scratch", default="build/accuracy", show_default=True, type=PATH, help="Folder of runs under way.")
def accuracy(
    name: str | None,
    data_path: Path | None,
    model: Path | None,
    jobs: int,
    only: str | None,
    phase: str | None,
    listing: bool,
    report: bool,
    results: Path,
    scratch: Path,
) -> None:
    """Do the runs of EXPERIMENT that have no result yet: tune every arm's rate, then train each seed at the best.

    Stop it at any time; the same command goes on. --report rewrites the generated part of RESULTS.md.
    """
    from benchmarks.accuracy import PHASES, Place, choose_arms, run_experiment
    from benchmarks.accuracy_report import write_report
    from benchmarks.experiments import EXPERIMENTS, find_experiment

    chosen = list(EXPERIMENTS.values()) if name is None else [find_experiment(name)]
    if listing:
        _list_runs(chosen, results, only)
    elif name is not None:
        if data_path is None:
            raise click.UsageError(f"experiment {name} needs --data DATA", click.get_current_context())
        place = Place(data_path, model, results, scratch)
        run_experiment(chosen[0], place, choose_arms(chosen[0], only), [phase] if phase else PHASES, jobs, Terminal(stderr=True))
    elif not report:
        raise click.UsageError(f"give an EXPERIMENT ({', '.join(EXPERIMENTS)}), --list or --report", click.get_current_context())
    if report:
        page = results.with_suffix(".md")
        write_report(page, results)
        say(f"{page} and its plots are up to date")


def _list_runs(experiments: Sequence[Experiment], results: Path, only: str | None) -> None:
    from benchmarks.accuracy import best_run, choose_arms, final_runs, read_records, tuning_runs

    rows = []
    for experiment in experiments:
        records = read_records(experiment, results)
        done = {record["key"] for record in records}
        for arm in choose_arms(experiment, only):
            best, tuning = best_run(experiment, arm, records), tuning_runs(experiment, arm)
            tuned, trained = (sum(r.key in done for r in runs) for runs in (tuning, final_runs(experiment, arm, records)))
            rate = f"{best.rate:.4g}, {best.schedule}" if best else ""
            rows.append([experiment.name, arm.name, f"{tuned} of {len(tuning)}", rate, f"{trained} of {len(experiment.seeds)}"])
    print_table(str(results), ["experiment", "arm", "tuning", "rate", "seeds"], rows)


def _print_convert(result: ConvertResult) -> None:
    for ratio in result.ratios:
        cost = f"{ratio.seconds:.2f} of the time, {ratio.cpu_seconds:.2f} of the CPU time, {ratio.peak_bytes:.2f} of the memory"
        say(f"{result.model}, convert / {ratio.against}: {cost}")
    rows = [
        [c.name, f"{c.seconds:.2f}", f"{c.cpu_seconds:.2f}", f"{c.peak_bytes / 2**20:.0f}", str(c.nodes)]
        for c in result.contenders
    ]
    print_table(f"{result.model}: medians", ["conversion", "s", "CPU s", "peak MiB", "nodes"], rows)
    stages = [[s.name, f"{s.seconds:.2f}", f"{s.peak_bytes / 2**20:.0f}"] for s in result.stages]
    print_table(f"{result.model}: stages of convert", ["stage", "s", "peak MiB"], stages)

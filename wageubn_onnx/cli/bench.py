"""`bench`: what a user measures of a folder; in a checkout also what measures the project, of benchmarks/commands.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wageubn_onnx import checkout
from wageubn_onnx.cli.options import (
    PATH,
    data_option,
    example,
    json_option,
    print_json,
    threads_option,
    training_python_option,
    working,
)
from wageubn_onnx.terminal import print_table, say

if TYPE_CHECKING:
    from wageubn_onnx.bench.step import BenchResult


plot_option = click.option("--plot", type=PATH, metavar="FILE", help="Draw it too, to a name in .svg or .png.")
PROJECT = ("accuracy", "convert", "diff")  # of benchmarks/commands.py


class Bench(click.Group):
    """The commands of this file and, in a checkout, those that measure the project."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that are here."""
        return sorted([*super().list_commands(ctx), *(PROJECT if checkout.has_benchmarks() else ())])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Raises WageubnError for one that needs a checkout where there is none."""
        if cmd_name not in PROJECT:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(checkout.benchmarks("commands"), cmd_name)
        return command


@click.group(cls=Bench)
def bench() -> None:
    """Measure what a conversion costs: time, accuracy, exactness."""


@bench.command("step", epilog=example("wageubn-onnx bench step r20 --threads 1"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1), help="Rounds over all contenders.")
@click.option("--steps", default=3, show_default=True, type=click.IntRange(min=1), help="Steps of each in a round.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Threads of every contender.")
@click.option("--torch/--no-torch", default=None, help="Compare with PyTorch [default: where it is installed].")
@training_python_option
@json_option
def bench_step(
    folder: Path, rounds: int, steps: int, threads: int, torch: bool | None, training_python: Path | None, as_json: bool
) -> None:
    """Time DIR's integer step beside its FP32 step and PyTorch, in turns, each in its own process."""
    from wageubn_onnx.bench.step import bench_step as run

    with working("timing"):
        result = run(folder, rounds, steps, threads, torch, training_python)
    if as_json:
        print_json(result.to_json())
    else:
        _print_bench(result)


@bench.command("ops", epilog=example("wageubn-onnx bench ops r20 --threads 2"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Threads of onnxruntime.")
@click.option("--steps", default=3, show_default=True, type=click.IntRange(min=1), help="Steps to count.")
@json_option
def bench_ops(folder: Path, threads: int, steps: int, as_json: bool) -> None:
    """Where the time of DIR's integer step goes, by kind of operator."""
    from wageubn_onnx.bench.ops import by_operator

    with working("timing"):
        shares = by_operator(folder, threads, steps)
    if as_json:
        print_json([asdict(share) for share in shares])
        return
    rows = [[share.operator, f"{share.share:.1%}", str(share.calls)] for share in shares]
    print_table("time of the integer step", ["operator", "share", "calls a step"], rows)


@bench.command("kernels", epilog=example("wageubn-onnx bench kernels"))
@json_option
def bench_kernels(as_json: bool) -> None:
    """Ask which kernels are exact here, and measure which forms of a convolution are the fastest, for later; some seconds."""
    from wageubn_onnx.passes.targets.cpu.machine import Kernel
    from wageubn_onnx.runtime.cache import Cache
    from wageubn_onnx.runtime.kernels import measure

    with working("timing"):
        table = measure()
    if as_json:
        print_json(table.described())
        return
    said = {True: "exact", False: "not exact, or not there: not used"}
    print_table(table.machine, ["kernel", "here"], [[kernel.value, said[table.is_exact(kernel)]] for kernel in Kernel])
    rows = [[*map(str, measured.shape), f"{measured.speedup:.2f}", f"{measured.fused:.2f}"] for measured in table.measured]
    print_table(
        "convolutions", ["images", "channels", "size", "to channels", "kernel", "uint8 / int8 time", "int8 / fused time"], rows
    )
    say(f"kept in {Cache(table.machine).file}")


@bench.command("gradients", epilog=example("wageubn-onnx bench gradients r20 --data cifar10.npz --batches 4"))
@click.argument("folder", metavar="DIR", type=PATH)
@data_option
@click.option("--batches", default=4, show_default=True, type=click.IntRange(min=1), help="How many training batches.")
@threads_option
@plot_option
@json_option
def bench_gradients(folder: Path, data_path: Path, batches: int, threads: int | None, plot: Path | None, as_json: bool) -> None:
    """Compare the gradients of DIR's integer step with its FP32 step's, parameter by parameter.

    DIR must be converted with --expose-gradients. Both start from their initial states on every batch.
    """
    from wageubn_onnx.bench.fidelity import gradient_fidelity, plot_gradients
    from wageubn_onnx.training.data import load_data

    with working("comparing gradients"):
        found = gradient_fidelity(folder, load_data(data_path), batches, threads)
        if plot:
            plot_gradients(found, plot)
    if as_json:
        print_json([asdict(entry) for entry in found])
    else:
        rows = [[entry.key, entry.kind, _number(entry.cosine, ".4f"), _number(entry.ratio, ".3f")] for entry in found]
        print_table(f"integer against FP32 gradients, {batches} batches", ["parameter", "kind", "cosine", "norm ratio"], rows)


@bench.command("forward", epilog=example("wageubn-onnx bench forward r20 --data cifar10.npz"))
@click.argument("folder", metavar="DIR", type=PATH)
@data_option
@click.option("--images", default=256, show_default=True, type=click.IntRange(min=1), help="How many test images.")
@threads_option
@plot_option
@json_option
def bench_forward(folder: Path, data_path: Path, images: int, threads: int | None, plot: Path | None, as_json: bool) -> None:
    """Compare every layer's output in DIR's integer inference with FP32's; the worst first."""
    from wageubn_onnx.bench.fidelity import forward_fidelity, plot_forward
    from wageubn_onnx.training.data import load_data

    with working("comparing layers"):
        found = forward_fidelity(folder, load_data(data_path), images, threads)
        if plot:
            plot_forward(found, plot)
    found.sort(key=lambda entry: float("inf") if entry.decibels is None else entry.decibels)
    if as_json:
        print_json([asdict(entry) for entry in found])
    else:
        rows = [[entry.layer, entry.role, _number(entry.decibels, ".1f")] for entry in found]
        print_table("signal to quantization noise", ["layer", "role", "dB"], rows)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _print_bench(result: BenchResult) -> None:
    for ratio in result.ratios:
        spread = f"{ratio.least:.2f} to {ratio.greatest:.2f} over the rounds"
        say(f"integer step / {ratio.against}: {ratio.median:.2f} of the time ({spread})")
    columns = ["step", "ms (median)", "peak MiB", "state MiB"]
    rows = [
        [c.name, f"{c.median * 1e3:.1f}", f"{c.peak_bytes / 2**20:.0f}", f"{c.state_bytes / 2**20:.2f}"]
        for c in result.contenders
    ]
    print_table(f"batch {result.batch}, {result.threads} threads", columns, rows)

"""The command line, `wageubn-onnx`.

Exit codes: 0 success, 1 the answer is no, 2 bad input, 3 a fault of this program, 130 interrupted. 2 and 3 print one line.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from wageubn_onnx.config import BN, LAYOUTS, PRESETS, Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.profiles import NAMES, load_profile
from wageubn_onnx.terminal import Terminal, print_table, printable, say, shortened

if TYPE_CHECKING:
    from benchmarks.convert import ConvertResult
    from benchmarks.experiments import Experiment
    from wageubn_onnx.bench.step import BenchResult
    from wageubn_onnx.export.verify import Row
    from wageubn_onnx.proofs.ranges import Proof
    from wageubn_onnx.runtime.session import Session

BAD_INPUT, FAULT = 2, 3
INTERRUPTED = 130  # what shells report of Ctrl-C
PATH = click.Path(path_type=Path)


class OneLineErrors(click.Group):
    """A group that reports whatever goes wrong as one line `error: ...` on stderr, and never as a traceback.

    Bad input exits with 2. An exception that nobody foresaw is a fault of this program, which the line says, and exits with 3;
    ``debug`` shows its traceback, too.
    """

    debug = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as click does, but with this program's errors and exit codes."""
        kwargs["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal may lack a name's letters
        try:
            code = super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            hint = f"; see {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
            _fail(error.format_message().rstrip(".") + hint)
        except WageubnError as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except MemoryError:
            _fail("out of memory; give a smaller model, batch, image size or data set, or a machine with more")
        except click.Abort:
            sys.exit(INTERRUPTED)
        except Exception as error:  # noqa: BLE001 (the one place where what nobody foresaw ends)
            self._report(error)
        sys.exit(code if isinstance(code, int) else 0)

    def _report(self, error: Exception) -> None:
        """Tell a fault of ours from bad input, and how to report it."""
        if self.debug:
            for line in "".join(traceback.format_exception(error)).splitlines():
                click.echo(printable(line), err=True)
        advice = "" if self.debug else "; `wageubn-onnx --debug ...` with the same command shows where"
        what = shortened(f"{type(error).__name__}: {error}")[:LONGEST_FAULT]
        _fail(f"a fault of wageubn-onnx itself ({what}); please report it with the command and its input{advice}", FAULT)


LONGEST_FAULT = 300  # characters of an exception's text


def _fail(message: str, code: int = BAD_INPUT) -> None:
    say("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _numbers(kind: type[int] | type[float]) -> Callable[[Any], tuple[float, ...]]:
    """Return an option type: a comma-separated list of numbers of one kind, such as ``0.49,0.48,0.45``."""

    def numbers(value: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):  # a default
            return value
        try:
            return tuple(kind(word) for word in str(value).split(","))
        except ValueError as error:
            words = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{value!r} is not a comma-separated list of {words}") from error

    return numbers


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show a spinner on a terminal's stderr while the block runs."""
    with Terminal(stderr=True).status(Text(shortened(what))):
        yield


@contextmanager
def _reading(model: Path) -> Iterator[None]:
    """Turn protobuf's refusal of a file that is no ONNX model into one line."""
    from google.protobuf.message import DecodeError

    try:
        yield
    except DecodeError as error:
        raise WageubnError(f"{model}: not an ONNX model, or a damaged one; export it again") from error


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _example(text: str) -> str:
    return f"Example: {text}"


def _list_targets(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """A callback of ``--list``, which stands alone."""
    if not wanted or ctx.resilient_parsing:
        return
    from wageubn_onnx.export.table import TARGETS

    rows = [[target.name, target.summary, target.missing() or "ready"] for target in TARGETS]
    print_table("Export targets", ["target", "what it writes", "state"], rows)
    ctx.exit()


training_python_option = click.option(
    "--training-python",
    type=PATH,
    metavar="PYTHON",
    help="Interpreter of an environment with onnxruntime-training; else without.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="Threads of onnxruntime [default: its own].")
float_option = click.option("--float", "in_float", is_flag=True, help="Use the FP32 models of DIR instead.")
data_option = click.option(
    "--data",
    "data_path",
    required=True,
    type=PATH,
    metavar="DATA",
    help="An .npz with uint8 NCHW x_train, y_train, x_test, y_test, or folders train/CLASS/ and test/CLASS/ of images.",
)


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if isinstance(ctx.command, OneLineErrors):
        ctx.command.debug = wanted


@click.group(cls=OneLineErrors)
@click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of a fault of this program.",
)
def cli() -> None:
    """Turn a trained FP32 ResNet .onnx into integer-only training graphs, and train with them."""


@cli.command(epilog=_example("wageubn-onnx convert resnet20.onnx -o r20 --mean .49,.48,.45 --std .25,.24,.26"))
@click.argument("model", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, metavar="DIR", help="The folder to write.")
@click.option("--batch", default=Config.batch, show_default=True, help="Images a training step takes.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="unit",
    show_default=True,
    help="Scale, mean and std of a common recipe.",
)
@click.option("--mean", type=_numbers(float), help="Per channel: x = (pixel * scale - mean) / std, in place of the preset's.")
@click.option("--std", type=_numbers(float), help="Per channel, see --mean.")
@click.option("--scale", type=float, help="Factor of the pixels, see --mean.")
@click.option(
    "--image-size",
    type=_numbers(int),
    metavar="SIZE",
    help="Rows,columns, or one number for both: for a source that leaves them open, or made for others.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default=Config.layout,
    show_default=True,
    help="Of the source's input. Images stay [N, C, H, W] for the graphs that are written.",
)
@click.option("--calibrate", type=PATH, metavar="DATA", help="Refine formats, and recover folded BN, with its images.")
@click.option("--calibrate-images", default=256, show_default=True, type=click.IntRange(min=1), help="How many of them.")
@click.option("--keep-folded", is_flag=True, help="Train convolutions whose BN was folded at export without BN.")
@click.option("--expose-gradients", is_flag=True, help="Add every parameter's gradient to the steps' outputs.")
@click.option("--health", is_flag=True, help="Count saturated and all-zero tensors in every integer step.")
@click.option("--weight-decay", default=Config.weight_decay, show_default=True, help="Of both steps.")
@click.option("--momentum", default=Config.momentum, show_default=True, help="Of the FP32 step.")
@click.option(
    "--profile",
    default="full8",
    show_default=True,
    help=f"Formats of every data path: {', '.join(NAMES)}, NAME-PATH with a path of it in float, or the path of your own .toml.",
)
@click.option(
    "--freeze",
    multiple=True,
    metavar="PATTERN",
    help="Do not train these layers: a name, or a pattern with * and ?; may be given again. A BN has a name of its own.",
)
@click.option("--train-last", type=int, metavar="N", help="Train only the last N layers with weights and the BNs after them.")
@click.option(
    "--bn",
    type=click.Choice(BN),
    default=Config.bn,
    show_default=True,
    help="Train BNs with their batch's statistics, or with the running ones, which stay: what a batch of 1 needs.",
)
@click.option("--num-classes", type=int, metavar="N", help="Put a new, untrained last layer for N classes in place of the old.")
@json_option
def convert(
    model: Path,
    out: Path,
    calibrate: Path | None,
    calibrate_images: int,
    profile: str,
    preset: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    scale: float | None,
    image_size: tuple[int, ...] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write every stage of MODEL, from its forward graph to the integer training step, to a folder.

    MODEL is an ONNX file, or a folder of onnxruntime-training's artifacts with its checkpoint.
    """
    from wageubn_onnx.pipeline import convert as run
    from wageubn_onnx.training.data import load_data, sample

    images = None if calibrate is None else sample(load_data(calibrate).x_train, calibrate_images)
    given = {"mean": mean, "std": std, "scale": scale}
    pixels = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    size = image_size * 2 if image_size and len(image_size) == 1 else image_size
    config = Config(calibrate=images, profile=load_profile(profile), image_size=size, **pixels, **options)
    with _working(f"converting {model}"), _reading(model):
        artifacts = run(model, config, out)
    summary = artifacts.summary()
    if as_json:
        stages = [dict(zip(("stage", "nodes", "quantizers", "bytes"), row, strict=True)) for row in summary]
        _print_json({"out": str(out), "stages": stages, "notes": artifacts.notes})
    else:
        for note in artifacts.notes:
            say("note: " + " ".join(note.split()), err=True)
        rows = [[stage, str(nodes), str(quantizers), f"{size:,}"] for stage, nodes, quantizers, size in summary]
        print_table(f"{model} -> {out}", ["stage", "nodes", "quantizers", "bytes"], rows)


@cli.command(epilog=_example("wageubn-onnx audit r20"))
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
    with _working(f"auditing {path}"), _reading(path):
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
        _print_json({"ok": passed, "models": found})
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


TIGHTEST = 25  # rows of the table of ranges


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


def _open_session(folder: Path, in_float: bool, threads: int | None) -> Session:
    from wageubn_onnx.runtime.session import FloatSession, TrainingSession

    return (FloatSession if in_float else TrainingSession)(folder, threads)


RATE_HELP = """Peak learning rate [default: 0.01, or 0.003 with --float]. Integer updates are normalised: refine a
trained network at about 0.01, since ten times as much destroys what it knows; on data on which it fails, 0.1 to 0.4 learns
faster, and from scratch 1 to 4."""


@cli.command(epilog=_example("wageubn-onnx train r20 --data cifar10.npz --epochs 5 --lr-schedule cosine"))
@click.argument("folder", metavar="DIR", type=PATH)
@data_option
@click.option("--epochs", required=True, type=click.IntRange(min=1), help="Times to go through the training images.")
@click.option("--lr", type=float, help=RATE_HELP)
@click.option(
    "--lr-schedule",
    type=click.Choice(["constant", "cosine", "step"]),
    default="constant",
    show_default=True,
    help="cosine: down to 0; step: a tenth from 1/2 of the run on, a hundredth from 3/4. An integer rate that "
    "would round to 0 is held at the smallest, 2^-9.",
)
@click.option(
    "--gradient-range",
    type=_numbers(int),
    metavar="LIST",
    help=("Range of the weight gradients, a power of two in 2..128 [default: 128]; 128,32,8: equal parts of the run."),
)
@click.option(
    "--out",
    type=PATH,
    metavar="FOLDER",
    help=("For checkpoint.safetensors and metrics.jsonl [default: DIR/run, or DIR/fp_run with --float]."),
)
@click.option("--state", type=PATH, metavar="FILE", help="Start from this state or checkpoint [default: DIR's own state].")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in FOLDER, to the same bits as without a break.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps between two checkpoints [default: one an epoch].",
)
@click.option("--seed", default=0, show_default=True, help="Of the order of images and the stochastic roundings.")
@click.option("--log-every", default=50, show_default=True, help="Steps between two step lines of the metrics.")
@click.option("--health", is_flag=True, help="Show each epoch's worst quantizers (DIR is of `convert --health`).")
@threads_option
@float_option
@json_option
@click.pass_context
def train(
    ctx: click.Context,
    folder: Path,
    data_path: Path,
    epochs: int,
    lr: float | None,
    lr_schedule: str,
    gradient_range: tuple[int, ...] | None,
    out: Path | None,
    state: Path | None,
    resume: bool,
    checkpoint_every: int | None,
    seed: int,
    log_every: int,
    health: bool,
    threads: int | None,
    in_float: bool,
    as_json: bool,
) -> None:
    """Train the network of DIR with its integer step (or its FP32 step).

    The state starts from DIR, or from --state, and ends in FOLDER/checkpoint.safetensors; DIR's own state stays as it is. Ctrl-C
    saves a checkpoint and exits with 130; --resume goes on from it. --state starts a new run from where another one ended, with
    other data, epochs or batch.
    """
    from wageubn_onnx.training.data import load_data
    from wageubn_onnx.training.train import Plan
    from wageubn_onnx.training.train import train as run

    for option, given in (("--gradient-range", gradient_range is not None), ("--health", health)):
        if in_float and given:
            raise click.UsageError(f"{option} has no meaning with --float", ctx)
    if state is not None and resume:
        raise click.UsageError("--resume goes on from the checkpoint in FOLDER, --state starts a new run; give one", ctx)
    session = _open_session(folder, in_float, threads)
    if state is not None:
        session.load(state)
    rate = session.default_rate if lr is None else lr
    plan = Plan(epochs, rate, lr_schedule, gradient_range or (128,), seed, log_every)
    target = out or folder / ("fp_run" if in_float else "run")
    result = run(session, load_data(data_path), plan, target, resume, health=health, checkpoint_every=checkpoint_every)
    if as_json:
        _print_json(asdict(result))
    else:
        accuracy = "not tested yet" if result.test_accuracy is None else f"test accuracy {result.test_accuracy:.2%}"
        say(f"{result.steps} steps, {result.epochs} epochs, {accuracy}; state in {result.checkpoint}")
    if not result.finished:
        say(f"interrupted; the same command with --resume{' in place of --state' if state else ''} goes on", err=True)
        ctx.exit(INTERRUPTED)


@cli.command("eval", epilog=_example("wageubn-onnx eval r20 --data cifar10.npz --state r20/run/checkpoint.safetensors"))
@click.argument("folder", metavar="DIR", type=PATH)
@data_option
@click.option("--state", type=PATH, metavar="FILE", help="A state or checkpoint [default: DIR's own].")
@threads_option
@float_option
@json_option
def evaluate(folder: Path, data_path: Path, state: Path | None, threads: int | None, in_float: bool, as_json: bool) -> None:
    """Test the network of DIR, in integers (or FP32), on the test images of DATA."""
    from wageubn_onnx.training.data import described, load_data

    session = _open_session(folder, in_float, threads)
    if state is not None:
        session.load(state)
    data = load_data(data_path)
    session.check_classes(data.classes)
    with _working(f"testing on {len(data.x_test)} images"):
        result = session.evaluate(data.x_test, data.y_test)
    if as_json:
        answer = {"accuracy": result.accuracy, "correct": result.correct, "images": len(data.x_test)}
        _print_json(answer | ({"classes": data.classes} if data.classes else {}))
    else:
        if data.classes:
            say(described(data.classes))
        say(f"accuracy {result.accuracy:.2%} ({result.correct} of {len(data.x_test)})")


@cli.command(epilog=_example("wageubn-onnx diff r20/fp_training.onnx r20/int_training.onnx --only layer3 --path E2"))
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
    with _working("comparing"):
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
        _print_json(reports[0] if b else {"schema": reports[0]["schema"], "same": all(s.same for s in found), "steps": reports})
    else:
        for result in found:
            print_diff(result, summary or html is not None)
    ctx.exit(0 if all(step.same for step in found) else 1)


@cli.command(epilog=_example("wageubn-onnx inspect r20/int_training.onnx --layers"))
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

    with _working(f"inspecting {path}"), _reading(path):
        found = inspect_folder(path) if path.is_dir() else [inspect_file(path)]
    if as_json:
        shown = [summary.to_json(layers) for summary in found]
        _print_json(shown if path.is_dir() else shown[0])
        return
    for table in stages(str(path), found) if path.is_dir() else tables(found[0], layers):
        print_table(*table)


@cli.command(epilog=_example("wageubn-onnx passes"))
@json_option
def passes(as_json: bool) -> None:
    """List the stages and the passes that lead to them, in order, and the passes of targets."""
    from wageubn_onnx.passes.targets.table import PASSES
    from wageubn_onnx.pipeline import STAGES

    groups = [("stage", stage.name, stage.summary, stage.passes) for stage in STAGES]
    groups += [("target", name, "what `export` makes of int_training", passes) for name, passes in PASSES.items()]

    if as_json:
        _print_json(
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


@cli.command(epilog=_example("wageubn-onnx export r20 --target onnxruntime -o r20-ort"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--target", required=True, help="The runtime to export to: `wageubn-onnx export --list` lists them.")
@click.option("-o", "--out", required=True, type=PATH, metavar="OUT", help="The folder to write.")
@click.option("--state", type=PATH, help="Begin with this trained state instead of the folder's initial one.")
@click.option("--portable", is_flag=True, help="onnxruntime: only kernels that release 1.17 has too.")
@click.option("--form", help="inference: qoperator (onnxruntime) or qdq (onnxruntime, OpenVINO) [default: qoperator].")
@click.option("--source", type=PATH, help="fp32: the ONNX file that was converted, to write the trained parameters into.")
@click.option("--data", type=PATH, metavar="DATA", help="web: images and labels for the page to train on.")
@click.option("--budget", help="c: the most static memory, such as 256k; where more is needed, say what would fit.")
@click.option("--triple", help="iree: the platform to compile for, such as aarch64-linux-gnu [default: this one].")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_targets, help="List the targets.")
def export(folder: Path, target: str, out: Path, state: Path | None, **options: Any) -> None:
    """Write the integer step of the converted folder DIR for another runtime, with all that it needs to train there.

    Targets inference and fp32 write the network alone, with the trained state: in 8 bits, or back in FP32.
    """
    from wageubn_onnx.export.export import export as run

    with _working(f"exporting {folder} for {target}"):
        run(folder, target, out, state, **{name: value for name, value in options.items() if value})
    say(f"{out}: written; its README.md says how to use it")


@cli.command(epilog=_example("wageubn-onnx verify r20 --steps 10 --targets onnxruntime,interpreter"))
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
    with _working(f"running {steps} steps of {folder}"):
        for row in run(folder, chosen, steps, seed, pythons):
            rows.append(row)
    if as_json:
        _print_json([row.as_json() for row in rows])
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


@cli.group()
def bench() -> None:
    """Measure what a conversion costs: time, accuracy, exactness."""


@bench.command("step", epilog=_example("wageubn-onnx bench step r20 --threads 1"))
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

    with _working("timing"):
        result = run(folder, rounds, steps, threads, torch, training_python)
    if as_json:
        _print_json(result.to_json())
    else:
        _print_bench(result)


@bench.command("ops", epilog=_example("wageubn-onnx bench ops r20 --threads 2"))
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Threads of onnxruntime.")
@click.option("--steps", default=3, show_default=True, type=click.IntRange(min=1), help="Steps to count.")
@json_option
def bench_ops(folder: Path, threads: int, steps: int, as_json: bool) -> None:
    """Where the time of DIR's integer step goes, by kind of operator."""
    from wageubn_onnx.bench.ops import by_operator

    with _working("timing"):
        shares = by_operator(folder, threads, steps)
    if as_json:
        _print_json([asdict(share) for share in shares])
        return
    rows = [[share.operator, f"{share.share:.1%}", str(share.calls)] for share in shares]
    print_table("time of the integer step", ["operator", "share", "calls a step"], rows)


@bench.command("kernels", epilog=_example("wageubn-onnx bench kernels"))
@json_option
def bench_kernels(as_json: bool) -> None:
    """Ask which kernels are exact here, and measure which forms of a convolution are the fastest, for later; some seconds."""
    from wageubn_onnx.passes.targets.cpu.machine import Kernel
    from wageubn_onnx.runtime.cache import Cache
    from wageubn_onnx.runtime.kernels import measure

    with _working("timing"):
        table = measure()
    if as_json:
        _print_json(table.described())
        return
    said = {True: "exact", False: "not exact, or not there: not used"}
    print_table(table.machine, ["kernel", "here"], [[kernel.value, said[table.is_exact(kernel)]] for kernel in Kernel])
    rows = [[*map(str, measured.shape), f"{measured.speedup:.2f}", f"{measured.fused:.2f}"] for measured in table.measured]
    print_table(
        "convolutions", ["images", "channels", "size", "to channels", "kernel", "uint8 / int8 time", "int8 / fused time"], rows
    )
    say(f"kept in {Cache(table.machine).file}")


@bench.command("convert", epilog=_example("wageubn-onnx bench convert resnet50.onnx --rounds 5"))
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=PATH)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Conversions by each, in turns.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Images a training step takes.")
@training_python_option
@json_option
def bench_convert(models: tuple[Path, ...], rounds: int, batch: int, training_python: Path | None, as_json: bool) -> None:
    """Time `convert` and measure its memory, by stages, beside onnxsim (where installed) and generate_artifacts.

    Without MODEL it takes ResNet-18, 50 and 152 of a checkout's models/resnet.py, untrained.
    """
    from benchmarks.convert import bench_convert as run

    with _working("converting"):
        results = run(models, rounds, batch, training_python)
    if as_json:
        _print_json([result.to_json() for result in results])
    else:
        for result in results:
            _print_convert(result)


@bench.command("diff", epilog=_example("wageubn-onnx bench diff --python other/bin/python --report docs/diff.md"))
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
def bench_diff(models: tuple[Path, ...], pythons: tuple[Path, ...], limit: float, report: Path | None, as_json: bool) -> None:
    """Compare what `diff`, onnxdiffer, diffonnx and onnxsim say of the same pairs of files.

    Of the first MODEL: copies with one thing changed. Of each: its training step in float and in integers. Without MODEL it takes
    ResNet-18 and 50 of a checkout's models/resnet.py, untrained.
    """
    from benchmarks.diff import bench_diff as run
    from benchmarks.diff import markdown, write_report

    with _working("comparing"):
        result = run(models, pythons, limit)
    if report:
        write_report(report, result)
    if as_json:
        _print_json(asdict(result))
    else:
        click.echo(markdown(result))


@bench.command("accuracy", epilog=_example("wageubn-onnx bench accuracy fashion --data fashion.npz --jobs 2"))
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
def bench_accuracy(
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


plot_option = click.option("--plot", type=PATH, metavar="FILE", help="Draw it too, to a name in .svg or .png.")


@bench.command("gradients", epilog=_example("wageubn-onnx bench gradients r20 --data cifar10.npz --batches 4"))
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

    with _working("comparing gradients"):
        found = gradient_fidelity(folder, load_data(data_path), batches, threads)
        if plot:
            plot_gradients(found, plot)
    if as_json:
        _print_json([asdict(entry) for entry in found])
    else:
        rows = [[entry.key, entry.kind, _number(entry.cosine, ".4f"), _number(entry.ratio, ".3f")] for entry in found]
        print_table(f"integer against FP32 gradients, {batches} batches", ["parameter", "kind", "cosine", "norm ratio"], rows)


@bench.command("forward", epilog=_example("wageubn-onnx bench forward r20 --data cifar10.npz"))
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

    with _working("comparing layers"):
        found = forward_fidelity(folder, load_data(data_path), images, threads)
        if plot:
            plot_forward(found, plot)
    found.sort(key=lambda entry: float("inf") if entry.decibels is None else entry.decibels)
    if as_json:
        _print_json([asdict(entry) for entry in found])
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


if __name__ == "__main__":
    cli()

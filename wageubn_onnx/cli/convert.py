"""`convert`: a trained network to a folder with every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wageubn_onnx.cli.options import (
    PATH,
    example,
    json_option,
    numbers,
    print_json,
    reading,
    working,
)
from wageubn_onnx.config import BN, LAYOUTS, PRESETS, Config
from wageubn_onnx.profiles import NAMES, load_profile
from wageubn_onnx.terminal import print_table, say


@click.command(epilog=example("wageubn-onnx convert resnet20.onnx -o r20 --mean .49,.48,.45 --std .25,.24,.26"))
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
@click.option("--mean", type=numbers(float), help="Per channel: x = (pixel * scale - mean) / std, in place of the preset's.")
@click.option("--std", type=numbers(float), help="Per channel, see --mean.")
@click.option("--scale", type=float, help="Factor of the pixels, see --mean.")
@click.option(
    "--image-size",
    type=numbers(int),
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
    with working(f"converting {model}"), reading(model):
        artifacts = run(model, config, out)
    summary = artifacts.summary()
    if as_json:
        stages = [dict(zip(("stage", "nodes", "quantizers", "bytes"), row, strict=True)) for row in summary]
        print_json({"out": str(out), "stages": stages, "notes": artifacts.notes})
    else:
        for note in artifacts.notes:
            say("note: " + " ".join(note.split()), err=True)
        rows = [[stage, str(nodes), str(quantizers), f"{size:,}"] for stage, nodes, quantizers, size in summary]
        print_table(f"{model} -> {out}", ["stage", "nodes", "quantizers", "bytes"], rows)

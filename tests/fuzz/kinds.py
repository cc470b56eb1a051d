"""What is mutated, which commands then run, and what of their outcomes is a fault."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from networks import CLASSES, TOPOLOGIES, images, labels
from wageubn_onnx.artifacts.contents import seal
from wageubn_onnx.pipeline import STAGES
from wageubn_onnx.profiles import NAMES

from .documents import (
    mutate_images,
    mutated_json,
    mutated_lines,
    mutated_npz,
    mutated_safetensors,
    mutated_text,
)
from .models import Draw, mutated, spoiled
from .same import DIFFERENT, compare
from .worker import BYTES, Outcome, command, forked

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "../shared/data"
ALLOWED = (0, 1, 2)
NOISE = re.compile(r"Warning: |\[[VIWEF]:onnxruntime|Traceback|Exception ignored")
UNSEEN = re.compile(r"[^\n\x20-\x7e\xa1-\uffff\U00010000-\U0010ffff]|[\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass
class Setting:
    """Where mutants come from: sound models, a converted folder, its data and a run, made once in ``folder``."""

    folder: Path
    sources: dict[str, onnx.ModelProto] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @staticmethod
    def make(folder: Path) -> Setting:
        made = Setting(folder)
        made.sources = {name: build() for name, build in TOPOLOGIES.items()}
        made.sources["digits"] = onnx.load(ROOT / "models/digits_resnet.onnx")
        real = sorted(SHARED.glob("*.onnx"))
        made.sources |= {file.stem: onnx.load(file) for file in real}
        if not real:
            made.skipped.append("real files: no ../shared/data/*.onnx")
        onnx.save(made.sources["tiny"], folder / "tiny.onnx")
        arrays = {"x_train": images(8), "y_train": labels(8), "x_test": images(4, 1), "y_test": labels(4, 1)}
        np.savez(folder / "data.npz", **arrays)
        _write_images(folder / "images", arrays)
        made.must("convert", "tiny.onnx", "-o", "good", "--batch", "4", "--health")
        made.must("train", "good", "--data", "data.npz", "--epochs", "1", "--out", "run")
        return made

    def must(self, *arguments: str) -> None:
        """Run a command that has no reason to fail."""
        outcome = command(arguments, self.folder)
        if outcome.code:
            raise RuntimeError(f"{arguments}: exit {outcome.code}: {outcome.stderr.decode()}")


def _write_images(folder: Path, arrays: dict[str, Any]) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for label in range(CLASSES):
            (folder / part / f"class{label}").mkdir(parents=True)
            Image.fromarray(arrays[f"x_{part}"][label % 4].transpose(1, 2, 0)).save(folder / part / f"class{label}" / "a.png")
        for i, label in enumerate(arrays[f"y_{part}"]):
            Image.fromarray(arrays[f"x_{part}"][i].transpose(1, 2, 0)).save(folder / part / f"class{label}" / f"{i}.png")


@dataclass(frozen=True)
class Fault:
    """kind: what several mutants have in common; text: of this one."""

    kind: str
    text: str


def faults(outcome: Outcome) -> Iterator[Fault]:
    """What no command may do, whatever its input."""
    name = " ".join(outcome.arguments[:1])
    out, err = (stream.decode(errors="surrogateescape") for stream in (outcome.stdout, outcome.stderr))
    said = err.strip().splitlines()
    if outcome.timed_out:
        yield Fault(f"{name}: hangs", f"over {outcome.seconds:.0f} s")
    elif outcome.peak > BYTES or "out of memory" in err:
        yield Fault(f"{name}: memory", f"{outcome.peak / 2**30:.1f} GB; {said[-1:]}")
    elif outcome.code not in ALLOWED:
        yield Fault(f"{name}: {_place(err) or f'exit {outcome.code}'}", said[-1] if said else "no message")
    elif outcome.code == 2 and (not said or not said[-1].startswith("error: ") or sum(s.startswith("error: ") for s in said) > 1):
        yield Fault(f"{name}: not one line", err[-500:])
    elif noise := next(filter(NOISE.search, said), ""):
        yield Fault(f"{name}: noise: {re.sub(r'[0-9]+|0x[0-9a-f]+', '#', noise)[:80]}", noise)
    if unseen := UNSEEN.search(out + err):
        yield Fault(f"{name}: raw character", repr((out + err)[max(unseen.start() - 40, 0) : unseen.end() + 40]))


def _place(err: str) -> str:
    """The exception, and the innermost lines of this package that a traceback names."""
    lines = err.splitlines()
    places = [m for line in lines if (m := re.search(r'File ".*/((?:wageubn_onnx|passes)/[^"]+)", line (\d+), in (\S+)', line))]
    places = [m for m in places if not (m[1] == "wageubn_onnx/cli/group.py" and m[3] in ("main", "invoke"))]
    raised = next(
        (
            m[1]
            for line in reversed(lines)
            if (m := re.match(r"([\w.]+(?:Error|Exception|Warning|Fail|\w+)): ", line)) and m[1] != "error"
        ),
        "",
    )
    return f"{raised} at {places[-1][1]}:{places[-1][2]} ({places[-1][3]})" if places else ""


# -- the kinds ------------------------------------------------------------------------------------------------------------

Trial = Callable[[Setting, Path, Draw], Iterator[Outcome | Fault]]
PIXELS = {"digits": ("--mean", "0.305", "--std", "0.376")}


def models(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """A source model, converted, compared with its source, inspected, diffed with its original and audited."""
    name = draw.choice(sorted(setting.sources))
    content, what = mutated(setting.sources[name], draw)
    (folder / "model.onnx").write_bytes(content)
    (folder / "what.txt").write_text(f"{name}: {what}\n")
    yield from _converted(folder, "model.onnx", _options(draw))
    yield command(("inspect", "model.onnx", *draw.choice([(), ("--layers",), ("--json",)])), folder)
    onnx.save(setting.sources[name], folder / "original.onnx")
    pair = draw.choice([("original.onnx", "model.onnx"), ("model.onnx", "original.onnx"), ("model.onnx", "model.onnx")])
    yield command(("diff", *pair, *draw.choice([(), (), ("--summary",), ("--json",), ("--html", "page.html")])), folder)
    yield command(("audit", "model.onnx", *draw.choice([(), ("--ranges",)])), folder)


def _options(draw: Draw) -> list[str]:
    options = ["--batch", "2"]
    if draw.random() < 0.7:
        options.append("--keep-folded")
    if draw.random() < 0.2:
        options += ["--profile", draw.choice(["fast", "sq8", "e16", "authors"])]
    if draw.random() < 0.2:
        options.append("--expose-gradients")
    return options


def _converted(folder: Path, model: str, options: Sequence[str]) -> Iterator[Outcome | Fault]:
    """`convert`, which writes a whole folder or none; `forward.onnx` against its source."""
    before = set(folder.iterdir())
    outcome = command(("convert", model, "-o", "out", *options), folder)
    yield outcome
    left = {path.name for path in set(folder.iterdir()) - before} - {".stdout", ".stderr"}
    if outcome.code and left and not outcome.timed_out:
        yield Fault("convert: leaves files", ", ".join(sorted(left)))
    if outcome.code:
        return
    result = forked(lambda: compare(folder / model, folder / "out/forward.onnx"), folder, ("compare",))
    if result.code:
        text = (result.stdout or result.stderr).decode(errors="replace").strip()
        kind = "wrong numbers" if result.code == DIFFERENT else f"the comparison ends with {result.code}"
        yield Fault(f"compare: {kind}", text.splitlines()[-1] if text else "")


def stages(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """A stage of a converted folder."""
    _copy(setting.folder / "good", folder / "good")
    stage = draw.choice([s.name for s in STAGES])
    file = folder / "good" / f"{stage}.onnx"
    content, what = mutated(onnx.load(file), draw)
    file.write_bytes(content)
    (folder / "what.txt").write_text(f"{stage}: {what}\n")
    _reseal(folder / "good", draw)
    yield command(("audit", f"good/{stage}.onnx", *draw.choice([(), ("--ranges", "--all")])), folder)
    yield from _used(setting, folder, draw, 2)


def manifests(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """The manifest of a converted folder."""
    _copy(setting.folder / "good", folder / "good")
    file = folder / "good/manifest.json"
    file.write_bytes(mutated_json(file.read_bytes(), draw))
    _reseal(folder / "good", draw)
    yield from _used(setting, folder, draw, 3)


def states(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """The state file of a converted folder."""
    _copy(setting.folder / "good", folder / "good")
    file = folder / "good" / draw.choice(["state.safetensors", "fp_state.safetensors"])
    file.write_bytes(mutated_safetensors(file.read_bytes(), draw))
    _reseal(folder / "good", draw)
    yield from _used(setting, folder, draw, 2)


def checkpoints(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """The checkpoint or the metrics of a run, resumed, evaluated and exported."""
    _copy(setting.folder / "run", folder / "run")
    good, data = str(setting.folder / "good"), str(setting.folder / "data.npz")
    if draw.random() < 0.8:
        file = folder / "run/checkpoint.safetensors"
        file.write_bytes(mutated_safetensors(file.read_bytes(), draw))
    else:
        file = folder / "run/metrics.jsonl"
        file.write_bytes(mutated_lines(file.read_bytes(), draw))
    resumed = ("train", good, "--data", data, "--epochs", draw.choice(["1", "1", "2"]), "--out", "run", "--resume")
    state = ("--state", "run/checkpoint.safetensors")
    yield command(resumed, folder)
    yield command(("eval", good, "--data", data, *state), folder)
    target = draw.choice(["fp32", "inference", "onnxruntime"])
    source = ("--source", str(setting.folder / "tiny.onnx")) if target == "fp32" else ()
    yield command(("export", good, "--target", target, "-o", "exported", *state, *source), folder)


def profiles(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """A profile of one's own."""
    from wageubn_onnx.profiles import HERE

    content = (HERE / f"{draw.choice(NAMES)}.toml").read_bytes()
    (folder / "own.toml").write_bytes(mutated_text(content, draw))
    shutil.copy(setting.folder / "tiny.onnx", folder / "model.onnx")
    yield from _converted(folder, "model.onnx", ["--batch", "4", "--profile", "own.toml"])


def data(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """An .npz, or a folder of images."""
    good = str(setting.folder / "good")
    if draw.random() < 0.6:
        name = "data.npz"
        with np.load(setting.folder / name) as arrays:
            (folder / name).write_bytes(mutated_npz(dict(arrays), draw))
    else:
        name = "images"
        _copy(setting.folder / name, folder / name)
        mutate_images(folder / name, draw)
    yield command(("eval", good, "--data", name), folder)
    if draw.random() < 0.3:
        yield command(("train", good, "--data", name, "--epochs", "1", "--out", "trained"), folder)
    if draw.random() < 0.3:
        shutil.copy(setting.folder / "tiny.onnx", folder / "model.onnx")
        yield from _converted(folder, "model.onnx", ["--batch", "4", "--calibrate", name])


def artifacts(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """A folder of onnxruntime-training's artifacts."""
    kept = SHARED / "ort_training_resnet20"
    if not kept.is_dir():
        return
    _copy(kept, folder / "training")
    file = folder / "training" / draw.choice(["checkpoint", "checkpoint", "training_model.onnx", "optimizer_model.onnx"])
    if file.suffix and draw.random() < 0.7:
        file.write_bytes(mutated(onnx.load(file), draw)[0])
    else:
        file.write_bytes(spoiled(file.read_bytes(), draw))
    yield command(("convert", "training", "-o", "out", "--batch", "2"), folder)


VALUES = (
    "0", "-1", "1", "2", "3", "1e400", "nan", "inf", "2147483648", "4611686018427387904", "", "x", "1,2", ",", "\x1b[1m",
    "0.5", "1e-300", "1,2,3,4",
)  # fmt: skip
CONVERT = (
    "--batch", "--mean", "--std", "--scale", "--image-size", "--weight-decay", "--momentum", "--freeze", "--train-last",
    "--num-classes", "--profile", "--layout", "--calibrate-images", "--preset", "--bn",
)  # fmt: skip
TRAIN = ("--lr", "--gradient-range", "--seed", "--log-every", "--threads", "--lr-schedule")


def options(setting: Setting, folder: Path, draw: Draw) -> Iterator[Outcome | Fault]:
    """Options with odd values."""
    shutil.copy(setting.folder / "tiny.onnx", folder / "model.onnx")
    given = [word for name in draw.sample(CONVERT, draw.choice([1, 1, 2])) for word in (name, draw.choice(VALUES))]
    yield command(("convert", "model.onnx", "-o", "out", *(("--batch", "4") if "--batch" not in given else ()), *given), folder)
    given = [word for name in draw.sample(TRAIN, draw.choice([1, 1, 2])) for word in (name, draw.choice(VALUES))]
    basis = ("train", str(setting.folder / "good"), "--data", str(setting.folder / "data.npz"), "--out", "trained")
    epochs = draw.choice(["0", "-1", "x", "2", "1", "1", "1"])  # a thousand are no fault, and take their time
    yield command((*basis, "--epochs", epochs, *given), folder)


def _used(setting: Setting, folder: Path, draw: Draw, count: int) -> Iterator[Outcome | Fault]:
    """Some of the commands that read the folder ``good``."""
    data = str(setting.folder / "data.npz")
    source = ("--source", str(setting.folder / "tiny.onnx"))
    commands: list[tuple[str, ...]] = [
        ("audit", "good"),
        ("audit", "good", "--ranges", "--json"),
        ("inspect", "good"),
        ("diff", "good", "--summary"),
        ("eval", "good", "--data", data),
        ("eval", "good", "--data", data, "--float"),
        ("train", "good", "--data", data, "--epochs", "1", "--out", "trained", "--health"),
        ("train", "good", "--data", data, "--epochs", "1", "--out", "trained", "--float"),
        ("export", "good", "--target", "onnxruntime", "-o", "exported"),
        ("export", "good", "--target", "onnxruntime", "--portable", "-o", "exported"),
        ("export", "good", "--target", "inference", "-o", "exported"),
        ("export", "good", "--target", "inference", "--form", "qdq", "-o", "exported"),
        ("export", "good", "--target", "fp32", "-o", "exported", *source),
        ("export", "good", "--target", "web", "-o", "exported", "--data", data),
        ("verify", "good", "--steps", "1", "--targets", "onnxruntime"),
        ("bench", "forward", "good", "--data", data),
    ]
    for arguments in draw.sample(commands, count):
        yield command(arguments, folder)


def _reseal(folder: Path, draw: Draw) -> None:
    """Mostly, the manifest gets the hashes that fit: what is behind them must hold by itself."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except ValueError:
        return
    if isinstance(manifest, dict) and draw.random() < 0.8:
        seal(folder, manifest)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


KINDS: dict[str, Trial] = {
    trial.__name__: trial for trial in (models, stages, manifests, states, checkpoints, profiles, data, artifacts, options)
}


def try_one(kind: str, setting: Setting, folder: Path, seed: int, index: int) -> tuple[list[Fault], list[Outcome]]:
    """The mutant ``index`` of ``seed``: always the same one."""
    draw = random.Random(f"{kind} {seed} {index}")
    found: list[Fault] = []
    outcomes: list[Outcome] = []
    for result in KINDS[kind](setting, folder, draw):
        if isinstance(result, Fault):
            found.append(result)
        else:
            outcomes.append(result)
            found += faults(result)
    return found, outcomes


__all__ = ["KINDS", "Fault", "Setting", "try_one"]

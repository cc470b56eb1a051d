"""The same bits in every release of onnxruntime, or a refusal: `python tests/releases.py FOLDER [RELEASE ...]`.

Each release has an environment of its own in FOLDER, which takes everything but onnxruntime from this one. There three steps of
the digits network are run in three ways (releases_worker.py), and held to the interpreter of exact integers. The results
are a table, which --page PAGE puts between its marks; 1 where any other bits were found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

import onnxruntime

from releases_worker import PROFILES, WAYS, feeds, key_values
from wageubn_onnx import Config, convert
from wageubn_onnx.artifacts.files import load_tensors, write_text
from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.graph import load_model
from wageubn_onnx.profiles import load_profile
from wageubn_onnx.proofs.interpreter import interpret
from wageubn_onnx.runtime.releases import TRIED

TESTS = Path(__file__).resolve().parent
MODEL = TESTS.parent / "models" / "digits_resnet.onnx"
BATCH = 8
BEGIN, END = "<!-- releases: python tests/releases.py -->", "<!-- end of releases -->"


def environment(folder: Path, release: str) -> Path | None:
    """The python of an environment with this release, made where it is absent; None where there is none for this Python."""
    place = folder / release
    python, done = place / "bin" / "python", place / ".done"
    if not done.exists():
        venv.create(place, clear=True, symlinks=True)
        install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", f"onnxruntime=={release}"]
        tried = subprocess.run([sys.executable, *install], capture_output=True, text=True, check=False)
        if "No matching distribution" in tried.stderr:
            return None
        if tried.returncode:
            sys.exit(f"{release}: {tried.stderr.strip().splitlines()[-1]}")
        (packages,) = place.glob("lib/python*/site-packages")
        others = [entry for entry in sys.path if entry.endswith("site-packages")]
        lines = [f"import site; site.addsitedir({other!r})" for other in others]
        (packages / "others.pth").write_text("\n".join(lines) + "\n")  # after those of the environment itself
        done.touch()
    return python


def expected(folder: Path, profile: str) -> list[str]:
    """The digests of three steps of exact integers."""
    artifacts = ArtifactFolder(folder / profile)
    step, (state, _) = load_model(artifacts.model("step")), load_tensors(artifacts.state_file("state"))
    digests = []
    for fed in feeds(artifacts.manifest, BATCH):
        outputs = interpret(step, fed | {entry["in"]: state[entry["key"]] for entry in artifacts.manifest["state"]})
        state, digest = key_values(artifacts.manifest, outputs)
        digests.append(digest)
    return digests


def results(python: Path, folder: Path) -> dict[str, list[str] | str]:
    """What the worker says there: by profile and way, the digests of three steps, or why there are none."""
    worker = [str(python), str(TESTS / "releases_worker.py"), str(folder)]
    done = subprocess.run(worker, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"all": f"failed: {done.stderr.strip().splitlines()[-1][:200]}"}
    found: dict[str, list[str] | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def said(found: list[str] | str, right: list[str]) -> str:
    """What the table says of one way."""
    if isinstance(found, str):
        return found
    wrong = [step for step, (a, b) in enumerate(zip(found, right, strict=True), 1) if a != b]
    return f"**other bits** from step {wrong[0]} on" if wrong else "same"


def table(rows: dict[str, dict[str, str]]) -> str:
    """Releases down, profiles and ways across, in Markdown."""
    columns = [f"`{profile}`, {way}" for profile in PROFILES for way in WAYS]
    lines = ["| onnxruntime | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {release} | " + " | ".join(row[c] for c in columns) + " |" for release, row in rows.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("releases", nargs="*", default=TRIED, help="such as 1.24.4, or installed: the one of this environment")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for profile in PROFILES:
        convert(MODEL, Config(batch=BATCH, profile=load_profile(profile)), folder / profile)
    right = {profile: expected(folder, profile) for profile in PROFILES}
    rows: dict[str, dict[str, str]] = {}
    for release in [onnxruntime.__version__ if given == "installed" else given for given in options.releases]:
        python = Path(sys.executable) if release == onnxruntime.__version__ else environment(folder, release)
        found = results(python, folder) if python is not None else {"all": "not for this Python"}
        rows[release] = {
            f"`{profile}`, {way}": said(found.get(f"{profile} {way}", found.get("all", "absent")), right[profile])
            for profile in PROFILES
            for way in WAYS
        }
        print(release, *sorted(set(rows[release].values())), sep=", ", flush=True)
    print(table(rows))
    if options.page is not None:
        before, _, rest = options.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        write_text(options.page, f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")
    return int(any("other bits" in cell or "failed" in cell for row in rows.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())

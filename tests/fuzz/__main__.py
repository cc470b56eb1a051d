"""`python -m tests.fuzz --seed S --count N --kind models`: mutants, one after the other, and the faults by kind.

Exits with 1 where there was any. `--only INDEX` repeats one mutant, keeps its files and shows what its commands said.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .kinds import KINDS, Fault, Setting, try_one
from .worker import preload


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="what to mutate [default: everything]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="mutants of each kind")
    parser.add_argument("--only", type=int, metavar="INDEX", help="this mutant alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files of faulty mutants there")
    given = parser.parse_args()
    preload()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        setting = Setting.make(scratch)
        for reason in setting.skipped:
            print(f"skipped: {reason}")
        return sum([_run(kind, setting, given) for kind in given.kind]) > 0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(kind: str, setting: Setting, given: argparse.Namespace) -> int:
    """Mutants of one kind; the number of faults."""
    found: dict[str, list[tuple[int, Fault]]] = {}
    codes: Counter[str] = Counter()
    start = time.monotonic()
    for index in range(given.count) if given.only is None else [given.only]:
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=setting.folder))
        faults, outcomes = try_one(kind, setting, folder, given.seed, index)
        codes.update(f"{o.arguments[0]} {o.code}" for o in outcomes)
        for fault in faults:
            if fault.kind not in found:
                print(f"{kind} {index}: {fault.kind}: {ascii(fault.text)[:300]}", flush=True)
            found.setdefault(fault.kind, []).append((index, fault))
        if given.only is not None:
            for o in outcomes:
                print(f"$ {ascii(' '.join(o.arguments))}: exit {o.code}, {o.seconds:.1f} s, {o.peak / 2**20:.0f} MiB")
                print(o.stdout[-3000:].decode(errors="backslashreplace"), o.stderr[-3000:].decode(errors="backslashreplace"))
        if given.keep and (faults or given.only is not None):
            shutil.copytree(folder, given.keep / f"{kind}-{given.seed}-{index}", dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(folder, ignore_errors=True)
    total, seconds = sum(map(len, found.values())), time.monotonic() - start
    print(f"{kind}: {given.count} mutants, {total} faults of {len(found)} kinds, {seconds:.0f} s; {dict(sorted(codes.items()))}")
    for name, cases in sorted(found.items(), key=lambda item: -len(item[1])):
        index, fault = cases[0]
        print(f"  {len(cases)} x {name}")
        print(f"      {ascii(fault.text)[:200]}")
        print(f"      python -m tests.fuzz --kind {kind} --seed {given.seed} --only {index}", flush=True)
    return total


if __name__ == "__main__":
    sys.exit(main())

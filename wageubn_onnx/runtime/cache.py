"""What was found out about a machine, kept for later: one small file in XDG_CACHE_HOME for a processor, release and version.

It may vanish at any time. One that is damaged, or that another version of this package wrote, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from wageubn_onnx.artifacts.files import write_text
from wageubn_onnx.version import __version__

QUESTIONS = ("probes.py", "selftest.py")  # modules whose answers are kept


class Cache:
    """The entries of ``machine``; each may be anything that JSON holds."""

    def __init__(self, machine: str) -> None:
        self.owner = f"{machine}, wageubn-onnx {__version__} ({_asked()})"
        name = hashlib.sha256(self.owner.encode()).hexdigest()[:16]
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.file = Path(home) / "wageubn-onnx" / f"kernels-{name}.json"

    def get(self, key: str) -> Any:
        """What was kept under ``key``; None where nothing was."""
        return self._read().get(key)

    def put(self, key: str, value: Any) -> bool:
        """Keep ``value`` under ``key``; whether it could be written: a session does without."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps({**self._read(), "owner": self.owner, key: value}, indent=1) + "\n")
        except OSError:
            return False
        return True

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("owner") == self.owner else {}


@cache
def _asked() -> str:
    """Of the questions themselves: other questions, other answers."""
    content = b"".join(Path(__file__).with_name(name).read_bytes() for name in QUESTIONS)
    return hashlib.sha256(content).hexdigest()[:8]

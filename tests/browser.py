"""Headless Chromium, driven over chromedriver's WebDriver protocol (W3C), and a static server, for tests of pages."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key of an element's id
KEYS = {"Escape": "\ue00c", "Enter": "\ue007", "ArrowUp": "\ue013", "ArrowDown": "\ue015"}
BINARIES = ("chromium", "chromedriver")  # of Debian's packages chromium and chromium-driver


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in BINARIES if not shutil.which(name)]


class Browser:
    """One window. Errors of the page end up in `log`."""

    def __init__(self, port: str, width: int, height: int, *arguments: str, downloads: Path | None = None) -> None:
        self.root = f"http://127.0.0.1:{port}/session"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}", *arguments]
        preferences = {"download.default_directory": str(downloads)} if downloads else {}
        wanted = {"goog:chromeOptions": {"args": options, "prefs": preferences}, "goog:loggingPrefs": {"browser": "ALL"}}
        self.root += "/" + self._send("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _send(self, path: str, content: Any = None, method: str = "POST") -> Any:
        body = None if method != "POST" else json.dumps(content or {}).encode()
        request = urllib.request.Request(self.root + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._send("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What ``script`` returns."""
        return self._send("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 120) -> None:
        """Until ``script`` returns something true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, self.run("return document.body.innerText")
            time.sleep(0.2)

    def _element(self, selector: str) -> str:
        return str(self._send("/element", {"using": "css selector", "value": selector})[ELEMENT])

    def click(self, selector: str) -> None:
        """Click the first element as a mouse does: it must be visible, and nothing may lie over it."""
        self._send(f"/element/{self._element(selector)}/click")

    def write(self, selector: str, text: str) -> None:
        """Type into a field, or give a file input the path ``text``."""
        self._send(f"/element/{self._element(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys go to what has the focus."""
        presses = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._send("/actions", {"actions": [{"type": "key", "id": "keys", "actions": presses}]})

    def log(self) -> list[str]:
        """What the console got since the last call."""
        return [entry["message"] for entry in self._send("/se/log", {"type": "browser"})]

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._send("/screenshot", method="GET")))

    def close(self) -> None:
        self._send("", method="DELETE")


@contextlib.contextmanager
def driver() -> Iterator[str]:
    """Run chromedriver; yields its port."""
    process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "started successfully on port" in line)
        yield line.rstrip(".\n").rsplit(" ", 1)[1]
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def browser(width: int = 1440, height: int = 900, *arguments: str, downloads: Path | None = None) -> Iterator[Browser]:
    """A browser of its own, closed at the end. ``arguments``: of Chromium; it saves to ``downloads``."""
    with driver() as port:
        opened = Browser(port, width, height, *arguments, downloads=downloads)
        try:
            yield opened
        finally:
            opened.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a static server of ``folder``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()

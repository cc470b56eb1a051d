"""What the test of a page needs: Chromium without a window, driven by the WebDriver protocol (W3C), and a static server."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOOLS = ("chromium", "chromedriver")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a static server of ``folder``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Browser:
    """One session of WebDriver."""

    def __init__(self, driver: str, downloads: Path) -> None:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chrome = {
            "binary": shutil.which(TOOLS[0]),
            "args": arguments,
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome}}}
        self.address = driver
        self.address += f"/session/{self._send('/session', wanted)['sessionId']}"

    def _send(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, address: str) -> None:
        self._send("/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self._send("/execute/sync", {"script": script, "args": list(arguments)})

    def upload(self, selector: str, file: Path) -> None:
        """Choose ``file`` in a file input."""
        (element,) = self._send("/element", {"using": "css selector", "value": selector}).values()
        self._send(f"/element/{element}/value", {"text": str(file)})

    def wait(self, script: str, seconds: float = 120) -> None:
        """Until JavaScript returns something true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, self.run("return document.body.innerText")
            time.sleep(0.2)

    def close(self) -> None:
        urllib.request.urlopen(urllib.request.Request(self.address, method="DELETE"), timeout=60).close()


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A browser that saves to ``downloads``."""
    with subprocess.Popen([TOOLS[1], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            assert driver.stdout is not None
            line = next(line for line in driver.stdout if "on port" in line and "started" in line)
            browser = Browser(f"http://127.0.0.1:{line.rstrip().rstrip('.').rsplit(' ', 1)[1]}", downloads)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()

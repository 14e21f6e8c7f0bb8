# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A page in a headless Chromium, which is asked and told things by the DevTools protocol, over two pipes. Only the standard library is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = os.environ.get("AXE_DIRECTORY") or Path(__file__).resolve().parents[2] / ".venv" / "axe"
_SECONDS = 60  # for one answer
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "ArrowDown": (40, ""), "Escape": (27, ""), "Backspace": (8, "")}


def need() -> str:
    """The path of Chromium. Without it the test is skipped."""
    if PROGRAM is None:
        pytest.skip("needs a browser: chromium")
    return str(PROGRAM)


def axe_script() -> str:
    """The source of axe-core. Without it the test is skipped."""
    found = sorted(Path(AXE).rglob("axe.min.js")) or sorted(Path(AXE).rglob("axe.js"))
    if not found:
        pytest.skip("needs axe-core: scripts/test functional installs it into .venv/axe, and AXE_DIRECTORY names another place")
    return found[0].read_text()


class Page:
    """A page in a browser of its own; a context manager.

    :param path: its file. :param profile: a directory for the browser. :param dark: what the reader has chosen.
    """

    def __init__(self, path: Path, profile: Path, dark: bool = False, size: tuple[int, int] = (1280, 900)) -> None:
        self._path, self._profile, self._dark, self._size = path, profile, dark, size
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session = ""
        self.errors: list[str] = []  # what the browser complained about

    def __enter__(self) -> Page:
        program = need()
        given, self._write = os.pipe()
        self._read, taken = os.pipe()
        words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self._profile}", "--remote-debugging-pipe"]
        # The browser reads from its descriptor 3 and writes to 4. A shell can place them there whatever numbers they have here.
        places = f'exec "$0" "$@" 3<&{given} 4>&{taken}'
        argv = ["bash", "-c", places, program, *words, f"--window-size={self._size[0]},{self._size[1]}", "about:blank"]
        self._browser = subprocess.Popen(argv, pass_fds=(given, taken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(given)
        os.close(taken)
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _open(self) -> None:
        target = next(one for one in self._send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}])
        self._send("Page.navigate", url=self._path.as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._session = ""
        with suppress(OSError, AssertionError):
            self._send("Browser.close")
        os.close(self._write)
        os.close(self._read)
        try:
            self._browser.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._browser.pid, 9)  # a session of its own, so only what this page has started
            self._browser.wait()

    def _send(self, method: str, **parameters: object) -> dict:
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        told = memoryview(json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while told:
            told = told[os.write(self._write, told) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _writable, _failed = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, _zero, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:2000])
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])

    def ask(self, expression: str) -> object:
        """The value of an expression of JavaScript, also of a promise. The page's own policy does not concern it."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.ask(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys, one after the other: their names, or single characters."""
        for key in keys:
            code, text = _KEYS.get(key, (ord(key[0].upper()), key))
            told = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
            self._send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **told)
            self._send("Input.dispatchKeyEvent", type="keyUp", **told)

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        height = self.ask("Math.min(6000, document.documentElement.scrollHeight)")
        clip = {"x": 0, "y": 0, "width": self._size[0], "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))

    def violations(self, undecided: bool = False) -> list[str]:
        """What axe-core finds wrong in the page as it is now: the rule, what it wants, and where. :param undecided: also what it cannot decide."""
        self.ask(axe_script() + "; 0")
        found = self.ask("axe.run(document, {resultTypes: ['violations', 'incomplete']}).then(found => found)")
        assert isinstance(found, dict) and len(found["passes"]) > 10, "axe-core has hardly looked at anything"
        every = found["violations"] + (found["incomplete"] if undecided else [])
        return [f"{one['id']}: {one['help']}: {node['html'][:200]}" for one in every for node in one["nodes"]]

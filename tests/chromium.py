"""A headless Chromium, driven over its debugging pipe (Chrome DevTools Protocol) with the standard library alone.

    with Browser() as browser:
        page = browser.open(path, width=390, height=844)
        page.evaluate("document.title"), page.problems
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT = 60  # seconds for any one answer
# the browser reads its descriptor 3 and writes to 4; both come from above them, so neither overwrites the other
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """The browser's executable, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    def __enter__(self) -> Browser:
        self.profile = tempfile.mkdtemp(prefix="intsim-chromium-")
        theirs_in, self.to = os.pipe()
        self.of, theirs_out = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars "
            "--disable-background-networking --disable-component-update --remote-debugging-pipe"
        ).split()
        start = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), find() or NAMES[0]]
        self.process = subprocess.Popen(
            [*start, *flags, f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.rest, self.events = 0, b"", []
        return self

    def __exit__(self, *problem: object) -> None:
        try:
            self.call("Browser.close")
        except (OSError, RuntimeError):
            self.process.kill()
        self.process.wait(TIMEOUT)
        os.close(self.to)
        os.close(self.of)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: object) -> dict:
        """Sends a command and returns its result; events that come first are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            found = self.read()
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def read(self) -> dict:
        """The next message of the browser."""
        end = time.monotonic() + TIMEOUT
        while b"\0" not in self.rest:
            if not select.select([self.of], [], [], max(0, end - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            more = os.read(self.of, 1 << 20)
            if not more:
                raise RuntimeError("the browser ended")
            self.rest += more
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def open(self, path: Path, width: int, height: int, dark: bool = False, script: bool = True) -> Page:
        """Loads a local file in a viewport of that size; returns when it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setScriptExecutionDisabled", value=not script)
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        start = time.monotonic()
        page.call("Page.navigate", url=path.resolve().as_uri())
        page.wait("Page.loadEventFired")
        page.seconds = time.monotonic() - start
        return page


class Page:
    """seconds: from the request until all is loaded."""

    def __init__(self, browser: Browser, session: str):
        self.browser, self.session, self.seconds = browser, session, 0.0

    def call(self, method: str, **params: object) -> dict:
        return self.browser.call(method, self.session, **params)

    def wait(self, event: str) -> None:
        while not any(e.get("method") == event and e.get("sessionId") == self.session for e in self.browser.events):
            self.browser.events.append(self.browser.read())

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression, as JSON holds it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    @property
    def problems(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and violations of the page's policy."""
        self.evaluate("1")  # so that what came before is read
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            method, params = event.get("method"), event.get("params", {})
            wrong = method == "Runtime.exceptionThrown"
            wrong |= method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
            wrong |= method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning")
            if wrong:
                found.append(json.dumps(params))
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, without those inside the page."""
        self.evaluate("1")
        asked = [
            e["params"]["request"]["url"]
            for e in self.browser.events
            if e.get("sessionId") == self.session and e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    def screenshot(self, path: Path, whole: bool = False, clip: dict | None = None) -> None:
        more = {} if clip is None else {"clip": {"scale": 1, **clip}}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole or clip is not None, **more)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        found = self.call("Page.printToPDF", printBackground=True, landscape=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(found["data"]))

"""A headless Chromium as a user has it, driven through its own debugging pipe: real key events, storage, downloads.

No driver and no package beside the browser: commands and answers are JSON texts ended by a zero byte, on file
descriptors 3 and 4 (--remote-debugging-pipe)."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")
DEADLINE_S = 60


class Browser:
    """One window. `complaints` holds what pages wrote to the console as errors and every exception nobody caught."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        self.complaints: list[str] = []
        self.number, self.rest = 0, b""
        to_browser, self.commands = os.pipe()
        self.answers, from_browser = os.pipe()
        self.profile = profile
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        shell = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "_", EXECUTABLE, *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.session = None
        found = self.tell("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in found if one["type"] == "page")
        self.session = self.tell("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.tell(f"{domain}.enable")
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        profile.mkdir(exist_ok=True)
        downloads = {"behavior": "allow", "downloadPath": str(profile)}
        self.tell("Browser.setDownloadBehavior", **downloads)

    def tell(self, method: str, **parameters) -> dict:
        """The browser's answer to a command.   Raises: RuntimeError if it refuses; TimeoutError after `DEADLINE_S`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (told := self._read(method)).get("id") != self.number:
            self._note(told)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return told["result"]

    def _read(self, waiting_for: str) -> dict:
        end = time.monotonic() + DEADLINE_S
        while b"\0" not in self.rest:
            if not select.select([self.answers], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer to {waiting_for} in {DEADLINE_S} s")
            piece = os.read(self.answers, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser ended while {waiting_for} waited")
            self.rest += piece
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def _note(self, told: dict) -> None:
        method, held = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(held["exceptionDetails"]["exception"].get("description", "exception"))
        elif method == "Log.entryAdded" and held["entry"]["level"] == "error":
            self.complaints.append(held["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and held["type"] == "error":
            self.complaints.append(str(held["args"]))

    def open(self, page: Path) -> None:
        """Load a page, also the one that is open, and wait until its script has run."""
        self.tell("Page.navigate", url=page.as_uri())
        self.until(f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete'")

    def ask(self, expression: str):
        """JSON value of an expression in the page."""
        done = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true.   Raises: TimeoutError."""
        end = time.monotonic() + DEADLINE_S
        while not self.ask(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} did not come true in {DEADLINE_S} s")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key, as the keyboard does."""
        text = {"text": key} if len(key) == 1 else {}
        self.tell("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.tell("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        """Click into the middle of an element, after scrolling to it."""
        box = self.ask(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            " found.scrollIntoView({block: 'center'}); const b = found.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        at = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.tell("Input.dispatchMouseEvent", type=kind, **at)

    def choose_file(self, selector: str, file: Path) -> None:
        """Give a file input a file."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def downloaded(self, pattern: str) -> Path:
        """The one file of that kind that a page has given to download.   Raises: TimeoutError."""
        end = time.monotonic() + DEADLINE_S
        while not (found := list(self.profile.glob(pattern))):
            if time.monotonic() > end:
                raise TimeoutError(f"no download {pattern} in {DEADLINE_S} s")
            time.sleep(0.05)
        assert len(found) == 1, found
        return found[0]

    def picture(self, file: Path) -> None:
        """Write what the window shows as a PNG."""
        file.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.tell("Browser.close")
        self.process.wait(30)
        os.close(self.commands)
        os.close(self.answers)

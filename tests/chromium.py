"""A headless Chromium for tests, driven over the DevTools protocol's pipe."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-quic",
    "--disable-dev-shm-usage", "--hide-scrollbars",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip


def find_chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise RuntimeError(
        "these tests need Chromium on the PATH; install it: apt-get install chromium"
    )


class Chromium:
    """One tab. `errors` and `requests` are what the page logged as errors and asked for."""

    def __init__(self, *flags: str, timeout: float = 120):
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._deadline = time.monotonic() + timeout
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # the pipe is file descriptors 3 (to the browser) and 4 (from it)
        shell = 'exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>&2'
        command = [find_chromium(), *_FLAGS, *flags, f"--user-data-dir={self._profile.name}"]
        self._process = subprocess.Popen(
            ["sh", "-c", shell, *command, "about:blank"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        try:
            pages = [
                t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
            ]
            target = {"targetId": pages[0]["targetId"], "flatten": True}
            self._session = self.call("Target.attachToTarget", **target)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while True:
            reply = self._receive()
            if reply.get("id") == self._count:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]
            self._note(reply)

    def _receive(self) -> dict[str, Any]:
        output = self._process.stdout
        while b"\0" not in self._buffer:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                raise TimeoutError("Chromium did not answer in time")
            read = os.read(output.fileno(), 1 << 20)
            if not read:
                raise RuntimeError("Chromium ended before its time")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(
                    details.get("exception", details).get("description", str(details))
                )
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.errors.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def open(
        self, page: str | Path, size: tuple[int, int] = (1200, 800), *,
        theme: str = "dark", touch: bool = False, ratio: float = 1.0,
    ) -> None:  # fmt: skip
        width, height = size
        shape = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        # from a blank page, or a changed fragment alone would not load anything
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.requests.clear()
        address = page if isinstance(page, str) else page.as_uri()
        self.call("Page.navigate", url=address)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        params = {"expression": script, "awaitPromise": True, "returnByValue": True}
        result = self.call("Runtime.evaluate", **params)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the JavaScript expression is true."""
        while not self.run(condition):
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"the page never reached: {condition}; {self.errors}")
            time.sleep(0.05)

    def settle(self) -> None:
        """Until everything that was asked for is drawn."""
        self.run("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def click(self, x: float, y: float, count: int = 1) -> None:
        for i in range(count):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=i + 1
                )

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        path = [tuple(a + (b - a) * i / steps for a, b in zip(start, end, strict=True))
                for i in range(steps + 1)]  # fmt: skip
        kinds = ["mousePressed"] + ["mouseMoved"] * (steps - 1) + ["mouseReleased"]
        for kind, (x, y) in zip(kinds, path[:steps] + path[-1:], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """(left, top, width, height) of an element."""
        element = f"document.querySelector({json.dumps(selector)})"
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        return box["x"], box["y"], box["width"], box["height"]

    def screenshot(self, path: Path | None = None) -> np.ndarray:
        """uint8 [H, W, 3]."""
        self.settle()
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path:
            path.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

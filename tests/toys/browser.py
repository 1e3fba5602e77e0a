"""A page's readers: plain requests, and a real browser driven through its WebDriver protocol."""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.request
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "token-of-the-tests-0123456789"


@dataclass
class Client:
    """Requests to a page as anything but a browser sends them."""

    port: int
    cookie: str = ""

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=({"Cookie": self.cookie} if self.cookie else {}) | sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def enter(self, token: str) -> None:
        """Exchange the token for the cookie."""
        status, headers, _ = self.get(f"/?token={token}")
        assert status == 303
        self.cookie = headers["set-cookie"].partition(";")[0]

    def stream(self, path: str = "/events", **headers: str) -> "Stream":
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers={"Cookie": self.cookie} | sent)
        return Stream(connection, connection.getresponse())


@dataclass
class Stream:
    connection: http.client.HTTPConnection
    answer: http.client.HTTPResponse

    def event(self) -> dict[str, str]:
        """The next server-sent event."""
        found: dict[str, str] = {}
        while line := self.answer.readline().decode().rstrip("\n"):
            name, _, value = line.partition(":")
            found[name] = value.lstrip()
        return found

    def change(self) -> tuple[str, dict[str, Any]]:
        while (event := self.event()).get("event") != "change":
            assert event, "the stream ended"
        return event["id"], json.loads(event["data"])

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def until(found: Callable[[], Any], seconds: float = 15) -> Any:
    """What `found` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


class Browser:
    """A headless Chromium: the few WebDriver commands that the tests need."""

    def __init__(self, driver: str, chromium: str, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "HOME": str(profile), "TMPDIR": str(profile)}
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._url = f"http://127.0.0.1:{port}"
        self.session = ""
        try:
            until(self._ready, 30)
            switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars")
            arguments = [*(f"--{switch}" for switch in switches), f"--user-data-dir={profile}/chromium"]
            options = {"binary": chromium, "args": arguments}
            wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
            self.session = "/session/" + self.send("POST", "/session", capabilities=wanted)["sessionId"]
        except BaseException:
            self.quit()
            raise

    def _ready(self) -> bool:
        try:
            return bool(self.send("GET", "/status")["ready"])
        except OSError:
            return False

    def send(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.send("POST", f"{self.session}/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.send("POST", f"{self.session}/execute/sync", script=script, args=list(arguments))

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.send("POST", f"{self.session}/goog/cdp/execute", cmd=command, params=parameters)

    def press(self, key: str) -> None:
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.send("POST", f"{self.session}/actions", actions=[{"type": "key", "id": "k", "actions": strokes}])

    def screen(self, width: int, height: int, mobile: bool = False) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def scheme(self, name: str, motion: str = "no-preference") -> None:
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def scripts(self, on: bool) -> None:
        self.cdp("Emulation.setScriptExecutionDisabled", value=not on)

    def shot(self) -> bytes:
        return b64decode(self.cdp("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call."""
        found = self.send("POST", f"{self.session}/se/log", type="browser")
        return [entry["message"] for entry in found if entry["level"] in ("SEVERE", "WARNING")]

    def quit(self) -> None:
        if self.session:
            self.send("DELETE", self.session)
        self._process.terminate()
        self._process.wait(10)

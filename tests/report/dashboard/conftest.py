"""A run to show, the page over a real port, and a real browser driven through its WebDriver protocol."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfl.federation.regulator.base import ADMIT, Verdict
from medfl.federation.round import Contribution, RoundPlan
from medfl.learning.messages import SiteInfo
from medfl.report.dashboard.state import LiveState
from medfl.study.load import study_from_json

SITES = ("aachen", "bergen", "cluj", "delft", "evora")
RAW: dict[str, Any] = {
    "name": "chest-pilot",
    "description": "Pneumonia on chest X-rays, five made-up hospitals",
    "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    "data": {
        "source": {"kind": "synthetic", "generator": "chest", "task": "classification", "cases": 8, "size": [32, 32]},
        "preprocess": {"size": [32, 32]},
    },
    "evaluation": {"unseen": ["evora"]},
    "stop": {"rounds": 12},
}
PRIVATE = {"privacy": {"kind": "site", "epsilon": 4.0, "delta": 1e-5, "accept_low_utility": True}}


def study_of(**changes: Any) -> Any:
    return study_from_json(RAW | changes)


def infos(sites: tuple[str, ...] = SITES) -> list[SiteInfo]:
    skipped = {"/data/patient-4711/scan.nii.gz": "cannot be read"}
    return [
        SiteInfo(site, {"val": 40, "test": 41} if site == "evora" else {"train": 160 + 7 * place, "val": 40, "test": 41},
                 skipped if place == 1 else {})
        for place, site in enumerate(sites)
    ]  # fmt: skip


def record_of(number: int, sites: tuple[str, ...] = SITES, **changes: Any) -> dict[str, Any]:
    """A round as the coordinator writes it: bergen is refused in rounds 3 and 4, cluj fails in round 5."""
    rng = np.random.default_rng(number)
    training = [site for site in sites if site != "evora"]
    failed = {"cluj": "site cluj, round 5: /data/patient-4711/scan.nii.gz: cannot be read"} if number == 5 else {}
    refused = {"bergen": {"rule": "norm_history", "reason": "norm 52.8 is 40.7 times its own"}} if number in (3, 4) else {}
    admitted = {"outcome": "admit", "rule": "", "reason": "", "factor": 1.0, "norm": 1.2, "cases": 160}
    verdicts = {site: dict(admitted) for site in training if site not in failed}
    for site, why in refused.items():
        verdicts[site] = {**admitted, "outcome": "refuse", "factor": 0.0, **why}
    if number == 2 and "delft" in verdicts:
        verdicts["delft"] |= {"outcome": "down-weight", "rule": "validation", "reason": "0.71 against 0.52", "factor": 0.25}
    level = 1 - 0.45 / (number + 0.3)

    def entry(place: int) -> dict[str, Any]:
        value = round(level - 0.02 * place + 0.02 * float(rng.random()), 4)
        return {"auroc": {"value": value, "n": 40, "classes": {}}, "accuracy": {"value": value - 0.05, "n": 40},
                "loss": {"value": 1 - value, "n": 40}}  # fmt: skip

    return {
        "round": number,
        "participants": training,
        "late": [],
        "failed": failed,
        "refused": refused,
        "verdicts": verdicts,
        "moved": True,
        "void": "",
        "losses": {"mean_start": 0.9 / number, "mean": 0.8 / number + 0.1,
                   "sites": {site: 0.8 / number + 0.1 for site in training if site not in failed}},
        "metrics": {"split": "val", "over": training, "global": {"auroc": {"value": level, "n": 200}, "accuracy":
                    {"value": level - 0.05, "n": 200}, "loss": {"value": 1 - level, "n": 200}},
                    "sites": {site: entry(place) for place, site in enumerate(training)},
                    "unseen": {"evora": entry(6)} if "evora" in sites else {}},
        "bytes": {"up_bytes": 5_400_000, "down_bytes": 5_380_000, "evaluation_up_bytes": 4000,
                  "evaluation_down_bytes": 5_380_000, "sites": dict.fromkeys(training, {"up": 1_350_000, "down": 1_345_000})},
        "epsilon": None,
        "seconds": {"plan": 0.01, "local": 41.0 + float(rng.random()), "review": 0.2, "evaluate": 3.1, "commit": 0.02},
    } | changes  # fmt: skip


def play(state: Any, rounds: int = 6, sites: tuple[str, ...] = SITES, planned: int = 12, private: bool = False) -> None:
    """Some rounds as hooks."""
    for site in sites:
        state.presence(site, "connected")
    state.presence("bergen", "held", "waits for its steward")
    state.opened(infos(sites), planned, 0)
    training = tuple(site for site in sites if site != "evora")
    for number in range(1, rounds + 1):
        state.round_started(RoundPlan(number, training, {}, dict.fromkeys(training, 160)))
        record = record_of(number, sites, **({"epsilon": 0.55 * number} if private else {}))
        for site in training:
            state.local_progress(site, 40, 40)
            verdict = Verdict("refuse", "norm_history", "norm 52.8", 0.0) if site in record["refused"] else ADMIT
            state.answered(site, Contribution(160, 40, 2, 0.5, 0.4, 1.0, verdict, failure=record["failed"].get(site, "")))
        state.evaluating("val", training[0])
        state.round_finished(record)


def play_on(state: Any, number: int = 7) -> None:
    """The middle of a round: one site trains, one was lost, one is done."""
    state.round_started(RoundPlan(number, SITES[:4], {}, dict.fromkeys(SITES[:4], 160)))
    state.local_progress("aachen", 14, 40)
    state.local_progress("bergen", 31, 40)
    state.answered("cluj", Contribution(160, 40, 2, 0.5, 0.4, 1.0, ADMIT))
    state.presence("delft", "lost", "no heartbeat for 30 s")


@pytest.fixture
def state() -> LiveState:
    made = LiveState(study_of())
    play(made)
    return made


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
            options = {"binary": chromium, "args": ["--headless=new", "--no-sandbox", "--disable-gpu",
                       "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}/chromium"]}  # fmt: skip
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
        features = [{"name": "prefers-color-scheme", "value": name}, {"name": "prefers-reduced-motion", "value": motion}]
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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    found = Browser(driver, chromium, tmp_path_factory.mktemp("browser"))
    yield found
    found.quit()

"""A whole federation of real processes on this machine: a coordinator, enrolled sites, images of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from toys.ports import free_port

SITES = ("hospital-a", "hospital-b", "hospital-c")

STUDY: dict[str, Any] = {
    "name": "toy",
    "task": {
        "kind": "classification",
        "classes": ["normal", "pneumonia"],
        "network": {"layers": [1, 1], "width": 8, "stem_pool": True},
        "class_balance": "none",
    },
    "data": {"source": {"kind": "datalist"}, "preprocess": {"size": [16, 16], "channels": 1}},
    "local": {"epochs": 1, "learning_rate": 0.003, "batch_size": 8, "rules": ["sgd"]},
    "stop": {"rounds": 3},
}


def medfl(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "medfl", *map(str, arguments)]


def call(*arguments: object) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(medfl(*arguments), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def until(what: Callable[[], Any], seconds: float = 240.0, why: str | Callable[[], str] = "") -> Any:
    """The first true answer. why: what to say when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {(why() if callable(why) else why) or what}")


class Service:
    """One process and what it wrote."""

    def __init__(self, name: str, log: Path, *arguments: object) -> None:
        self.name, self.log = name, log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            medfl(*arguments), stdout=self._file, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """As a power cut does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self, seconds: float = 240.0) -> int:
        """Its exit code, when it ends by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.name} goes on:\n{self.text[-4000:]}") from error


class Federation:
    """Folders and processes; a context manager that ends every process it started."""

    def __init__(self, folder: Path, sites: Sequence[str] = SITES, cases: int = 24, **study: Any) -> None:
        self.folder, self.sites, self.cases = folder, tuple(sites), cases
        self.study_file = folder / "study.yaml"
        self.home = folder / "coordinator"
        self.port, self.enrol_port = free_port(), free_port()
        self.others: dict[str, str] = {}
        self.started: list[Service] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.study_file.write_text(yaml.safe_dump({**STUDY, **study}))

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.started:
            service.kill()

    def images(self) -> None:
        """Every site's own images and its file."""
        from medfl.data.synthetic.config import SiteShift, SyntheticSpec
        from medfl.data.synthetic.write import write_federation

        (self.folder / "sites").mkdir(exist_ok=True)
        for number, site in enumerate(self.sites):
            folder = self.folder / "data" / site
            spec = SyntheticSpec(generator="chest", task="classification", size=(16, 16), cases=self.cases)
            write_federation(folder, spec, {"images": SiteShift(noise=0.01 * (number + 1))}, seed=number)
            about = {"name": site, "data": f"../data/{site}", "policy": {"approve": "allowed"}}
            (self.folder / "sites" / f"{site}.yaml").write_text(yaml.safe_dump(about))

    def admit(self) -> None:
        """Set the coordinator up and let every site enrol."""
        from medfl.coordinator.register import Register
        from medfl.coordinator.settings import CoordinatorHome, CoordinatorSettings

        settings = CoordinatorSettings(
            name="lead", listen="127.0.0.1", port=self.port, enrol_port=self.enrol_port, addresses=("127.0.0.1",)
        )
        home = CoordinatorHome.create(self.home, self.study_file, settings)
        register: Register = home.register(home.authority(), lambda kind, detail: None)
        for site in self.sites:
            self.enrol(site, home, register)
        for name, role in self.others.items():
            self.enrol(name, home, register, role)
        register.close()

    def enrol(self, site: str, home: Any, register: Any, role: Any = "site") -> None:
        from medfl.site.enrolment import enrol
        from medfl.transport.invitation import Invitation

        token, expires = register.invite(site, role)
        invitation = Invitation(
            coordinator=home.settings.name,
            address=home.settings.address,
            enrol_address=home.settings.enrol_address,
            ca=home.ca_certificate.read_text(),
            name=site,
            role=role,
            token=token,
            expires=expires,
        )
        file = self.folder / "sites" / f"{site}.yaml" if role == "site" else None
        enrol(invitation, self.site_home(site), file, lambda *_: register)

    def site_home(self, site: str) -> Path:
        return self.folder / "homes" / site

    def set_up(self) -> "Federation":
        self.images()
        (self.folder / "homes").mkdir()
        self.admit()
        return self

    def coordinator(self, *options: object) -> Service:
        return self._start("coordinator", "coordinator", "start", self.home, *options)

    def site(self, name: str) -> Service:
        return self._start(name, "site", "start", "--home", self.site_home(name))

    def key_holder(self, name: str) -> Service:
        return self._start(name, "keyholder", "start", "--home", self.site_home(name))

    def _start(self, name: str, *arguments: object) -> Service:
        service = Service(name, self.folder / f"{name}.log", *arguments)
        self.started.append(service)
        return service

    # what the processes say of themselves

    def status(self, site: str) -> dict[str, Any]:
        path = self.site_home(site) / "work" / "status.json"
        try:
            return dict(json.loads(path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def rounds(self) -> list[dict[str, Any]]:
        path = self.home / "run" / "rounds.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "run" / "summary.json").read_text()))

    def model(self) -> bytes:
        return (self.home / "run" / "model" / "model.safetensors").read_bytes()

    def simulated(self, *options: object) -> bytes:
        """The model of the same study in one process."""
        out = self.folder / "simulated"
        places = ("--sites", self.folder / "sites", "--out", out, "--ledgers", self.folder / "ledgers")
        call("simulate", self.study_file, *places, "--workers", 1, "--no-report", *options)
        return (out / "model" / "model.safetensors").read_bytes()

    def run_name(self) -> str:
        """The run's name in the ledgers."""
        from medfl.coordinator.journal import Journal

        journal = Journal.open(self.home / "run" / "journal.db", read_only=True)
        try:
            return str(journal.fact("run"))
        finally:
            journal.close()

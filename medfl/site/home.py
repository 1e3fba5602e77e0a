"""A site's home: the folder where a hospital keeps all that medfl has at its end.

    site.yaml          the hospital's own file: data and policy; edited by the data steward alone
    pki/               keys and certificates
    connection.json    where the coordinator is
    audit.log          what happened
    studies/           what was offered and decided; which patients took part in what, and who was withdrawn
    ledgers/ cache/    the privacy ledger; preprocessed images
    work/              what a running agent keeps between rounds
    paused.json        there while the site takes no orders
    salt               the secret key of the hashes that patients are kept as; never leaves the site

Everything is readable by its owner only.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medfl.audit.file import place, require_private, rewrite, timestamp, utc_now
from medfl.audit.log import AuditLog
from medfl.data.base import Case
from medfl.errors import InputError, RunError, StudyError
from medfl.folders import SITE, require
from medfl.site.participation import Participation
from medfl.study.load import load_site_file
from medfl.study.model import Site
from medfl.study.yaml_text import rewritten

FOLDERS = ("pki", "studies", "ledgers", "cache", "work")
_SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when, by whom and why the site takes no orders. at: UTC."""

    at: str
    by: str
    note: str


class SiteHome:
    """Open with `open`, make with `create`. Several processes may use one home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki, self.studies, self.ledgers, self.cache, self.work = (folder / name for name in FOLDERS)
        self.site_file = folder / "site.yaml"
        self.connection = folder / "connection.json"
        self.status = self.work / "status.json"
        self._pause_file = folder / "paused.json"

    @classmethod
    def create(cls, path: Path, site_file: Path) -> "SiteHome":
        """A new home for the hospital of this file, of which it gets a copy. InputError when there is a home already,
        or when the file is none of a real site."""
        home, text = cls(path), _copy(site_file)
        if home.site_file.exists():
            raise InputError.at(path, "is a site's home already", "edit its site.yaml, or give another folder")
        for folder in (path, *(path / name for name in FOLDERS)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place(path / "salt", secrets.token_bytes(_SALT_BYTES))
        place(home.site_file, text.encode())
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "SiteHome":
        """The home in this folder. InputError when it is none or its file is wrong; RunError when other users can open
        it."""
        home = cls(path)
        require(path, SITE, f"make one with medfl site enrol INVITATION --home {path}")
        for folder in (home.pki, home.studies, home.ledgers, home.cache, home.work):
            folder.mkdir(mode=0o700, exist_ok=True)
        require_private(path, home.site_file, path / "salt")
        _require_real(home.site, home.site_file)
        return home

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def site(self) -> Site:
        """The hospital's file as it is now: a change of the policy counts at once. StudyError when it is wrong."""
        found = load_site_file(self.site_file)
        return found.model_copy(update={"policy": found.policy.in_service()})

    @cached_property
    def audit(self) -> AuditLog:
        """The site's audit log."""
        return AuditLog.open(self.folder / "audit.log", f"site {self.name}")

    @property
    def paused(self) -> Pause | None:
        """Why the site takes no orders; None when it does."""
        try:
            return Pause(**json.loads(self._pause_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise RunError.at(self._pause_file, f"cannot be read: {error}", "medfl site resume, then pause") from error

    def pause(self, by: str, note: str = "") -> Pause:
        """Take no orders from now on; a round that is under way is finished."""
        found = Pause(now(), by, note)
        write_json(self._pause_file, asdict(found))
        self.audit.append("paused", {"by": by, "note": note})
        return found

    def resume(self, by: str) -> bool:
        """Take orders again; whether the site was paused."""
        if not self._pause_file.exists():
            return False
        self.audit.append("resumed", {"by": by})
        self._pause_file.unlink(missing_ok=True)
        return True

    def key_of(self, patient: str) -> str:
        """A patient as the home's files name them: HMAC-SHA256 under the home's salt, as hex. A leading "<site>/",
        which medfl puts before the identifiers of a site's own images, plays no part."""
        plain = patient.strip().removeprefix(f"{self._name}/")
        return hmac.new(self._salt, plain.encode(), hashlib.sha256).hexdigest()

    @cached_property
    def participation(self) -> Participation:
        """Who took part in what, and who was withdrawn."""
        return Participation.open(self.studies / "participation.jsonl", self.key_of)

    def without_withdrawn(self, cases: Iterable[Case]) -> list[Case]:
        """The cases that may be used: those of no patient who was withdrawn. Where the datalist names no patient, each
        case counts as one, named by its key."""
        gone = self.participation.withdrawn
        return [case for case in cases if self.key_of(patient_of(case)) not in gone] if gone else list(cases)

    @cached_property
    def _name(self) -> str:
        return self.name

    @cached_property
    def _salt(self) -> bytes:
        path = self.folder / "salt"
        found = path.read_bytes() if path.is_file() else b""
        if len(found) != _SALT_BYTES:
            what = "is missing or damaged: patients who were withdrawn could not be recognised"
            raise RunError.at(path, what, "restore it from a copy of this home")
        return found


def patient_of(case: Case) -> str:
    """The patient of a case, or the case's key where the datalist names no patient."""
    return case.patient or case.key


def now() -> str:
    """The time as the home's files write it."""
    return timestamp(utc_now())


def write_json(path: Path, value: Any) -> None:
    """The file for its owner alone, whole or not at all."""
    rewrite(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def _require_real(site: Site, path: Path) -> None:
    if site.fault is not None:
        what = "is for simulations: a hospital does nothing wrong on purpose"
        raise StudyError.at(f"{path}: fault", what, "remove it")


def _copy(path: Path) -> str:
    """The site file's text, comments and all, with the paths of its images made absolute."""
    site = load_site_file(path)
    _require_real(site, path)
    paths: dict[tuple[str | int, ...], str] = {} if site.data is None else {("data",): str(site.data)}
    paths |= {("shared", number, "manifest"): str(entry.manifest) for number, entry in enumerate(site.shared)}
    try:
        return rewritten(path.read_text(encoding="utf-8"), paths)
    except ValueError as error:
        what = f"its paths are written in a way that cannot be copied: {error}"
        raise StudyError.at(path, what, "write each path out, on a line of its own, without anchors") from error

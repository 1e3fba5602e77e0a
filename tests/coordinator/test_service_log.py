"""The coordinator's audit log and the heads that sites tell when they call."""

import secrets
import threading
from pathlib import Path

from medfl.audit.log import AuditLog
from medfl.coordinator.service import CoordinatorService
from medfl.transport.limits import RateLimit


def service(folder: Path) -> CoordinatorService:
    """One that listens to nobody."""
    found = CoordinatorService.__new__(CoordinatorService)
    found.audit = AuditLog.open(folder / "audit.log", "coordinator")
    found._lock = threading.Lock()
    found._heads = RateLimit(rate=1e-9, burst=10)
    return found


def test_heads_are_kept_and_a_log_that_was_cut_is_noted(tmp_path: Path) -> None:
    found = service(tmp_path)
    head, before = found._witness("east", "1" * 64, "")
    assert (head, before) == (found.audit.head, "")
    assert found._witness("east", "2" * 64, head) == (found.audit.head, "1" * 64)
    found._witness("east", "2" * 64, "f" * 64)
    assert [record.kind for record in found.audit.entries()].count("log-cut") == 1


def test_a_site_that_calls_again_and_again_does_not_fill_the_log(tmp_path: Path) -> None:
    found = service(tmp_path)
    for _ in range(40):
        found._witness("east", secrets.token_hex(32), secrets.token_hex(32))
    assert len(found.audit.entries()) <= 1 + 2 * 10
    found._witness("west", "1" * 64, "")
    assert found.audit.kept["site west"] == "1" * 64, "others are heard"

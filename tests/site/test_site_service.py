"""The threads of a site's service: none of them ends unseen."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medfl.errors import RunError
from medfl.site import service as module
from medfl.site.service import SiteService


def bare(kind: type[SiteService] = SiteService, /, **changed: Any) -> Any:
    """A service without a home; what is not said is not there."""
    found = kind.__new__(kind)
    agent = SimpleNamespace(stop=threading.Event(), name="east", hello=None, box=None, welcomed=None)
    vars(found).update(_error=None, agent=agent, **changed)
    return found


def raising(error: Exception) -> Any:
    def go(*_: object) -> None:
        raise error

    return go


@pytest.mark.parametrize("error", [RunError.at("coordinator", "says no"), RuntimeError("can't start new thread")])
def test_a_line_that_ends_by_an_error_ends_the_service_with_one(error: Exception) -> None:
    """A supervisor starts again what failed, and not what was done."""
    found = bare(_ways=SimpleNamespace(hold=raising(error)))
    found._hold()
    assert found.agent.stop.is_set() and isinstance(found._error, RunError)


def test_a_socket_that_cannot_be_had_ends_a_site_behind_flower_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfl.integrations.flower import station

    monkeypatch.setattr(station, "Listener", raising(PermissionError(13, "Permission denied")))
    address = SimpleNamespace(connection=SimpleNamespace(address="127.0.0.1:1"))
    found = bare(station.FlowerSite, _credentials=address, _folder=tmp_path)
    found._hold()
    assert found.agent.stop.is_set() and isinstance(found._error, RunError)


@pytest.mark.parametrize("error", [RunError.at("coordinator", "is away"), OSError(28, "No space left on device")])
def test_a_renewal_that_fails_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    now, tried = datetime.now(UTC), list[int]()
    monkeypatch.setattr(module, "_RENEWAL_LOOK", 0.01)
    due = SimpleNamespace(renewal_due=lambda now: True, expires=now + timedelta(days=1))
    found = bare(_credentials=due)

    def renewed() -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise error
        found.agent.stop.set()
        return due

    found._renewed = renewed
    found.agent.call_again = lambda: None
    found._keep_certificate()
    assert len(tried) == 3


def test_whatever_a_message_sets_off_the_line_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from medfl.transport import calling
    from medfl.transport.grpc import client
    from medfl.transport.https import client as https

    for target, hold in ((client, client.hold), (https, https.hold_https)):
        stop, tried = threading.Event(), list[int]()

        def once(*_: object, stop: Any = stop, tried: Any = tried) -> None:
            tried.append(1)
            if len(tried) > 2:
                stop.set()
            raise KeyError("surprise")

        monkeypatch.setattr(target, "_once", once)
        monkeypatch.setattr(calling, "_FIRST", 0.01)
        monkeypatch.setattr(calling, "_SLOWEST", 0.01)
        told: list[str] = []
        hello: Any = lambda: SimpleNamespace(versions=[])  # noqa: E731
        monkeypatch.setattr(calling, "Frame", lambda hello: hello)
        hold(lambda: None, hello, None, None, stop, lambda state, why, told=told: told.append(why))  # type: ignore
        assert told == ["KeyError", "KeyError"]


@pytest.mark.parametrize("stopped", [True, False])
def test_only_a_coordinator_that_said_so_ends_a_run(stopped: bool) -> None:
    """A site that its steward stops goes on with the run later: what is kept of it is kept for long."""
    told: list[str] = []
    found = bare(_stopped=False)
    found.agent.over = lambda: told.append("over")
    found._ways = SimpleNamespace(hold=lambda *_: found.stop() if stopped else None)
    found._hold()
    assert told == ([] if stopped else ["over"]) and found.agent.stop.is_set()

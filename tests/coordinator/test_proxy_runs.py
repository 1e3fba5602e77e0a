"""Whole runs with GLFC's proxy server: the same model in several processes and after a death, and what travels."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyFederation, tiny_classification
from toys.crashes import Crash, CrashAt, model_bytes, records
from toys.proxied import OWN, PROXIED, SWITCH

from medfl.coordinator.journal import Journal
from medfl.coordinator.observer import Observer
from medfl.coordinator.runner import inputs_of, simulate
from medfl.errors import InputError
from medfl.federation.proxy import ProxyServer
from medfl.federation.regulator.base import Verdict
from medfl.federation.regulator.finite import Finite
from medfl.learning.messages import SiteFailure, TrainReply
from medfl.learning.rebuilding import Rebuilder
from medfl.learning.rules.base import LocalContext
from medfl.learning.rules.glfc import Glfc
from medfl.privacy.trust import PROTOTYPES
from medfl.transport.host import SiteHost
from medfl.update.base import Payload


def shrinking(_: Rebuilder, model: Any, *__: Any) -> float:
    """Scores that fall: the best model is not the last one, which sites would take anyway."""
    return -float(np.abs(model).sum())


@pytest.fixture(scope="module", autouse=True)
def scored() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rebuilder, "score", shrinking)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxied")
    made = TinyFederation(folder / "federation", tiny_classification())
    simulate(made.inputs(*PROXIED), folder / "whole", Observer(), workers=1)
    return folder / "whole"


DEATHS = {
    "with half of the prototypes there": ("answered", 3 * (SWITCH - 1) + 2),
    "once they are in the journal": ("round_finished", SWITCH),
    "with the old models on their way": ("answered", 3 * SWITCH + 1),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_run_that_dies_at_a_switch_goes_on_to_the_same_model(
    tiny: Any, whole: Path, tmp_path: Path, name: str
) -> None:
    broken = tmp_path / "broken"
    with pytest.raises(Crash):
        simulate(tiny.inputs(*PROXIED), broken, CrashAt(*DEATHS[name]), workers=1)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) == model_bytes(broken)
    assert records(whole) == records(broken)
    assert not any(record["failed"] or record["refused"] for record in records(whole))


# an update that does not count at the switch

LONG = (*PROXIED[:-2], "stop.rounds=6", PROXIED[-1])


def tell_once(patch: pytest.MonkeyPatch) -> None:
    """The fake: what did not count is lost."""
    real = Glfc._propose

    def once(self: Glfc, context: LocalContext, classes: Sequence[int]) -> None:
        context.state.pop("glfc.offer", None)
        context.state.pop("glfc.offered", None)
        real(self, context, classes)

    patch.setattr(Glfc, "_propose", once)


def lose(patch: pytest.MonkeyPatch, how: str) -> None:
    """East's update of the switch: refused, or late."""
    train, judge = SiteHost.train, Finite.judge

    def late(self: SiteHost, order: Any, *rest: Any) -> Any:
        answer, state = train(self, order, *rest)
        if (order.site, order.round) == ("east", SWITCH):
            return SiteFailure("east", SWITCH, "was still at work", late=True), state
        return answer, state

    def refused(self: Finite, arrival: Any, bench: Any) -> Verdict:
        if (arrival.site, arrival.round) == ("east", SWITCH):
            return Verdict("refuse", "finite", "a jump", 0.0)
        return judge(self, arrival, bench)

    if how == "late":
        patch.setattr(SiteHost, "train", late)
    else:
        patch.setattr(Finite, "judge", refused)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("how", ["refused", "late"])
def test_what_was_lost_at_a_switch_is_made_good_also_over_a_death(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, good: bool
) -> None:
    lose(monkeypatch, how)
    if not good:
        tell_once(monkeypatch)
    run, broken = tmp_path / "run", tmp_path / "broken"
    simulate(tiny.inputs(*LONG), run, Observer(), workers=1)
    found = records(run)
    assert [record["round"] for record in found if "east" in record["refused"] | record["failed"]] == [SWITCH]
    told, down = ([record.get(what, {}) for record in found] for what in ("prototypes", "bytes"))
    assert ("east" in told[SWITCH - 1]) == (how == "refused"), "what left is recorded, whatever became of the update"
    assert (told[SWITCH] == {"east": 1}) == good
    assert (proxy_of(run)["named"]["east"] == [0, 1]) == good
    # two old models, in the round after
    extra = down[SWITCH + 1]["down_bytes"] - down[SWITCH + 2]["down_bytes"]
    models = 2 * 4 * json.loads((run / "summary.json").read_text())["parameters"]
    assert extra == pytest.approx(models if good else 0, abs=300)

    with pytest.raises(Crash):
        simulate(tiny.inputs(*LONG), broken, CrashAt("round_finished", SWITCH), workers=1)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(run) == model_bytes(broken)
    assert records(run) == records(broken)


def proxy_of(run: Path) -> dict[str, Any]:
    """The proxy server's state at the end, without arrays."""
    journal = Journal.open(run / "journal.db", read_only=True)
    kept = journal.state()
    journal.close()
    assert kept is not None
    return dict(kept[0]["proxy"])


def test_a_coordinator_that_forgets_its_proxy_server_comes_to_another_model(
    tiny: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake: after the death there is a new proxy server."""
    broken = tmp_path / "broken"
    with pytest.raises(Crash):
        simulate(tiny.inputs(*PROXIED), broken, CrashAt("round_finished", SWITCH), workers=1)
    monkeypatch.setattr(ProxyServer, "restore", lambda *_: None)
    simulate(inputs_of(broken), broken, Observer(), workers=1, resume=True)
    assert model_bytes(whole) != model_bytes(broken)


def test_processes_give_the_same_model_and_bytes(tiny: Any, whole: Path, tmp_path: Path) -> None:
    simulate(tiny.inputs(*PROXIED), tmp_path / "pool", Observer(), workers=2)
    assert model_bytes(whole) == model_bytes(tmp_path / "pool")
    assert records(whole) == records(tmp_path / "pool")


def test_what_travels_is_counted_and_told(tiny: Any, whole: Path, tmp_path: Path) -> None:
    """Prototypes up at switches, two models down once after the switch, and nothing else."""
    simulate(tiny.inputs(*OWN), tmp_path / "own", Observer(), workers=1)
    found, own = records(whole), records(tmp_path / "own")
    told = [record.get("prototypes", {}) for record in found]
    sites = {"east", "south", "west"}
    assert [set(entry) for entry in told] == [sites, set(), sites, set()]
    assert all(count == 1 for entry in told for count in entry.values())

    summary = json.loads((whole / "summary.json").read_text())
    model = 4 * summary["parameters"]
    up, down = (
        [ours["bytes"][way] - theirs["bytes"][way] for ours, theirs in zip(found, own, strict=True)]
        for way in ("up_bytes", "down_bytes")
    )
    # LeNet for 8 pixels and two classes
    encoder = 4 * (12 * 25 + 12 + 3 * (12 * 12 * 25 + 12) + 2 * (48 + 1))
    for number in range(4):
        assert up[number] // 3 == pytest.approx(encoder if told[number] else 0, abs=150)
        assert down[number] // 3 == pytest.approx(2 * model if number == SWITCH else 0, abs=300)
    assert PROTOTYPES in summary["privacy"]["not_covered"] and "images" in summary["privacy"]["trust"]
    other = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert PROTOTYPES not in other["privacy"]["not_covered"] and "images" not in other["privacy"]["trust"]


def test_the_journal_has_the_images_the_models_and_who_told_what(whole: Path) -> None:
    journal = Journal.open(whole / "journal.db", read_only=True)
    kept = journal.state()
    journal.close()
    assert kept is not None
    plain, arrays = kept
    assert plain["proxy"]["since"] == SWITCH and plain["proxy"]["labels"] == [0] * 3 + [1] * 3
    assert arrays["proxy.images"].shape == (6, 1, 8, 8)
    assert arrays["proxy.previous"].shape == arrays["model"].shape
    assert plain["proxy"]["named"] == {site: [0, 1] for site in ("east", "south", "west")}


def test_a_hostile_site_costs_its_own_update_alone(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SiteHost.train

    def hostile(self: SiteHost, order: Any, *rest: Any) -> Any:
        reply, state = real(self, order, *rest)
        if order.site == "west" and isinstance(reply, TrainReply):
            many = np.ones(10**6, np.float32)
            object.__setattr__(reply, "prototypes", Payload("fp32", many.size, (many.tobytes(),)))
        return reply, state

    monkeypatch.setattr(SiteHost, "train", hostile)
    simulate(tiny.inputs(*PROXIED), tmp_path / "run", Observer(), workers=1)
    for record in records(tmp_path / "run"):
        assert list(record["refused"]) == ["west"] and "prototypes" in record["refused"]["west"]["reason"]
        assert record["moved"] and "west" not in record.get("prototypes", {})


def test_a_site_whose_policy_does_not_consent_takes_no_part(tiny: Any, tmp_path: Path) -> None:
    path = tiny.sites / "east.yaml"
    path.write_text(f"{path.read_text()}policy: {{prototypes_may_leave: false}}\n")
    with pytest.raises(InputError, match="site east, policy: does not consent to gradients of single images"):
        simulate(tiny.inputs(*PROXIED), tmp_path / "run", Observer(), workers=1)
    assert not (tmp_path / "run").exists()

"""An asynchronous study over real processes: who comes first decides, and what came first is on record."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from toys.federations import SITES, Federation, until

from medfl.coordinator.async_replay import replay_run
from medfl.coordinator.journal import Journal
from medfl.study.load import load_sites, load_study
from medfl.study.sources import RunInputs

KINDS: dict[str, Any] = {"fedasync": {"kind": "fedasync"}, "buffered": {"kind": "buffered", "size": 2}}


@pytest.mark.slow
def test_sums_without_rounds_go_on_when_coordinator_and_site_are_killed(tmp_path: Path) -> None:
    """A site that is started anew finds what it kept for a sum on its disk; a sum that cannot be made stays closed."""
    study = {
        "federation": {"schedule": {"kind": "buffered", "size": 3}, "regulator": ["finite"]},
        "update": {"channel": "masks", "clip": 4.0},
        "stop": {"rounds": 10},
        "evaluation": {"every": 5},
    }
    with Federation(tmp_path, **study).set_up() as federation:
        lead = federation.coordinator()
        sites = {site: federation.site(site) for site in SITES}
        until(lambda: len(federation.rounds()) >= 3, why=lead.text)
        sites[SITES[0]].kill()
        sites[SITES[0]] = federation.site(SITES[0])
        until(lambda: len(federation.rounds()) >= 6, why=lead.text)
        lead.kill()
        again = federation.coordinator()
        assert again.end() == 0, again.text
        assert [site.end() for site in sites.values()] == [0, 0, 0], sites[SITES[1]].text
        records = federation.rounds()
    assert len(records) == 10
    assert sum(record["moved"] for record in records) >= 7
    used = [(each["site"], each["number"]) for record in records for each in record["arrivals"] if record["moved"]]
    assert len(set(used)) == len(used), "an update is in one sum"
    assert all(record["moved"] or "3 are needed" in record["void"] for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_coordinator_goes_on_and_the_record_gives_the_model_bit_for_bit(tmp_path: Path, kind: str) -> None:
    study = {"federation": {"schedule": KINDS[kind]}, "stop": {"rounds": 12}, "evaluation": {"every": 6}}
    with Federation(tmp_path, **study).set_up() as federation:
        lead = federation.coordinator()
        sites = [federation.site(site) for site in SITES]
        until(lambda: len(federation.rounds()) >= 4, why=lead.text)
        lead.kill()
        assert len(federation.rounds()) < 12
        again = federation.coordinator()
        assert again.end() == 0, again.text
        assert [site.end() for site in sites] == [0, 0, 0], sites[0].text
        records, run = federation.rounds(), federation.home / "run"
    assert len(records) == 12
    numbers: dict[str, list[int]] = {}
    for arrived in (each for record in records for each in record["arrivals"]):
        numbers.setdefault(arrived["site"], []).append(arrived["number"])
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values()), "an answer counts once"
    journal = Journal.open(run / "journal.db", read_only=True)
    counted = Counter(message["site"] for message in journal.messages())
    journal.close()
    assert counted == {site: len(found) for site, found in numbers.items()}
    inputs = RunInputs(
        study=load_study(federation.study_file),
        sites=tuple(load_sites(tmp_path / "sites")),
        cache=tmp_path / "cache",
        ledgers=tmp_path / "ledgers",
    )
    model = np.concatenate([tensor.ravel() for tensor in load_file(run / "model" / "model.safetensors").values()])
    found = replay_run(run, inputs)
    assert found.same
    assert sorted(found.model.tolist()) == sorted(model.tolist())

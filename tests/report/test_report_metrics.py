import sys
import urllib.request

import pytest
from toys.watched import PRIVATE, play, play_on, record_of, study_of

from medfl.errors import InputError
from medfl.report.run import read_run

pytest.importorskip("prometheus_client")

from medfl.report.metrics import MetricsObserver, serve_metrics


def samples(observer):
    """{(name, labels): value} of everything in the registry."""
    found = [sample for metric in observer.registry.collect() for sample in metric.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


def test_numbers_of_a_run(make_run):
    observer = MetricsObserver(study_of())
    play(observer)
    play_on(observer)
    found = samples(observer)
    assert found["medfl_run_info", "chest-pilot", "classification"] == 1
    assert (found["medfl_rounds_planned",], found["medfl_rounds_completed",], found["medfl_round",]) == (12, 6, 7)
    assert (
        found["medfl_sites", "ready"] == 4 and found["medfl_sites", "lost"] == 1 and found["medfl_sites", "held"] == 0
    )
    assert found["medfl_site_connected", "delft"] == 0 and found["medfl_site_connected", "aachen"] == 1
    assert found["medfl_updates_total", "admit", ""] == 20
    assert (
        found["medfl_updates_total", "refuse", "norm_history"] == 2 and found["medfl_updates_total", "failed", ""] == 1
    )
    assert found["medfl_site_problems_total", "bergen", "refuse"] == 2
    assert found["medfl_bytes_total", "up", "training"] == 6 * 5_400_000
    assert found["medfl_bytes_total", "down", "evaluation"] == 6 * 5_380_000
    assert found["medfl_site_bytes_total", "aachen", "up"] == 6 * 1_350_000
    assert found["medfl_phase_seconds_count", "local"] == 6 and 246 <= found["medfl_phase_seconds_sum", "local"] <= 252
    assert found["medfl_metric", "auroc", "val"] == record_of(6)["metrics"]["global"]["auroc"]["value"]
    assert not [key for key in found if "epsilon" in key[0]], (
        "no privacy mechanism: no number that could be taken for one"
    )
    observer.ended(read_run(make_run()).summary)
    assert samples(observer)["medfl_run_ended", "rounds"] == 1


def test_a_site_that_trains_is_connected_and_makes_no_series_of_its_own():
    observer = MetricsObserver(study_of())
    play(observer)
    observer.presence("aachen", "training", "round 7")
    found = samples(observer)
    assert found["medfl_site_connected", "aachen"] == 1 and found["medfl_sites", "training"] == 1
    for place in range(20):
        observer.presence("aachen", f"made-up-{place}")
    found = samples(observer)
    assert found["medfl_site_connected", "aachen"] == 0 and found["medfl_sites", "other"] == 1
    assert not [key for key in found if any("made-up" in part for part in key)]


def test_epsilon_with_its_unit_and_budget():
    observer = MetricsObserver(study_of(**PRIVATE))
    assert samples(observer)["medfl_epsilon_budget", "site"] == 4.0
    play(observer, 3, private=True)
    assert samples(observer)["medfl_epsilon", "site"] == pytest.approx(1.65)


def test_a_resumed_run_says_what_is_done():
    observer = MetricsObserver(study_of())
    observer.opened([], 12, 7)
    observer.round_finished(record_of(8, void="too few sites", losses={"mean": None, "sites": {}}, metrics=None))
    found = samples(observer)
    assert found["medfl_rounds_completed",] == 8 and found["medfl_void_rounds_total",] == 1


def test_scraped_over_a_port_and_without_names_of_cases():
    observer = MetricsObserver(study_of())
    play(observer)
    server = serve_metrics(observer, 0)
    try:
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            text = answer.read().decode()
        assert 'medfl_sites{state="ready"} 5.0' in text and "4711" not in text and "python_info" not in text
        with pytest.raises(InputError, match="choose a free port"):
            serve_metrics(observer, int(server.url.split(":")[2].split("/")[0]))
    finally:
        server.stop()
        server.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.url, timeout=5)


def test_two_runs_do_not_share_numbers():
    first, second = MetricsObserver(study_of()), MetricsObserver(study_of())
    play(first, 2)
    assert samples(second)["medfl_rounds_completed",] == 0


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"pip install 'medfl\[metrics\]'"):
        MetricsObserver(study_of())

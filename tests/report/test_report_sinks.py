import sys
import types
from typing import ClassVar

import pytest

from medfl.errors import InputError
from medfl.learning.messages import SiteInfo
from medfl.report.run import read_run
from medfl.report.sinks import make_sink
from medfl.report.sinks.scalars import of_metrics, of_round


def play(sink, run, done=0, end=True):
    record = read_run(run)
    sink.opened([SiteInfo("hospital-01", {"train": 80}), SiteInfo("hospital-02", {"train": 60, "val": 3})], 12, done)
    for one in record.rounds[done:]:
        sink.round_finished(one)
    if end:
        sink.ended(record.summary)
    sink.close()
    return record


def test_scalars_leave_out_what_is_not_finite(make_run):
    record = read_run(make_run(rounds=12)).rounds[-1]
    found = dict(of_round(record))
    assert found["loss/train"] == record["losses"]["mean"]
    assert found["val/auroc"] == record["metrics"]["global"]["auroc"]["value"]
    assert found["val_by_site/auroc/hospital-02"] == record["metrics"]["sites"]["hospital-02"]["auroc"]["value"]
    assert found["val_unseen/auroc/hospital-05"] == record["metrics"]["unseen"]["hospital-05"]["auroc"]["value"]
    assert "privacy/epsilon" not in found and "bytes/sites" not in found
    assert dict(of_round({**record, "epsilon": 1.5}))["privacy/epsilon"] == 1.5
    empty = {"global": {"dice": {"value": None, "n": 0}}, "sites": {}, "unseen": {}}
    assert list(of_metrics("val", empty)) == []


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_events_can_be_read_back(make_run):
    pytest.importorskip("tensorboard")
    run = make_run(rounds=5)
    record = play(make_sink("tensorboard", run), run)
    found = events_of(run / "tensorboard")
    losses = [(event.step, event.value) for event in found.Scalars("loss/train")]
    assert losses == [(one["round"], pytest.approx(one["losses"]["mean"])) for one in record.rounds]
    (final,) = found.Scalars("final_test/auroc")
    assert (final.step, final.value) == (5, pytest.approx(record.summary["metrics"]["global"]["auroc"]["value"]))


def test_tensorboard_goes_on_after_a_resume(make_run):
    pytest.importorskip("tensorboard")
    run = make_run(rounds=6)
    sink = make_sink("tensorboard", run)
    sink.opened([], 12, 0)
    for one in read_run(run).rounds[:4]:
        sink.round_finished(one)
    sink.close()
    play(make_sink("tensorboard", run), run, done=3)
    assert sorted({event.step for event in events_of(run / "tensorboard").Scalars("loss/train")}) == [1, 2, 3, 4, 5, 6]


def test_sinks_make_nothing_before_the_run_opens(tmp_path):
    pytest.importorskip("tensorboard")
    sink = make_sink("tensorboard", tmp_path / "run")
    sink.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_missing_libraries_say_what_to_install(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'medfl\[{name}\]'"):
        make_sink(name, tmp_path)


def test_unknown_sink(tmp_path):
    with pytest.raises(InputError, match="use one of: tensorboard, mlflow"):
        make_sink("wandb", tmp_path)


class Client:
    """What MlflowSink calls of MlflowClient, noted."""

    made: ClassVar[list] = []

    def __init__(self, tracking_uri):
        self.uri, self.params, self.metrics, self.status, self.experiments = tracking_uri, {}, [], "", []
        Client.made.append(self)

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        self.experiments.append(name)
        return "7"

    def create_run(self, experiment_id, run_name, tags):
        assert experiment_id == "7"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def log_param(self, run, key, value):
        assert run == "r1" and key not in self.params
        self.params[key] = value

    def log_batch(self, run, metrics):
        assert len(metrics) <= 1000
        self.metrics += metrics

    def set_terminated(self, run, status):
        assert run == "r1"
        self.status = status


@pytest.fixture
def mlflow(monkeypatch):
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient = Client
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Client.made = []
    return Client


def test_mlflow_gets_every_round_and_the_end(make_run, mlflow):
    run = make_run(rounds=4, names=["north:1", "b", "c"])
    record = play(make_sink("mlflow", run), run)
    (client,) = mlflow.made
    assert client.uri == (run / "mlruns").resolve().as_uri() and client.experiments == ["medfl"]
    losses = [(value, step) for key, value, step in client.metrics if key == "loss/train"]
    assert losses == [(one["losses"]["mean"], one["round"]) for one in record.rounds]
    assert ("final_test/auroc", record.summary["metrics"]["global"]["auroc"]["value"], 4) in client.metrics
    assert client.params["training_cases"] == 140 and client.params["stopped_by"] == "rounds"
    assert client.status == "FINISHED" and not [key for key, _, _ in client.metrics if ":" in key]


def test_mlflow_run_that_breaks_off_is_failed(make_run, mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    run = make_run(rounds=2)
    play(make_sink("mlflow", run), run, end=False)
    assert (mlflow.made[0].status, mlflow.made[0].uri) == ("FAILED", "http://tracking.example")

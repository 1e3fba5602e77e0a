"""Reading studies and site files: every fault at once, each with its key and a remedy."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medfl.errors import Fault, StudyError
from medfl.study.load import load_site_file, load_sites, load_study, study_from_json
from medfl.study.model import Study
from medfl.study.yaml_text import parse

BASE = """
name: test
task: {kind: classification, classes: [normal, pneumonia]}
data:
  source: {kind: synthetic, generator: chest, task: classification, size: [32, 32], cases: 20}
  preprocess: {size: [32, 32]}
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to


def faults(path: Path, *overrides: str) -> dict[str, Fault]:
    """Faults by the last word of their place."""
    with pytest.raises(StudyError) as caught:
        load_study(path, overrides)
    return {fault.where.split(" ")[-1]: fault for fault in caught.value.faults}


def changed(**sections: str) -> str:
    return BASE + "".join(f"{name}: {value}\n" for name, value in sections.items())


def test_defaults_make_a_study(write: Write) -> None:
    study = load_study(write(BASE))
    assert study.local.rules[0].kind == "sgd" and study.update.codec_up.kind == "fp32"
    assert [rule.kind for rule in study.federation.regulator] == ["finite", "norm_history"]


def test_short_forms(write: Write) -> None:
    text = changed(
        local="{epochs: 2, learning_rate: 0.1, rules: [fedprox]}", federation="{server: momentum, regulator: [finite]}"
    )
    study = load_study(write(text))
    assert study.local.epochs.model_dump() == {"kind": "constant", "value": 2.0}
    assert study.local.rules[0].model_dump()["mu"] == {"kind": "constant", "value": 0.01}
    assert study.federation.server.model_dump()["beta"] == 0.9


# every fault at once

WRONG = """
name: "bad name!"
sede: 3
device: gpu
task: {kind: classification, classes: [a, b], netwrk: {}}
data:
  source: {kind: synthetic, cases: -1, sice: [3, 3]}
  preprocess: {size: [32, 32], chanels: 1}
local:
  epochs: {kind: adacomm, strat: 3}
  learning_rate: -1
  batch_size: many
  optimizer: {kind: sgd, momentom: 0.9}
  rules: [{kind: fedprox, mew: 1}, {kind: fedprxo}, {mu: 1}]
federation:
  regulator: [{kind: norm_limit}]
  server: {kind: adam, beta1: 2}
update: {codec_up: fp61}
stop: {target: {metric: auroc}}
"""


def test_every_fault_is_reported_with_its_key_and_a_remedy(write: Write) -> None:
    found = faults(write(WRONG))
    near = {
        "sede": "did you mean seed?",
        "task.netwrk": "did you mean network?",
        "data.source.sice": "did you mean size?",
        "data.preprocess.chanels": "did you mean channels?",
        "local.epochs.strat": "did you mean start?",
        "local.optimizer.momentom": "did you mean momentum?",
        "local.rules.0.mew": "known keys: kind, mu",
        "local.rules.1": "did you mean fedprox?",
        "update.codec_up": "did you mean fp16?",
        "federation.regulator.0.limit": "add it",
        "stop.target.value": "add it",
        "local.rules.2": "give a name, or a mapping with `kind`",
    }
    assert {key: found[key].remedy for key in near} == near
    others = {
        "name",
        "device",
        "data.source.cases",
        "local.learning_rate",
        "local.batch_size",
        "federation.server.beta1",
    }
    assert found.keys() == near.keys() | others
    assert "'many'" in found["local.batch_size"].what and "below 0" in found["local.learning_rate"].what
    assert all(fault.where.startswith("study.yaml: ") for fault in found.values())


def test_known_keys_are_listed_when_none_is_near(write: Write) -> None:
    found = faults(write(changed(local="{optimizer: {kind: adam, zzz: 1}}")))
    assert found["local.optimizer.zzz"].remedy == "known keys: beta1, beta2, kind, weight_decay"


@pytest.mark.parametrize(
    ("section", "text", "key", "what"),
    [
        ("local", "{epochs: 0}", "local.epochs", "below 1"),
        ("local", "{epochs: 2.5}", "local.epochs", "whole"),
        ("local", "{epochs: {kind: cosine, start: 4, rounds: 9}}", "local.epochs", "may become 0"),
        ("local", "{epochs: true}", "local.epochs", "True"),
        ("local", "{learning_rate: .nan}", "local.learning_rate.value", "finite"),
        ("local", "{gradient_clip: .inf}", "local.gradient_clip", "finite"),
        ("local", "{rules: [{kind: fedprox, mu: -1}]}", "local.rules.0.mu", "below 0"),
        ("local", "{rules: fedprox}", "local.rules", "list"),
        ("seed", "-1", "seed", "-1"),
        ("seed", "4294967296", "seed", "4294967296"),
        ("stop", "{rounds: 0}", "stop.rounds", "0"),
        ("update", "{codec_up: {}}", "update.codec_up", "kind"),
    ],
)
def test_values_that_make_no_sense(write: Write, section: str, text: str, key: str, what: str) -> None:
    found = faults(write(changed(**{section: text})))
    assert list(found) == [key] and what in str(found[key])


# YAML


def test_numbers_without_a_point_are_numbers(write: Write) -> None:
    study = load_study(write(changed(local="{learning_rate: 1e-3}")), ["local.rules=[fedprox]"])
    assert study.local.learning_rate.model_dump() == {"kind": "constant", "value": 1e-3}
    assert parse("[1e-3, 1E5, -2.e3, .5e-1, 1e3x, 0x1F, 1.5]") == [1e-3, 1e5, -2e3, 0.05, "1e3x", 31, 1.5]


def test_a_key_that_is_there_twice_is_a_fault(write: Write) -> None:
    with pytest.raises(StudyError, match="'seed' is there twice"):
        load_study(write(BASE + "seed: 1\nseed: 2\n"))
    assert parse("a: {x: 1}\nb: {x: 1}\nc: &c {y: 1}\nd: {<<: *c, y: 2}") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"y": 1},
        "d": {"y": 2},
    }


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1, 2", "YAML"),
        ("a: 2024-99-99", "YAML"),
        ("a: !!python/object/apply:os.system [echo]", "YAML"),
        ("[" * 3000, "YAML"),
        ("", "mapping"),
        ("- 1", "mapping"),
        ("just text", "mapping"),
    ],
)
def test_files_that_are_no_study(write: Write, text: str, what: str) -> None:
    path = write(text)
    with pytest.raises(StudyError, match=what) as caught:
        load_study(path)
    assert str(path) in str(caught.value) and caught.value.faults[0].remedy


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(StudyError, match="YAML"):
        load_study(path)
    with pytest.raises(StudyError):
        load_study(tmp_path)


def test_a_file_that_is_not_there_names_its_neighbours(write: Write, tmp_path: Path) -> None:
    write(BASE)
    with pytest.raises(StudyError, match=r"does not exist.*study\.yaml"):
        load_study(tmp_path / "sudy.yaml")


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error)


# --set


def overridden(path: Path, *overrides: str) -> dict[str, Any]:
    return load_study(path, overrides).to_json()


def test_set_reaches_every_level(write: Write) -> None:
    path = write(changed(local="{epochs: 2, rules: [fedprox, sgd]}", federation="{server: momentum}"))
    study = overridden(
        path,
        "seed=7",
        "local.batch_size=4",
        "local.learning_rate=1e-4",
        "local.epochs.kind=adacomm",
        "local.epochs.start=9",
        "local.rules.0.mu=0.5",
        "local.rules.-1=fedprox",
        "local.rules.1=sgd",
        "federation.server.beta=0.5",
        "federation.regulator=[finite]",
        "evaluation.unseen=[x, y]",
        "stop.target={metric: auroc, value: 0.9}",
        "description=a = b",
    )
    assert study["seed"] == 7 and study["local"]["batch_size"] == 4
    assert study["local"]["learning_rate"]["value"] == 1e-4
    assert study["local"]["epochs"]["kind"] == "adacomm" and study["local"]["epochs"]["start"] == 9
    assert [rule["kind"] for rule in study["local"]["rules"]] == ["fedprox", "sgd"]
    assert study["local"]["rules"][0]["mu"]["value"] == 0.5
    assert study["federation"]["server"] == {
        "kind": "momentum",
        "learning_rate": 1.0,
        "beta": 0.5,
        "nesterov": True,
    }
    assert [rule["kind"] for rule in study["federation"]["regulator"]] == ["finite"]
    assert study["evaluation"]["unseen"] == ["x", "y"] and study["description"] == "a = b"
    assert study["stop"]["target"]["value"] == 0.9


def test_set_null_clears(write: Write) -> None:
    path = write(changed(local="{gradient_clip: 3}"))
    assert overridden(path, "local.gradient_clip=null")["local"]["gradient_clip"] is None


@pytest.mark.parametrize(
    "override",
    [
        "seed",
        "=3",
        "",
        "local.rules.0.mu=1",
        "local.rules.7=sgd",
        "local.rules.x=sgd",
        "local.rules.0.mu.value.deep=1",
        "local.batch_size=[",
        "local..batch_size=3",
        "seed.deep.er=1",
        "sed=1",
        "task.classes.5=x",
        "data.source.size.0.kind=x",
    ],
)
def test_overrides_that_cannot_be(write: Write, override: str) -> None:
    path = write(changed(local="{rules: [sgd]}"))
    with pytest.raises(StudyError) as caught:
        load_study(path, [override])
    assert all(fault.what for fault in caught.value.faults)


def test_faults_of_overrides_and_of_the_file_come_together(write: Write) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(write(BASE + "sede: 3\n"), ["nonsense", "task.classes.9=x"])
    text = str(caught.value)
    assert "nonsense" in text and "sede" in text and "task.classes.9=x" in text


def test_loading_leaves_defaults_alone(write: Write) -> None:
    path = write(BASE)
    before = overridden(path)
    overridden(path, "local.epochs=5", "federation.server=momentum", "local.rules=[fedprox]")
    assert overridden(path) == before


# relative paths, JSON


def test_a_relative_source_is_relative_to_the_study(write: Write, tmp_path: Path) -> None:
    text = BASE.replace(
        BASE[BASE.index("{kind: synthetic") : BASE.index("\n  preprocess")], "{kind: datalist, path: x/y}"
    )
    source = load_study(write(text)).data.source
    assert source.kind == "datalist" and source.path == tmp_path / "x" / "y"


FULL = changed(
    local="""{epochs: {kind: adacomm, start: 4}, learning_rate: {kind: cosine, start: 0.1, rounds: 9},
  optimizer: {kind: sgd, momentum: 0.9}, rules: [{kind: fedprox, mu: {kind: adaptive_mu, step: 0.2}}]}""",
    update="{codec_up: fp16, memory: {kind: error_feedback, decay: 0.5}}",
    federation="""{schedule: {kind: uniform, fraction: 0.3}, server: {kind: adam, tau: 0.01},
  regulator: [finite, {kind: norm_limit, limit: 3}, median_distance, {kind: validation, metric: auroc}]}""",
    evaluation="{unseen: [e], public: e}",
    stop="{rounds: 5, target: {metric: auroc, value: 0.9}, patience: 3}",
)


@pytest.mark.parametrize("text", [BASE, FULL])
def test_json_round_trip(write: Write, text: str) -> None:
    study = load_study(write(text))
    again = study_from_json(json.loads(json.dumps(study.to_json(), allow_nan=False)))
    assert again == study and again.to_json() == study.to_json()
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_yaml_of_a_study_is_the_study(write: Write, tmp_path: Path) -> None:
    study = load_study(write(FULL))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(study.to_json()), encoding="utf-8")
    assert load_study(path) == study


def test_the_configurations_that_ship_are_studies() -> None:
    shipped = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert shipped
    for path in shipped:
        study = load_study(path)
        assert study_from_json(study.to_json()) == study


# site files


def test_site_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("name: b\ndata: images\npolicy: {minimum_cases: 9}\n")
    (tmp_path / "a.yml").write_text("name: a\nfault: {kind: scale, factor: 50}\n")
    (tmp_path / "notes.txt").write_text("not a site")
    sites = load_sites(tmp_path)
    assert [site.name for site in sites] == ["a", "b"]
    assert sites[1].data == tmp_path / "images" and sites[1].policy.minimum_cases == 9
    assert sites[0].fault is not None and sites[0].fault.factor == 50


def test_every_wrong_site_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: one\npolicyy: {}\n")
    (tmp_path / "b.yaml").write_text("name: two\npolicy: {minimum_case: 3}\n")
    (tmp_path / "c.yaml").write_text("name: [")
    (tmp_path / "d.yaml").write_text("name: same\n")
    (tmp_path / "e.yaml").write_text("name: same\n")
    with pytest.raises(StudyError) as caught:
        load_sites(tmp_path)
    text = str(caught.value)
    assert "a.yaml: policyy" in text and "did you mean policy?" in text
    assert "b.yaml: policy.minimum_case" in text and "did you mean minimum_cases?" in text
    assert "c.yaml" in text and "'same'" in text


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "with space", ".hidden", "x" * 81])
def test_names_that_cannot_be_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"name": name}))
    with pytest.raises(StudyError, match="name"):
        load_site_file(path)


def test_no_site_files(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no site file"):
        load_sites(tmp_path)
    with pytest.raises(StudyError, match="not a folder"):
        load_sites(tmp_path / "none")


def test_reading_a_study_imports_no_torch(write: Write) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom medfl.study.load import load_study\nload_study(Path(sys.argv[1]))\n"
        "import medfl.study.sources\n"
        "print(sorted(name for name in ('torch', 'monai', 'matplotlib', 'sqlalchemy') if name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(write(FULL))], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

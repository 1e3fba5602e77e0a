"""A study's hash is of what it says, not of how it is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from medfl.study.digest import study_hash
from medfl.study.load import load_study, study_from_json

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/**/*.yaml"))


def reversed_keys(value: Any) -> Any:
    return {key: reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_style_order_and_defaults_play_no_part(path: Path, tmp_path: Path):
    study = load_study(path)
    raw = yaml.safe_load(path.read_text())
    assert study_hash(study_from_json(study.to_json())) == study_hash(study), "coordinator and site compute the same"
    written = {
        "flow": yaml.safe_dump(raw, default_flow_style=True),
        "order": yaml.safe_dump(reversed_keys(raw), sort_keys=False),
        "explicit": yaml.safe_dump(study.to_json()),
    }
    for style, text in written.items():
        other = tmp_path / f"{style}.yaml"
        other.write_text(text)
        again = load_study(other)
        if again.data.source.kind == "datalist":  # the path of images is relative to the file
            again = again.model_copy(update={"data": study.data})
        assert study_hash(again) == study_hash(study), style


def test_every_change_counts(tiny: Any):
    study = load_study(tiny.study)
    known = {study_hash(study)}
    changes = ["stop.rounds=4", "seed=4", "description=x", "local.batch_size=5", "local.learning_rate=0.0050001"]
    for change in [*changes, "update.channel=masks", "task.classes=[pneumonia, normal]", "evaluation.unseen=[]"]:
        key = change.split("=")[0]
        changed = [change, "update.clip=1", "federation.regulator=[finite]"] if key == "update.channel" else [change]
        known.add(study_hash(load_study(tiny.study, changed)))
    assert len(known) == 9

"""What the documentation shows is true: commands parse, studies load, examples run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from medfl.cli.main import app
from medfl.coordinator.settings import CoordinatorSettings
from medfl.errors import StudyError
from medfl.study.load import load_site_file, load_study

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
MEANT_TO_FAIL = ("batchsize", "task.teacher=null\n", "task.teacher.width=12")
"""Parts of commands that a page shows for the error they give."""
FROM_A_PLUGIN = "bf16"


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0]
        return f"{self.page.relative_to(ROOT)}: {self.title or first}"


def blocks(language: str) -> list[Block]:
    found = [Block(page, *match) for page in PAGES for match in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language == language]


def commands() -> Iterator[str]:
    lines = (line for block in blocks("sh") for line in block.text.splitlines())
    return (line for line in dict.fromkeys(lines) if line.startswith("medfl "))


def parsed(line: str) -> dict[str, Any]:
    """The parameters of a command as typer reads them; an error for an unknown command, option or value."""
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return dict(command.make_context("medfl", words).params)


def study_of(line: str) -> tuple[Path, list[str]] | None:
    """The shipped study and the overrides of a command that names one."""
    given = parsed(line)
    study = given.get("study")
    if study is None or not (ROOT / study).is_file():
        return None
    return ROOT / study, given["overrides"] or []


def block(name: str) -> str:
    return next(block.text for block in [*blocks("python"), *blocks("toml")] if block.title == name)


def run(folder: Path, *words: str) -> str:
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "MEDFL_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def medfl(folder: Path, *words: str) -> str:
    return run(folder, "-c", "from medfl.cli.main import app; app()", *words)


def test_there_are_examples() -> None:
    assert len(list(commands())) > 20
    assert len(blocks("yaml")) >= 5


@pytest.mark.parametrize("line", list(commands()))
def test_commands_are_those_of_medfl(line: str) -> None:
    parsed(line)


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(Exception, match="--round"):
        parsed("medfl simulate configs/pneumonia.yaml --round 3")


@pytest.mark.parametrize("line", [line for line in commands() if study_of(line)])
def test_studies_of_commands_load(line: str) -> None:
    found = study_of(line)
    assert found is not None
    if FROM_A_PLUGIN in line or any(part in f"{line}\n" for part in MEANT_TO_FAIL):
        with pytest.raises(StudyError):
            load_study(*found)
    else:
        load_study(*found)


@pytest.mark.parametrize("shown", blocks("yaml"), ids=str)
def test_yaml_is_a_study_or_a_site(shown: Block, tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    content = yaml.safe_load(shown.text)
    if shown.title == "coordinator.yaml":
        CoordinatorSettings.model_validate({"name": "lead", "addresses": ["fl.example.org"], **content})
        return
    if shown.title == "part of a study":
        task = content.get("task", {"kind": "classification"})["kind"]
        whole = {"classification": "pneumonia", "detection": "lesion", "segmentation": "segmentation"}[task]
        base = yaml.safe_load((ROOT / "configs" / f"{whole}.yaml").read_text(encoding="utf-8"))
        content = {**base, **content, "local": {**base["local"], **content.get("local", {})}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    load_study(path) if "task" in content else load_site_file(path)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The example package, as pip would install it."""
    (tmp_path / "bf16.py").write_text(block("bf16.py"), encoding="utf-8")
    about = tmp_path / "medfl_bf16-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: medfl-bf16\nVersion: 0.1.0\n", encoding="utf-8")
    entry = re.search(r'entry-points\."(.+)"\]\n(.+) = "(.+)"', block("pyproject.toml"))
    assert entry is not None
    group, name, target = entry.groups()
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n", encoding="utf-8")
    return tmp_path


def test_the_plugin_passes_its_own_tests(package: Path) -> None:
    (package / "test_bf16.py").write_text(block("test_bf16.py"), encoding="utf-8")
    assert "4 passed" in run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bf16.py")


def test_a_study_can_choose_the_plugin(package: Path) -> None:
    choice = [word for line in commands() if FROM_A_PLUGIN in line for word in shlex.split(line)[2:]]
    small = ["--set", "data.source.cases=24", "--set", "local.max_steps=1", "--rounds", "1", "--workers", "1"]
    medfl(package, "simulate", str(ROOT / choice[0]), *choice[1:], *small, "--no-report", "--out", "run")
    assert (package / "run" / "summary.json").is_file()


def test_the_run_from_python(tmp_path: Path) -> None:
    for name in ("configs", "sites"):
        shutil.copytree(ROOT / name, tmp_path / name)
    text = block("run.py")
    small = text.replace('"stop.rounds=2"', '"stop.rounds=1", "data.source.cases=24", "local.max_steps=1"')
    assert small != text
    (tmp_path / "run.py").write_text(small, encoding="utf-8")
    first, last = run(tmp_path, "run.py").splitlines()
    assert first.startswith("1 ")
    assert 0 <= float(last) <= 1

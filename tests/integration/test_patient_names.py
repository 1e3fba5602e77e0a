"""Names of patients in names of files: in the hospital's own files, and nowhere else."""

import json
from collections.abc import Iterable
from pathlib import Path

from toys.federations import Federation, call, until

NAMES = ("MUELLER_HANS", "Schmidt Anna", "o'brien")


def spoil(folder: Path, count: int | None = None) -> None:
    """Give images of a site patients' names, and make them unreadable; all of them without a count."""
    path = folder / "datalist.json"
    datalist = json.loads(path.read_text())
    entries = [entry for part in ("training", "test") for entry in datalist.get(part, [])][:count]
    for number, entry in enumerate(entries):
        name = f"{NAMES[number % len(NAMES)]} {number}"
        image = folder / f"{name}.png"
        (folder / entry["image"]).unlink()
        # one is missing, one is none, one is cut off
        if number % 3:
            image.write_bytes(b"no image at all" if number % 3 == 1 else b"\x89PNG\r\n\x1a\n" + bytes(40))
        entry["image"], entry["patient"] = image.name, name
    path.write_text(json.dumps(datalist))


def holding(paths: Iterable[Path]) -> list[str]:
    """Files in which one of the names is, as text or as JSON has it."""
    return [str(path) for path in paths if path.is_file() and any(name.encode() in path.read_bytes() for name in NAMES)]


def test_neither_logs_nor_messages_name_patients(tmp_path: Path) -> None:
    with Federation(tmp_path, stop={"rounds": 1}).set_up() as federation:
        spoil(tmp_path / "data" / "hospital-a", 6)
        spoil(tmp_path / "data" / "hospital-c")
        lead = federation.coordinator("--minimum", 2, "--log", "json", "--json")
        for site in federation.sites:
            home = federation.site_home(site)
            federation._start(site, "site", "start", "--home", home, "--log", "json")
        assert lead.end() == 0, lead.text
        until(lambda: federation.status("hospital-c").get("state") == "stopped", why=lead.text)
        sent = federation.summary()["data"]["hospital-a"]["skipped"]
        assert len(sent) == 6
        assert len(set(sent.values())) >= 2

        logs = [service.log for service in federation.started]
        assert holding([*logs, *federation.home.rglob("*")]) == []
        # but the data steward can see what is wrong
        home = federation.site_home("hospital-a")
        assert str(home / "work" / "skipped.json") in holding(home.rglob("*"))
        assert NAMES[0] in call("site", "status", "--home", home)
        assert NAMES[0] in call("site", "status", "--home", federation.site_home("hospital-c"))
        assert "images cannot be used" in lead.text

        for service in federation.started[1:]:
            lines = [json.loads(line) for line in service.text.splitlines()]
            assert lines
            assert all({"at", "level", "logger", "message"} <= line.keys() for line in lines)


def test_the_search_would_find_a_name(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"left out {NAMES[1]}.png: broken")
    assert holding([path]) == [str(path)]

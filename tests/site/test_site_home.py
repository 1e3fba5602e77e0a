"""A site's home: the hospital's file, its patients' keys, and nothing that others can open."""

import json
import re
import stat
from pathlib import Path

import pytest

from medfl.data.base import Case
from medfl.errors import InputError, MedflError, RunError, StudyError
from medfl.site import home as homes
from medfl.site.home import SiteHome

SITE = "# the steward's words\nname: north\ndata: images # here\npolicy: {minimum_cases: 8}\n"


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "north.yaml").write_text(SITE)
    return SiteHome.create(tmp_path / "home", tmp_path / "given" / "north.yaml")


def test_the_copy_keeps_the_words_and_the_place_of_the_images(home: SiteHome, tmp_path: Path):
    assert home.site.data == (tmp_path / "given" / "images").resolve()
    assert (home.name, home.site.policy.minimum_cases, home.site.policy.approve) == ("north", 8, "ask")
    assert home.site_file.read_text().startswith("# the steward's words\nname: north\n")


def test_everything_is_the_owners_alone(home: SiteHome):
    home.audit.append("started", {})
    home.participation.withdraw(["4711"])
    home.pause("me")
    for path in [home.folder, *home.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    home.site_file.chmod(0o644)
    with pytest.raises(RunError, match="can be opened by other users"):
        SiteHome.open(home.folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: north\nfault: {kind: nan}\n", "is for simulations"),
        ("name: coordinator\n", "has a meaning of its own"),
        (
            "name: north\ndata: &there images\nshared: [{manifest: *there, consent: v}]\n",
            "anchors",
        ),
        ("name: north\ndata: |\n  images\npolicy: {minimum_cases: 8}\n", "a line of its own"),
    ],
)
def test_a_file_that_will_not_do_leaves_nothing(tmp_path: Path, text: str, said: str):
    (tmp_path / "north.yaml").write_text(text)
    with pytest.raises(StudyError, match=said):
        SiteHome.create(tmp_path / "home", tmp_path / "north.yaml")
    assert not (tmp_path / "home").exists()


CONSENT = "DUA 7, images of manifest: cohort-B only, until 2027"
TRICKY = [
    f"name: north\nshared:\n  - {{manifest: a.json, consent: '{CONSENT}'}}\n",
    f"name: north\nshared:\n  - {{consent: '{CONSENT}', manifest: a.json}}\n",
    f"name: north\nshared:  # manifest: b.json\n  - consent: >-\n      {CONSENT}\n    manifest: a.json\n",
    f"{{name: north, data: images, shared: [{{'manifest': 'a.json', consent: \"{CONSENT}\"}}]}}\n",
    f"name: north\ndata:\n  images\nshared: [{{? manifest : a.json, consent: '{CONSENT}'}}]\n",
]


def by_pattern(text: str, values: dict[tuple[str | int, ...], str]) -> str:
    """The fake: looks for the key's name, wherever it is."""
    following = iter(values.values())
    return re.sub(r"\bmanifest:\s*[^,}\n]*", lambda _: f"manifest: {json.dumps(next(following, ''))}", text)


@pytest.mark.parametrize("text", TRICKY)
def test_no_other_word_of_the_file_is_changed(tmp_path: Path, text: str):
    (tmp_path / "north.yaml").write_text(text)
    site = SiteHome.create(tmp_path / "home", tmp_path / "north.yaml").site
    assert [(entry.manifest, entry.consent) for entry in site.shared] == [(tmp_path / "a.json", CONSENT)]
    copied = (tmp_path / "home" / "site.yaml").read_text()
    for path in (tmp_path / "a.json", tmp_path / "images"):
        copied = copied.replace(json.dumps(str(path)), path.name)
    assert copied == text.replace("'a.json'", "a.json")


def test_a_copy_by_pattern_would_change_the_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(homes, "rewritten", by_pattern)
    (tmp_path / "north.yaml").write_text(TRICKY[0])
    site = SiteHome.create(tmp_path / "home", tmp_path / "north.yaml").site
    assert site.shared[0].consent != CONSENT


def test_a_home_is_made_once_and_opened_where_there_is_one(home: SiteHome, tmp_path: Path):
    with pytest.raises(InputError, match="is a site's home already"):
        SiteHome.create(home.folder, tmp_path / "given" / "north.yaml")
    with pytest.raises(InputError, match="is not a site's home"):
        SiteHome.open(tmp_path / "given")
    (home.folder / "salt").unlink()
    with pytest.raises(RunError, match="could not be recognised"):
        SiteHome.open(home.folder).key_of("4711")


def test_the_policy_counts_as_it_is_now(home: SiteHome):
    home.site_file.write_text(SITE.replace("minimum_cases: 8", "minimum_cases: 9"))
    assert home.site.policy.minimum_cases == 9


def test_pause_and_resume_are_seen_by_others_and_logged(home: SiteHome):
    other = SiteHome.open(home.folder)
    assert other.paused is None and not other.resume("me")
    home.pause("dr. a", "maintenance")
    assert (other.paused.by, other.paused.note) == ("dr. a", "maintenance")
    assert other.resume("dr. b") and home.paused is None
    assert [(record.kind, dict(record.body)) for record in home.audit.entries()[1:]] == [
        ("paused", {"by": "dr. a", "note": "maintenance"}),
        ("resumed", {"by": "dr. b"}),
    ]
    (home.folder / "paused.json").write_text("{")
    with pytest.raises(MedflError, match="cannot be read"):
        _ = home.paused


def test_a_withdrawn_patient_is_left_out_however_the_case_names_them(home: SiteHome):
    cases = [Case(f"{n}.png", Path(f"{n}.png"), patient=name) for n, name in enumerate(["4711", "north/4711", "8", ""])]
    assert home.without_withdrawn(cases) == cases
    home.participation.withdraw([" 4711 ", "3.png"])
    assert [case.patient for case in SiteHome.open(home.folder).without_withdrawn(cases)] == ["8"]


def test_no_identifier_is_kept_and_keys_are_each_homes_own(home: SiteHome, tmp_path: Path):
    home.participation.begin("run", "ab" * 32, ["patient-4711"])
    home.participation.withdraw(["patient-4711"])
    for path in home.folder.rglob("*"):
        assert path.is_dir() or b"4711" not in path.read_bytes()
    other = SiteHome.create(tmp_path / "other", tmp_path / "given" / "north.yaml")
    assert other.key_of("patient-4711") != home.key_of("patient-4711") == home.key_of("north/patient-4711")


def test_a_withdrawal_cannot_be_taken_back_unseen(home: SiteHome):
    home.participation.withdraw(["4711"])
    path = home.studies / "participation.jsonl"
    record = json.loads(path.read_bytes().splitlines()[-1])
    path.write_bytes(path.read_bytes().replace(record["body"]["patients"][0].encode(), b"0" * 64))
    with pytest.raises(RunError, match="its content does not match its hash"):
        SiteHome.open(home.folder).without_withdrawn([Case("a", Path("a"))])

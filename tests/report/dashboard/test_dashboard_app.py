import json
import sys
import threading
from html.parser import HTMLParser

import pytest
from toys.browser import TOKEN, Client, until
from toys.watched import PRIVATE, play, play_on, record_of, study_of

from medfl.errors import InputError
from medfl.report.dashboard.drawing import MAPPED_SITES, site_map
from medfl.report.dashboard.server import serve
from medfl.report.dashboard.state import LiveState
from medfl.report.dashboard.view import FRAGMENTS, Pages

PATHS = ("/", "/events", "/api/state", "/assets/dashboard.js", "/assets/dashboard.css", "/assets/icon.svg")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Tags that are not closed in order, identifiers, and everything that the content policy forbids."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.faults, self.text = [], [], [], []
        self.feed(html)
        self.faults += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.faults += [f"{name} on {tag}" for name in named if name == "style" or name.startswith("on")]
        self.faults += ["inline script"] if tag == "script" and "src" not in named else []
        self.faults += [f"{tag} inline"] if tag == "style" else []
        self.faults += [f"from elsewhere: {value}" for name, value in attrs if name in ("src", "href") and ":" in value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} closes something else")

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_without_the_token_but_health(dashboard):
    port = int(dashboard.address.rstrip("/").rpartition(":")[2])
    stranger = Client(port)
    assert stranger.get("/healthz")[::2] == (200, "ok\n")
    for path in (*PATHS, "/?token=", "/?token=wrong", f"/?token={TOKEN[:-1]}", f"/events?token={TOKEN}", "/nothing"):
        status, headers, text = stranger.get(path)
        assert status == 401 and "set-cookie" not in headers and "aachen" not in text, path
    for cookie in ("medfl-000000000000=", "medfl-x=" + TOKEN, "=", "a" * 5000):
        assert Client(port, cookie).get("/")[0] == 401


def test_token_is_exchanged_for_a_strict_cookie_and_redirected_away(dashboard):
    port = int(dashboard.address.rstrip("/").rpartition(":")[2])
    status, headers, _ = Client(port).get(dashboard.url.partition(f":{port}")[2])
    cookie = headers["set-cookie"]
    assert (status, headers["location"]) == (303, "/") and TOKEN not in cookie
    assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
    reader = Client(port, cookie.partition(";")[0])
    assert all(reader.get(path, "HEAD")[0] == 200 for path in PATHS)
    other = serve(LiveState(study_of()), token="another-token-of-the-tests")
    try:
        assert Client(int(other.address.rstrip("/").rpartition(":")[2]), reader.cookie).get("/")[0] == 401
    finally:
        other.stop()


@pytest.mark.parametrize("path", [*PATHS[2:], "/", "/healthz", "/nothing", "/?token=wrong"])
def test_every_answer_has_the_security_headers(client, path):
    for who in (client, Client(client.port)):
        _, headers, _ = who.get(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store" and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80"])
def test_other_host_names_are_refused(client, host):
    status, _, text = client.get("/", Host=host)
    assert status == 400 and "aachen" not in text
    assert client.get("/", Host=f"LOCALHOST:{client.port}")[0] == 200


def test_hosts_can_be_named(state):
    found = serve(state, token=TOKEN, hosts=["fl.hospital.example"])
    try:
        port = int(found.address.rstrip("/").rpartition(":")[2])
        assert Client(port).get("/healthz", Host="fl.hospital.example")[0] == 200
    finally:
        found.stop()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_read_only(client, method):
    for path in ("/", "/api/state", f"/?token={TOKEN}", "/healthz"):
        assert client.get(path, method)[0] == 405


def test_pages_on_other_ports_cannot_read(client):
    for site in ("same-site", "cross-site"):
        assert client.get("/api/state", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert client.get("/events", Sec_Fetch_Site=site, Sec_Fetch_Mode="cors")[0] == 403
    assert client.get("/api/state", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200


def test_page_is_complete_without_scripts(client, state):
    play_on(state)
    status, headers, html = client.get("/")
    found = Checker(html)
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert not found.faults and len(found.ids) == len(set(found.ids))
    assert {f"part-{name}" for name in FRAGMENTS} <= set(found.ids)
    assert '<noscript><meta http-equiv="refresh"' in html and 'class="skip" href="#main"' in html
    text = " ".join(" ".join(found.text).split())
    for words in ("Round 7 of 12", "step 14 of 40", "connection lost", "no heartbeat for 30 s", "none promised",
                  "refused by norm_history", "n 200", "32.4 MB", "evaluates only"):  # fmt: skip
        assert words in text, words
    assert html.count("<caption>") == html.count("<table") and "4711" not in html


@pytest.mark.parametrize("private", [False, True])
def test_every_moment_of_a_run_has_a_page(private, make_run):
    state = LiveState(study_of(**(PRIVATE if private else {})))
    empty, moments = Pages(state), []
    empty.update()
    moments.append(empty.page())
    play(state, 0, private=private)
    empty.update()
    moments.append(empty.page())
    for rounds in (1, 12, 60):
        state = LiveState(study_of(stop={"rounds": 100}, **(PRIVATE if private else {})))
        play(state, rounds, private=private, planned=100)
        pages = Pages(state)
        pages.update()
        moments.append(pages.page())
    for folder in (make_run(ended=True), make_run(folder="other", ended=False, evaluated=False)):
        pages = Pages(LiveState.from_run(folder))
        pages.update()
        moments.append(pages.page())
    for html in moments:
        assert not Checker(html).faults


@pytest.mark.parametrize("many", [0, 1, 2, 10, 11, 25, 60])
def test_maps_of_few_and_many_sites(many):
    state = LiveState(study_of())
    for place in range(many):
        state.presence(f"a-hospital-with-a-long-name-{place:02d}", "ready")
    for width in (600, 340):
        drawn = site_map(state.snapshot()["sites"], width)
        assert len(drawn.nodes) == min(many, MAPPED_SITES)
        spots = [(node.x, node.y) for node in drawn.nodes]
        assert all(20 <= x <= width - 20 and 20 <= y <= drawn.height - 20 for x, y in spots)
        near = [1 for i, a in enumerate(spots) for b in spots[:i] if abs(a[0] - b[0]) < 40 and abs(a[1] - b[1]) < 60]
        assert not near, "two sites lie on each other"
    pages = Pages(state)
    pages.update()
    assert not Checker(pages.page()).faults


def test_names_and_reasons_are_escaped():
    state, evil = LiveState(study_of()), '<img src=x onerror="alert(1)">'
    play(state, 1, sites=(evil, "bergen", "cluj"))
    state.presence(evil, evil, evil)
    record = record_of(2, (evil, "bergen"))
    record["verdicts"]["bergen"] |= {"outcome": "refuse", "rule": evil, "reason": evil}
    state.round_finished(record | {"void": evil})
    pages = Pages(state)
    pages.update()
    for html in (pages.page(), *pages.since(0).values()):
        assert "<img" not in html and not Checker(html).faults
    assert "&lt;img" in pages.page()


def test_json_and_its_changes(client, state):
    found = json.loads(client.get("/api/state")[2])
    assert found == json.loads(json.dumps(state.snapshot()))
    state.local_progress("aachen", 3, 40)
    changed = json.loads(client.get(f"/api/state?since={found['version']}")[2])
    assert set(changed) == {"epoch", "version", "sites"}
    for odd in ("x", "-1", "9" * 50, "%00", "1.5"):
        assert set(json.loads(client.get(f"/api/state?since={odd}")[2])) == set(found)


def test_stream_sends_what_changed_and_takes_up_where_it_was(client, state):
    stream = client.stream(f"/events?since={state.epoch}-{state.version}")
    assert stream.event() == {"event": "beat", "data": ""}
    state.presence("delft", "lost", "no heartbeat for 30 s")
    cursor, data = stream.change()
    assert (
        set(data["parts"]) == {"tiles", "map", "sites", "metrics", "log"} and cursor == f"{state.epoch}-{state.version}"
    )
    assert (
        "connection lost" in data["parts"]["sites"] and data["news"] == "delft: connection lost: no heartbeat for 30 s"
    )
    stream.close()
    state.round_finished(record_of(7))
    again = client.stream("/events", Last_Event_ID=cursor)
    assert "rounds" in again.change()[1]["parts"]
    again.close()
    other = client.stream("/events", Last_Event_ID="ffffffff-999999")
    assert set(other.change()[1]["parts"]) == set(FRAGMENTS), "a reader of another coordinator gets everything"
    other.close()


def test_streams_are_few_and_given_back(client, monkeypatch):
    monkeypatch.setattr("medfl.report.dashboard.app.STREAMS", 3)
    streams = [client.stream() for _ in range(3)]
    for stream in streams:
        stream.event()
    status, headers, _ = client.get("/events")
    assert status == 503 and headers["retry-after"]
    assert client.get("/")[0] == 200
    streams[0].close()

    def free():
        stream = client.stream()
        ok = stream.answer.status == 200
        stream.close()
        return ok

    until(free)
    for stream in streams[1:]:
        stream.close()


def test_heartbeats_while_nothing_happens(client, state, monkeypatch):
    monkeypatch.setattr("medfl.report.dashboard.app.HEARTBEAT", 0.2)
    stream = client.stream(f"/events?since={state.epoch}-{state.version}")
    assert [stream.event()["event"] for _ in range(3)] == ["beat"] * 3
    stream.close()


def test_a_page_that_fails_says_no_more_than_that(client, monkeypatch, caplog):
    def broken(_):
        raise ValueError("a secret of the server")

    monkeypatch.setattr(Pages, "page", broken)
    status, headers, text = client.get("/")
    assert status == 500 and "secret" not in text and "content-security-policy" in headers
    until(lambda: "a secret of the server" in caplog.text)


def test_stop_ends_streams_and_frees_the_port(state):
    found = serve(state, token=TOKEN)
    port = int(found.address.rstrip("/").rpartition(":")[2])
    reader = Client(port)
    reader.enter(TOKEN)
    stream = reader.stream()
    stream.event()
    found.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "medfl-dashboard"]
    found.stop()
    stream.close()
    again = serve(state, port=port)
    assert TOKEN not in again.url and again.address == f"http://127.0.0.1:{port}/"
    with pytest.raises(InputError, match="choose a free port"):
        serve(state, port=port)
    again.stop()


def test_what_cannot_be_served(state, monkeypatch):
    for host in ("0.0.0.0", "::", "192.0.2.1", "fl.hospital.example"):
        with pytest.raises(InputError, match="ssh -L"):
            serve(state, host=host)
    with pytest.raises(InputError, match="guessed"):
        serve(state, token="short")
    with pytest.raises(InputError, match="cannot be used"):
        serve(state, port=70000)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"pip install 'medfl\[dashboard\]'"):
        serve(state)


def test_steps_are_cheap_for_readers(state):
    pages = Pages(state)
    pages.update()
    pages.since(0)
    known = pages.update()
    state.local_progress("aachen", 3, 40)
    pages.update()
    assert set(pages.since(known)) == {"tiles", "map", "sites", "metrics"}
    first = pages.since(known)
    assert all(pages.since(known)[name] is html for name, html in first.items()), "drawn again for each reader"

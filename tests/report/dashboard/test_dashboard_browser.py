"""The page in a real browser: what arrives without a reload, the keyboard, colours, small screens, no JavaScript."""

import struct

import pytest
from toys.browser import TOKEN, until
from toys.watched import PRIVATE, play, play_on, record_of, study_of

from medfl.report.dashboard.server import serve
from medfl.report.dashboard.state import LiveState

TAB = "\ue004"
ENTER = "\ue007"

FOCUSED = """
const one = document.activeElement, style = getComputedStyle(one);
const name = one.id || one.className || one.textContent.trim();
return [name, one.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
"""
CONTRAST = """
const light = (colour) => {
  const linear = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const under = (one) => {
  for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
const kinds = "p, td, th, b, span, small, h1, h2, h3, caption, summary, button, footer, li";
for (const one of document.querySelectorAll(kinds)) {
  if (!one.textContent.trim() || !one.getClientRects().length) continue;
  const [a, b] = [light(getComputedStyle(one).color), light(under(one))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push([one.textContent.trim().slice(0, 30), ratio]);
}
return found;
"""


@pytest.fixture
def page(browser, dashboard):
    """The browser on the page of `state`, in the light and on a wide screen."""
    browser.scripts(True)
    browser.scheme("light")
    browser.screen(1280, 900)
    browser.open(dashboard.url)
    until(lambda: browser.run("return document.getElementById('link').textContent") == "Live")
    yield browser
    complaints = browser.complaints()
    browser.open("about:blank")
    assert not complaints


def words(browser, part):
    return browser.run("return document.getElementById('part-' + arguments[0]).innerText", part)


def test_the_token_leaves_the_address_and_the_page_goes_on_without_it(page, dashboard):
    assert page.run("return location.href") == dashboard.address
    assert TOKEN not in page.run("return document.documentElement.outerHTML + document.referrer + document.cookie")
    assert page.run("return document.cookie") == ""


def test_changes_arrive_without_a_reload(page, state):
    page.run("window.mark = 'still the same page'; document.getElementById('shapes').open = true")
    state.presence("delft", "lost", "no heartbeat for 30 s")
    until(lambda: "no heartbeat for 30 s" in words(page, "sites"))
    assert (
        page.run("return document.getElementById('news').textContent")
        == "delft: connection lost: no heartbeat for 30 s"
    )
    play_on(state)
    until(lambda: "step 14 of 40" in words(page, "sites") and "Round 7 of 12" in words(page, "tiles"))
    assert page.run("return document.title").startswith("Round 7 of 12")
    drawn = "return document.querySelector('#part-curve .look-0 polyline').getAttribute('points').split(' ').length"
    assert page.run(drawn) == 6
    state.round_finished(record_of(7))
    until(lambda: page.run(drawn) == 7)
    assert page.run("return document.querySelector('#part-rounds tbody tr').id") == "round-7"
    assert page.run("return window.mark") == "still the same page"
    assert page.run("return document.getElementById('shapes').open"), "a reader's opened details were closed"


def test_focus_and_scrolling_survive_changes(page, state):
    page.run("const log = document.querySelector('#part-log .tall'); log.focus(); log.scrollTop = 40")
    state.round_finished(record_of(7))
    until(lambda: "round 7 finished" in words(page, "log"))
    held = page.run(
        "const log = document.querySelector('#part-log .tall'); return [document.activeElement === log, log.scrollTop]"
    )
    assert held[0] and held[1] >= 40
    newest = page.run("return [...document.querySelectorAll('#part-log tbody tr')].map((row) => +row.id.slice(6))")
    assert newest == sorted(newest, reverse=True) and len(newest) == len(set(newest))


def test_pause_holds_changes_back_and_resume_shows_them(page, state):
    press = "document.getElementById('pause').click(); return document.getElementById('pause').textContent"
    assert page.run(press) == "Resume updates"
    state.presence("delft", "paused", "asked by its steward")
    reader = until(lambda: page.run("return document.getElementById('link').textContent") == "Paused")
    assert reader and "asked by its steward" not in words(page, "sites")
    assert page.run(press) == "Pause updates"
    until(lambda: "asked by its steward" in words(page, "sites"))


def test_everything_is_reached_by_the_keyboard_with_focus_to_be_seen(page):
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    seen = []
    for _ in range(12):
        page.press(TAB)
        seen.append(page.run(FOCUSED))
    names = [name for name, *_ in seen]
    assert names[0] == "skip" and "pause" in names
    tags = [tag for _, tag, *_ in seen]
    assert "SUMMARY" in tags and tags.count("DIV") >= 4, "tables that scroll must be reachable"
    assert all(style != "none" and width >= 2 for name, tag, style, width in seen if tag != "BODY"), seen
    page.run("document.querySelector('.skip').focus()")
    page.press(ENTER)
    assert page.run("return document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(page, state, scheme, tmp_path):
    play_on(state)
    page.scheme(scheme)
    until(lambda: "step 14 of 40" in words(page, "sites"))
    assert page.run(CONTRAST) == []
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(", ")) < 200) == (scheme == "dark")
    shot = page.shot()
    (tmp_path / f"{scheme}.png").write_bytes(shot)
    assert struct.unpack(">II", shot[16:24])[0] == 1280


def test_small_screens_scroll_only_downwards(page, state):
    play_on(state)
    page.screen(360, 780, mobile=True)
    until(lambda: page.run("return innerWidth") == 360)
    assert page.run("return document.documentElement.scrollWidth") <= 360
    shown = "return [...document.querySelectorAll('#part-map svg[role=img]')].map((one) => one.getClientRects().length)"
    assert page.run(shown) == [0, 1]
    texts = "[...document.querySelectorAll('#part-map .narrow-drawing text')]"
    assert min(page.run(f"return {texts}.map((one) => one.getBoundingClientRect().height)")) >= 9


def test_motion_can_be_turned_off(page, state):
    play_on(state)
    until(lambda: page.run("return document.querySelectorAll('.link.works').length"))
    moving = "return getComputedStyle(document.querySelector('.link.works')).animationName"
    assert page.run(moving) == "flow"
    page.scheme("light", motion="reduce")
    assert page.run(moving) == "none"


def test_without_scripts_the_page_is_whole_and_loads_itself_again(browser, dashboard, state):
    browser.scripts(False)
    try:
        browser.open(dashboard.url)
        text = browser.run("return document.body.innerText")
        assert "JavaScript is off" in text and "Round 6 of 12 done" in text and "Pause" not in text
        assert browser.run("return document.querySelectorAll('#part-curve polyline').length") > 2
        state.presence("delft", "lost", "no heartbeat for 30 s")
        until(lambda: "no heartbeat for 30 s" in browser.run("return document.body.innerText"), 25)
    finally:
        browser.scripts(True)


def test_a_coordinator_that_went_away_is_told_and_found_again(browser):
    state = LiveState(study_of(**PRIVATE))
    play(state, 2, private=True)
    first = serve(state, token=TOKEN)
    browser.screen(1280, 900)
    browser.open(first.url)
    told = "return document.getElementById('link').textContent"
    until(lambda: browser.run(told) == "Live")
    first.stop()
    until(lambda: "Not connected" in browser.run(told))
    later = LiveState(study_of(**PRIVATE))
    play(later, 3, private=True)
    second = serve(later, port=int(first.address.rstrip("/").rpartition(":")[2]), token=TOKEN)
    try:
        until(lambda: "Round 3 of 12 done" in words(browser, "tiles"), 25)
        assert browser.run(told) == "Live" and "ε 1.65 of 4 is spent" in words(browser, "privacy")
    finally:
        browser.open("about:blank")
        second.stop()
    assert [
        one for one in browser.complaints() if "ERR_CONNECTION_REFUSED" not in one and "INCOMPLETE" not in one
    ] == []

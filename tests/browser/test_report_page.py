"""The report as a reader meets it: in a browser, by pointer, finger and keyboard, light and dark, at a desk and on a phone."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixopt.history import History
from mixopt.tracking.report.write import write_report
from tests.browser.conftest import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SEARCH_ID = "5ea7c4" + "0" * 14
SECTIONS = [
    "The answer",
    "Mixture and baselines",
    "The front",
    "Verification",
    "Predicted against measured",
    "Objective over the trials",
    "Effects of domains on targets",
    "Epochs and caps",
    "Learning curves",
    "Noise",
    "Experts",
    "Cost",
    "How to export",
    "How it was made",
]
# Where the browser's pointer goes: Selenium's own moves need the target to be a box of HTML.
CENTRE = "const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]"


def recorded_search(location: Path) -> Any:
    """The recorded search of the tracking tests."""
    path = Path(__file__).resolve().parents[1] / "mixopt" / "tracking" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tracking_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RecordedSearch(History.open(location), 6)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a finished search, and of one that has just begun."""
    folder = tmp_path_factory.mktemp("report")
    finished = recorded_search(folder / "finished.sqlite").finish(16)
    begun = recorded_search(folder / "begun.sqlite").begin()
    begun.complete(begun.ask(5)[:2])
    return {
        "finished": write_report(folder / "finished.html", finished.history, SEARCH_ID),
        "begun": write_report(folder / "begun.html", begun.history, SEARCH_ID),
    }


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path]) -> Callable[..., Browser]:
    def open_page(name: str = "finished", width: int = 1280) -> Browser:
        browser.resize(width)
        browser.open(pages[name])
        return browser

    return open_page


def tip(browser: Browser, says: bool = True) -> str | None:
    """What the page says about the mark that is pointed at; waits until it says something, or nothing, because scrolling takes a while."""
    script = "const t = document.getElementById('tip'); return t.hidden ? null : t.innerText"
    patience = time.monotonic() + 20
    while True:
        said = browser.run(script)
        if (said is not None) == says or time.monotonic() > patience:
            return str(said) if said is not None else None
        time.sleep(0.02)


def point_at(browser: Browser, element: Any, kind: str = "mouse") -> None:
    """Moves the mouse to the middle of an element, or taps it."""
    browser.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    x, y = browser.run(CENTRE, element)
    if kind == "mouse":
        browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    else:
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def mark(browser: Browser, figure: str, begins: str, layout: str = "wide") -> Any:
    """The mark of a figure whose first words are these."""
    script = "return [...document.querySelectorAll(arguments[0])].find(m => m.getAttribute('aria-label').startsWith(arguments[1]))"
    found = browser.run(script, f"#figure-{figure} .{layout} .mark", begins)
    assert found is not None, (figure, begins)
    return found


def press(browser: Browser, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(browser.driver).send_keys(getattr(Keys, key)).perform()


@pytest.mark.parametrize("name", ["finished", "begun"])
def test_headings_are_read_in_order(opened: Callable[..., Browser], name: str) -> None:
    browser = opened(name)
    heads = browser.run("return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => [Number(h.tagName[1]), h.textContent])")
    shown = [section for section in SECTIONS if name == "finished" or section != "The front"]
    assert [text for level, text in heads if level == 2] == shown
    assert [level for level, _ in heads].count(1) == 1
    assert heads[0] == [1, "demo: which mixture to train on"]
    for (above, _), (below, text) in itertools.pairwise(heads):
        assert below <= above + 1, text


@pytest.mark.parametrize("name", ["finished", "begun"])
def test_it_asks_the_network_for_nothing_and_complains_of_nothing(opened: Callable[..., Browser], name: str) -> None:
    browser = opened(name)
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    assert len(asked) == 1
    assert asked[0].startswith("file://")
    assert browser.complaints() == []


def test_pointing_at_a_mark_says_what_it_is(opened: Callable[..., Browser]) -> None:
    browser = opened()
    assert tip(browser, says=False) is None
    point_at(browser, mark(browser, "mixture", "web; proposal"))
    said = tip(browser)
    assert said is not None
    assert said.splitlines()[0] == "web"
    assert "natural" in said
    assert "allowed" in said
    point_at(browser, mark(browser, "verification", "proposal minus natural"))
    assert "by seed" in str(tip(browser))
    point_at(browser, browser.run("return document.querySelector('h1')"))
    assert tip(browser, says=False) is None


def test_every_figure_can_be_pointed_at(opened: Callable[..., Browser]) -> None:
    browser = opened()
    figures = browser.run("return [...document.querySelectorAll('figure')].map(f => f.id)")
    assert len(figures) == 12
    for figure in figures:
        first = browser.run("return document.querySelector(`#${arguments[0]} .wide .mark`)", figure)
        assert first is not None, figure
        point_at(browser, first)
        assert tip(browser), figure


def test_the_keyboard_reaches_a_mark_and_moves_on(opened: Callable[..., Browser]) -> None:
    browser = opened()
    press(browser, "TAB")
    assert browser.run("return document.activeElement.textContent") == "Skip to the answer"
    for _ in range(40):
        press(browser, "TAB")
        if browser.run("return document.activeElement.classList.contains('mark')"):
            break
    first = tip(browser)
    assert first is not None
    press(browser, "ARROW_RIGHT")
    second = tip(browser)
    assert second is not None
    assert second != first
    assert first.splitlines()[0] == second.splitlines()[0]  # what is said of one domain comes together
    press(browser, "ARROW_LEFT")
    assert tip(browser) == first
    press(browser, "ESCAPE")
    assert tip(browser, says=False) is None
    press(browser, "TAB")  # one stop per figure, not one per mark
    assert not browser.run("return document.activeElement.closest('#figure-mixture')")


def test_dark_and_light_follow_the_system_until_someone_chooses(opened: Callable[..., Browser]) -> None:
    browser = opened()
    paint = "const s = getComputedStyle(document.body), d = document.querySelector('#figure-mixture .wide text');"
    paint += "return [s.backgroundColor, s.color, getComputedStyle(d).fill]"
    light = browser.run(paint)
    browser.prefer("dark")
    dark = browser.run(paint)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    button = browser.run("return document.getElementById('theme')")
    button.click()
    assert browser.run(paint) == light
    button.click()
    assert browser.run("return document.getElementById('theme').textContent") == "Theme: dark"
    browser.prefer("light")
    assert browser.run(paint) == dark
    button.click()
    assert browser.run(paint) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_enough_contrast(opened: Callable[..., Browser], scheme: str) -> None:
    """4.5 to 1 against the page, for every text of the page and of its figures (WCAG 2.2, AA)."""
    browser = opened()
    browser.prefer(scheme)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    ratios = browser.run(
        """
        const parse = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const paper = light(parse(getComputedStyle(document.body).backgroundColor));
        const found = {};
        for (const e of document.querySelectorAll('p,li,td,th,h1,h2,h3,dd,dt,summary,span,a,.wide svg text')) {
          const style = getComputedStyle(e), ink = light(parse(e.closest('svg') ? style.fill : style.color));
          found[`${e.tagName} ${e.textContent.slice(0, 20)}`] = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }
        return Object.entries(found)"""
    )
    assert len(ratios) > 100
    assert [entry for entry in ratios if entry[1] < 4.5] == []


@pytest.mark.parametrize("name", ["finished", "begun"])
def test_a_phone_shows_it_whole(opened: Callable[..., Browser], name: str) -> None:
    browser = opened(name, width=360)
    assert browser.run("const e = document.documentElement; return [e.clientWidth, e.scrollWidth]") == [360, 360]
    assert browser.run("return [...document.querySelectorAll('.wide')].every(e => !e.offsetParent)")
    size = "const m = t.getScreenCTM(); return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b)"
    sizes = browser.run(f"return [...document.querySelectorAll('.narrow svg text')].map(t => {{ {size} }})")
    assert min(sizes) >= 10
    cut_off = "return [...document.querySelectorAll('.narrow svg text')].filter(t => t.getBoundingClientRect().right > 360).map(t => t.textContent)"
    assert browser.run(cut_off) == []


def test_a_finger_opens_and_closes_what_a_mark_says(opened: Callable[..., Browser]) -> None:
    browser = opened(width=360)
    point_at(browser, mark(browser, "epochs", "web", layout="narrow"), "touch")
    assert str(tip(browser)).startswith("web")
    box = browser.run("const b = document.getElementById('tip').getBoundingClientRect(); return [b.left, b.right]")
    assert 0 <= box[0] < box[1] <= 360
    point_at(browser, browser.run("return document.querySelector('h2')"), "touch")
    assert tip(browser, says=False) is None


def test_every_figure_has_words_and_every_table_its_heads(opened: Callable[..., Browser]) -> None:
    browser = opened()
    drawings = browser.run(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.getAttribute('role'), s.getAttribute('aria-label')])"
    )
    assert all(role in ("img", "group") and len(label) > 20 for role, label in drawings)
    assert browser.run("return [...document.querySelectorAll('th')].every(h => h.scope === 'col' || h.scope === 'row')")
    assert browser.run("return [...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.trim())")
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_print_is_on_white_with_the_wide_drawings(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.prefer("dark", media="print")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"

"""The browser of the tests sees what it is there to see: console errors, requests, colour schemes, the width of a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = """<!doctype html><title>t</title><meta name="viewport" content="width=device-width">
<style>body{background:rgb(255,255,255)}@media (prefers-color-scheme:dark){body{background:rgb(1,2,3)}}</style>
<h1>Head</h1><div style="width:500px">wide</div><script>console.error("a complaint");new Image().src="other.png"</script>"""


def test_it_tells_errors_requests_scheme_and_width(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE)
    browser.open(page)
    assert browser.run("return document.querySelector('h1').textContent") == "Head"
    assert any("a complaint" in message for message in browser.complaints())
    assert any(address.endswith("other.png") for address in browser.requests())
    browser.prefer("dark")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(1, 2, 3)"
    browser.resize(360)
    assert browser.run("const e = document.documentElement; return [e.clientWidth, e.scrollWidth > 360]") == [360, True]
    assert browser.screenshot(tmp_path / "page.png", whole=True).read_bytes().startswith(b"\x89PNG")

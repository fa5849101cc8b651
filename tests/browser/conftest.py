"""A headless Chromium for tests of pages: opens a page, and tells what its console said and what it asked the network for.

Debian's `chromium` and `chromium-driver` are used where they are, through Selenium; nothing is downloaded (Selenium's own manager, which
would, is never asked because the driver is named). Without them the tests skip and say so, unless MIXOPT_REQUIRE_BROWSER is set.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Chromium talks to its maker and fills a profile unless told not to; a container has neither a sandbox nor a GPU.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
)
# Loading a page on a busy machine; a page that needs longer is broken.
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Browser:
    """One window of a fresh profile. `driver` is Selenium's, for everything that is not here."""

    driver: Any

    def open(self, page: Path | str) -> None:
        """Opens a file or an address; what earlier pages logged is forgotten."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def resize(self, width: int, height: int = 900) -> None:
        """Makes the page itself so large, in CSS pixels; narrower than a desktop window may be, as a phone is."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str, motion: str = "no-preference", media: str = "") -> None:
        """What the page hears when it asks for the user's colour scheme ("light" or "dark"), motion and medium ("print")."""
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """Errors and warnings on the console since the page was opened, or since last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, or since last asked, the page's own among them."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        """What the window shows, or the whole page."""
        import base64

        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole, **self._clip(whole)})
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        width, height = self.run("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
        return {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}


def _executables() -> tuple[str, str]:
    """Paths of Chromium and its driver; skips the test, or fails it where a browser is required."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    message = "needs chromium and chromedriver on the path (Debian: apt-get install chromium chromium-driver)"
    if os.environ.get("MIXOPT_REQUIRE_BROWSER", "") not in ("", "0"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def start_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Browser]]:
    """Starts browsers that end with the session: `start_browser()`."""
    chromium, driver_path = _executables()
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    drivers = []

    def start() -> Browser:
        options = ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1280,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        log = tmp_path_factory.mktemp("chromedriver") / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        driver = Chrome(options, Service(driver_path, port=port, log_output=str(log)))
        drivers.append(driver)
        driver.set_page_load_timeout(PATIENCE_SECONDS)
        driver.set_script_timeout(PATIENCE_SECONDS)
        return Browser(driver)

    yield start
    for driver in drivers:
        driver.quit()


@pytest.fixture(scope="session")
def _shared_browser(start_browser: Callable[[], Browser]) -> Browser:
    return start_browser()


@pytest.fixture
def browser(_shared_browser: Browser) -> Browser:
    """The session's browser with a blank page, as large as a laptop's, light."""
    _shared_browser.driver.get("about:blank")
    _shared_browser.resize(1280)
    _shared_browser.prefer("light")
    return _shared_browser

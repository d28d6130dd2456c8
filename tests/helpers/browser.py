"""A real browser without a window, for tests of pages: Chromium, driven through selenium."""

from __future__ import annotations

import base64
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Any name is resolved to an address where nothing answers: a page that needs the network does not work.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Starts a browser; skips the test where there is none.

    Args:
        folder: For the browser's own files.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'fec_fast[test]'")
    binary = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*_OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield Browser(session)
    finally:
        session.quit()


class Browser:
    """What the tests do with a page."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Opens a file in a window of some size, in a light or dark environment."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.session.get(page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page and returns its result."""
        return self.session.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        """Clicks the first element of a CSS selector, as a person would: it must be visible and not covered."""
        element = self.session.find_element("css selector", selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def errors(self) -> list[str]:
        """What the page complained about since the last call."""
        return [entry["message"] for entry in self.session.get_log("browser")]

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Writes a PNG of the window, or of the whole page."""
        answer = self.command("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        file.write_bytes(base64.b64decode(answer["data"]))

    def print(self, file: Path) -> None:
        """Writes the page as a printer would get it, as PDF."""
        file.write_bytes(base64.b64decode(self.command("Page.printToPDF", printBackground=False)["data"]))

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.session.execute_cdp_cmd(name, arguments)

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        width, height = self.run("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
        return {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}

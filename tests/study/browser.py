"""A real Chromium without a window, for pages that a person will look at."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ARTEFACTS = Path(__file__).parents[2] / "artefacts"  # screenshots, kept after the tests; ignored by git
DESKTOP, PHONE = 1280, 390  # pixels


@contextmanager
def chromium(width: int, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """Skips the test where there is none: Debian has it as `chromium` and `chromium-driver`."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=Service(driver))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        show_colours(page, dark)
        yield page
    finally:
        page.quit()


def show_colours(page: webdriver.Chrome, dark: bool) -> None:
    """As if the person had chosen light or dark colours."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def errors(page: webdriver.Chrome) -> list[str]:
    """What the console has said since it was last asked, warnings of the graphics driver left out."""
    return [entry["message"] for entry in page.get_log("browser") if entry["source"] != "rendering"]


def screenshot(page: webdriver.Chrome, path: Path) -> None:
    """The whole page, however long, as PNG."""
    size = page.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    picture = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(base64.b64decode(picture["data"]))

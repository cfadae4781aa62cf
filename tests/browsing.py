"""A real browser without a window, for tests of pages.

Debian's chromium and chromium-driver, which `make browser` installs. Tests
skip where they, or selenium, are missing.
"""

import contextlib
import shutil
import tempfile
import time

import pytest

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1100",
)
_DEADLINE_S = 120


@contextlib.contextmanager
def browser():
    """A chromium with an empty profile; skips the test if there is none."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium: make browser"
    )
    paths = [shutil.which(x) for x in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are needed: make browser")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(paths[1])
        driver = webdriver.Chrome(options, service)
        try:
            yield driver
        finally:
            driver.quit()


def resize(driver, width, height=1000, dark=False):
    """Makes the page as wide as some device, in its light or dark looks."""
    size = {"width": width, "height": height}
    size |= {"deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    scheme["value"] = "dark" if dark else "light"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def loaded(driver):
    """Addresses of all that the page has asked for, itself excluded."""
    return driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )


def complaints(driver):
    """What the browser refused, or could not do."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE"
    ]


def wait(condition, what):
    """Waits until a condition holds, and returns what it gives."""
    from selenium.common.exceptions import WebDriverException

    ends_at = time.monotonic() + _DEADLINE_S
    while time.monotonic() < ends_at:
        # What is drawn anew is gone for a moment.
        with contextlib.suppress(WebDriverException):
            found = condition()
            if found:
                return found
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {_DEADLINE_S} s")

"""The report in a real browser: on a telephone, in the dark, on paper."""

import base64

import browsing
import keras
import numpy as np
import pytest

import keras_earlyexit as ee


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(inputs)
    for k in range(3):
        x = keras.layers.Dense(8, activation="relu", name=f"layer_{k}")(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    model = ee.add_exits(
        keras.Model(inputs, outputs),
        ["layer_0", "layer_1"],
        policy="max_probability",
    )
    x, y = ee.datasets.load("digits", "test[:60]")
    return ee.report.write_report(
        model,
        ee.datasets.normalize("digits", x),
        y,
        tmp_path_factory.mktemp("report") / "report.html",
        class_names=["<script>document.title='gone'</script>"] * 10,
        profile=False,
    )


def test_it_fits_is_legible_and_asks_nobody(report):
    with browsing.browser() as driver:
        driver.get(report.as_uri())
        paper = {}
        for dark in (False, True):
            for width in (390, 1200):
                browsing.resize(driver, width, dark=dark)
                page = "return document.documentElement.scrollWidth"
                assert driver.execute_script(page) <= width
            paper[dark] = _brightness(driver, "html", "backgroundColor")
            for selector in ("#curve svg text", "#exits td", ".remark"):
                ink = _brightness(driver, selector, "color")
                assert abs(ink - paper[dark]) > 80, (selector, dark)
        assert paper[False] > 200 and paper[True] < 60
        assert "early exits" in driver.title
        asked = browsing.loaded(driver)
        assert all(address.startswith("data:") for address in asked)
        assert not browsing.complaints(driver)
        # On paper nothing can be pressed, nor moved into sight.
        browsing.resize(driver, 720, dark=True)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not driver.find_element("css selector", "nav").is_displayed()
        assert driver.execute_script(page) <= 720
        assert _brightness(driver, "html", "backgroundColor") == 255
        for wide in driver.find_elements("css selector", ".wide"):
            assert driver.execute_script(
                "return arguments[0].scrollWidth <= arguments[0].clientWidth",
                wide,
            )
        printed = driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert base64.b64decode(printed).startswith(b"%PDF")


def _brightness(driver, selector, what):
    """Mean of red, green and blue of what is shown."""
    color = driver.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))"
        "[arguments[1]]",
        selector,
        what,
    )
    numbers = color[color.index("(") + 1 : -1].split(",")[:3]
    return np.mean([float(number) for number in numbers])

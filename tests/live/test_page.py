"""`keras-earlyexit demo` in a real browser, with both workers behind it."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import browsing
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("gradio", reason="gradio: make browser")

# Three processes and a browser have to start.
pytestmark = pytest.mark.timeout(900)

PROCESSES = pathlib.Path("/proc")


class Demo:
    """The command as a process."""

    def __init__(self, model, folder):
        self.errors = folder / "errors"
        with open(self.errors, "w") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "keras_earlyexit", "demo"),
                    *("--model", model, "--data", "digits", "--json"),
                    "--no-browser",
                ],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        text = ""
        for line in self.process.stdout:
            text += line
            if line.startswith("}"):
                break
        assert text, self.errors.read_text()
        self.url = json.loads(text)["url"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def workers(self):
        """Process folders of its children."""
        pid = self.process.pid
        children = PROCESSES / f"{pid}/task/{pid}/children"
        return [PROCESSES / child for child in children.read_text().split()]


@pytest.fixture(scope="module")
def demo(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    model.policy.threshold = 0.6
    model.save(folder / "model.keras")
    # Skips before the slow part where there is no browser.
    with browsing.browser():
        pass
    demo = Demo(folder / "model.keras", folder)
    yield demo
    if demo.process.poll() is None:
        demo.stop()


@pytest.fixture
def page(demo):
    with browsing.browser() as driver:
        driver.get(demo.url)
        page = Page(driver)
        browsing.wait(page.samples, "the samples")
        yield page


class Page:
    def __init__(self, driver):
        self.driver = driver

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def samples(self):
        return self.driver.find_elements("css selector", "#ee-samples button")

    def text(self, name):
        return self.find(f"#ee-{name}").text

    def until(self, name, part):
        browsing.wait(lambda: part in self.text(name), f"{part} in {name}")

    def open_tab(self, name):
        path = f"//button[@role='tab' and contains(., '{name}')]"
        self.driver.find_element("xpath", path).click()

    def put(self, name, value):
        """Types a number beside a slider."""
        box = self.find(f"#ee-{name} input[type=number]")
        self.driver.execute_script("arguments[0].select()", box)
        box.send_keys(f"{value}\t")


def test_samples_thresholds_and_the_cloud_switch(page):
    easy, hard = page.samples()[0], page.samples()[-1]
    easy.click()
    page.until("outcome", "answered at the edge")
    assert "bytes saved" in page.text("outcome")
    assert page.text("outcome").count("leaves here") == 1
    hard.click()
    page.until("outcome", "answered in the cloud")

    page.find("#ee-cloud input").click()
    page.until("state", "is gone")
    hard.click()
    page.until("outcome", "degraded")
    page.find("#ee-cloud input").click()
    page.until("state", "is reachable")

    before = page.find("#ee-curve svg").get_attribute("innerHTML")
    page.put("threshold", 0)
    page.until("curve", "threshold 0:")
    assert page.find("#ee-curve svg").get_attribute("innerHTML") != before
    hard.click()
    page.until("outcome", "exit_0, answered at the edge")
    page.put("risk", 20)
    page.until("promise", "0.9")
    box = page.find("#ee-threshold input[type=number]")
    browsing.wait(lambda: float(box.get_property("value")) > 0, "a threshold")


def test_drawings_and_pictures_are_answered(page, tmp_path):
    from selenium.webdriver import ActionChains

    page.open_tab("Draw")
    browsing.wait(lambda: page.find("#ee-canvas canvas"), "a canvas")
    page.find("#ee-read").click()
    page.until("outcome", "nothing to see")
    page.find("#ee-canvas button[aria-label='Brush']").click()
    canvas = page.find("#ee-canvas canvas")
    stroke = ActionChains(page.driver).move_to_element_with_offset(
        canvas, 0, -100
    )
    stroke.click_and_hold()
    for _ in range(10):
        stroke.move_by_offset(0, 20)
    stroke.release().perform()

    def answered():
        page.find("#ee-read").click()
        return "leaves here" in page.text("outcome")

    browsing.wait(answered, "an answer to the drawing")

    page.open_tab("Upload")
    picture = Image.new("L", (60, 90), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 50, 80), outline=0, width=12)
    picture.save(tmp_path / "zero.png")
    first = page.text("outcome")
    path = str(tmp_path / "zero.png")
    page.find("#ee-upload input[type=file]").send_keys(path)
    browsing.wait(
        lambda: (
            page.text("outcome") != first
            and "leaves here" in page.text("outcome")
        ),
        "an answer to the picture",
    )


def test_the_page_fits_a_telephone_and_asks_nobody_else(page, demo):
    for dark in (False, True):
        browsing.resize(page.driver, 390, dark=dark)
        width = "return document.documentElement.scrollWidth"
        assert page.driver.execute_script(width) <= 390
    own = (demo.url, "data:", f"blob:{demo.url}")
    asked = browsing.loaded(page.driver)
    assert asked and all(address.startswith(own) for address in asked)
    assert not browsing.complaints(page.driver)


def test_other_names_are_turned_away(demo):
    request = urllib.request.Request(demo.url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    with contextlib.closing(caught.value) as error:
        assert error.code == 400
    with urllib.request.urlopen(demo.url, timeout=30) as reply:
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy


@pytest.mark.skipif(not PROCESSES.exists(), reason="Linux lists processes")
def test_the_workers_end_with_the_page(demo):
    workers = demo.workers()
    assert len(workers) == 2
    assert demo.stop() == 0
    assert not any(folder.exists() for folder in workers)

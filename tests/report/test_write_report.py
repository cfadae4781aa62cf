"""The report says what is so, escapes all it is given, and asks for nothing."""

import html.parser
import re

import keras
import numpy as np
import pytest

import keras_earlyexit as ee

HOSTILE = "<script>alert(1)</script>\"'&$\\frac{"


class Page(html.parser.HTMLParser):
    """The text of a page, its tags, and all that it could load."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.loads, self.words = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name.split(":")[-1] in ("src", "href", "data", "srcset"):
                self.loads.append(value)

    def handle_data(self, data):
        self.words.append(data.strip())

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def check_is_self_contained(self):
        outside = [x for x in self.loads if not x.startswith(("data:", "#"))]
        assert not outside
        assert not {"script", "link", "iframe", "object"} & set(self.tags)
        assert "@import" not in self.source
        assert not re.search(r"url\((?!#)", self.source)


def classifier(inputs, x, classes=3):
    """Layers with an exit behind the first two, from a feature (batch, d)."""
    for k in range(3):
        x = keras.layers.Dense(8, activation="relu", name=f"layer_{k}")(x)
    outputs = keras.layers.Dense(classes, activation="softmax")(x)
    plain = keras.Model(inputs, outputs, name="small")
    model = ee.add_exits(
        plain, ["layer_0", "layer_1"], policy="max_probability"
    )
    # Neither all nor none of the samples leave early.
    model.policy.threshold = 0.36
    return model


@pytest.fixture(scope="module")
def images():
    """A model for the digits, and 120 samples to report on, 80 others."""
    x, y = ee.datasets.load("digits", "test")
    x = ee.datasets.normalize("digits", x)
    inputs = keras.Input((8, 8, 1))
    model = classifier(inputs, keras.layers.Flatten()(inputs), 10)
    model.compile("adam", "branchynet")
    model.fit(x[200:], y[200:], epochs=12, verbose=0)
    model.policy.threshold = 0.2
    return model, (x[:120], y[:120]), (x[120:200], y[120:200])


@pytest.fixture(scope="module")
def page(images, tmp_path_factory):
    model, data, calibration = images
    path = tmp_path_factory.mktemp("report") / "report.html"
    made = ee.report.write_report(
        model,
        *data,
        path,
        calibration=calibration,
        references={"static $_{ <b>": (0.8, 0.6)},
        levels=(0.3,),
        notes={"seed": 7, "command": "make <it>", "date": "2026-01-02"},
    )
    assert made == path
    return Page(path)


def test_page_needs_nothing_else(page):
    page.check_is_self_contained()
    assert "default-src 'none'" in page.source
    assert 'name="viewport"' in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source
    # Ink follows the page, which may be dark.
    assert "#222222" not in page.source


def test_figures_are_those_of_the_model(page, images):
    model, (x, y), _ = images
    result = model.predict_exits(x)
    accuracy = np.mean(result.predictions.argmax(axis=-1) == y)
    assert f"{accuracy:.2%}" in page.text
    assert f"{result.mean_cost:.1%}" in page.text
    shares = result.exit_shares(3)
    for name, share in zip(model.exit_names, shares, strict=True):
        assert re.search(rf"{name} [\d.]+ {100 * share:.1f}%", page.text)


def test_page_has_every_section(page):
    for name in (
        "curve",
        "exits",
        "network",
        "confidence",
        "samples",
        "mistakes",
        "time",
        "origins",
    ):
        assert f'<section id="{name}"' in page.source
    for label in ("curve", "exits", "network", "reliability", "latency"):
        assert page.source.count(f'aria-label="{label}"') == 1
    for policy in ("max_probability", "entropy", "margin", "patience"):
        assert policy in page.text
    assert "static $_{ <b>" in page.text
    assert "chosen on 80 other samples" in page.text
    assert "seed 7" in page.text and "make <it>" in page.text


def test_ids_are_unique(page):
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))


def test_counts_of_mistakes_are_right(page, images):
    model, (x, y), _ = images
    seen = ee.calibration.observe(model, x, y)
    taken = seen.exit_index(model.policy.threshold)
    right = np.stack([seen.answers(k) == y for k in range(3)], axis=1)
    fixable = sum(
        not right[i, k] and right[i, k + 1 :].any() for i, k in enumerate(taken)
    )
    better = sum(right[i, k] and not right[i, -1] for i, k in enumerate(taken))
    assert f"would have mended {fixable}" in page.text
    assert f"better than the end in {better}" in page.text
    assert fixable


def test_the_model_is_not_changed_and_the_page_can_be_made_again(
    images, tmp_path
):
    model, (x, y), calibration = images
    before = model.policy.threshold
    sources = []
    for name in ("a.html", "b.html"):
        path = ee.report.write_report(
            model,
            x,
            y,
            tmp_path / name,
            calibration=calibration,
            levels=(0.3,),
            profile=False,
        )
        sources.append(path.read_bytes())
    assert sources[0] == sources[1]
    assert model.policy.threshold == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_samples_that_were_trained_or_calibrated_on_are_named(images, tmp_path):
    model, (x, y), _ = images
    digits = ee.datasets.normalize(
        "digits", ee.datasets.load("digits", "test")[0]
    )
    x = np.concatenate([x[:90], digits[200:210]])
    y = y[:100]
    path = ee.report.write_report(
        model,
        x,
        y,
        tmp_path / "report.html",
        calibration=(x[:50], y[:50]),
        profile=False,
    )
    text = Page(path).text
    assert "trained on 10.0% of these samples" in text
    assert "50.0% of these samples are among" in text


def test_hostile_text_and_names_are_shown_as_they_are(tmp_path):
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(30, 8)(inputs)
    model = classifier(inputs, keras.layers.GlobalAveragePooling1D()(x))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 30, (40, 6))
    names = ["calm", HOSTILE, "</table>"]
    texts = [f"{HOSTILE} {k}" for k in range(40)]
    page = Page(
        ee.report.write_report(
            model,
            x,
            rng.integers(0, 3, 40),
            tmp_path / "report.html",
            class_names=names,
            samples=texts,
            profile=False,
            notes={HOSTILE: HOSTILE},
        )
    )
    page.check_is_self_contained()
    assert page.text.count(HOSTILE) > 5
    assert "</table>" in page.text
    assert "made without calibration data" in page.text
    assert "img" not in page.tags


def test_tables_show_their_columns(tmp_path):
    inputs = {name: keras.Input((1,), name=name) for name in ("age", "<b>")}
    x = keras.layers.Concatenate()(list(inputs.values()))
    model = classifier(inputs, x)
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(40, 1)).astype("float32") for name in inputs}
    page = Page(
        ee.report.write_report(
            model,
            x,
            rng.integers(0, 3, 40),
            tmp_path / "report.html",
            profile=False,
        )
    )
    page.check_is_self_contained()
    assert page.words.count("age") > 5 and page.words.count("<b>") > 5


def heads(task):
    inputs = keras.Input((4,))
    x = inputs
    for k in range(3):
        x = keras.layers.Dense(8, activation="relu", name=f"layer_{k}")(x)
    activation = {"multilabel": "sigmoid", "regression": "linear"}[task]
    outputs = keras.layers.Dense(3, activation=activation)(x)
    return ee.add_exits(
        keras.Model(inputs, outputs), ["layer_0", "layer_1"], task=task
    )


def test_several_labels_leave_reliability_out(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("float32")
    y = rng.integers(0, 2, (60, 3))
    page = Page(
        ee.report.write_report(
            heads("multilabel"),
            x[:40],
            y[:40],
            tmp_path / "report.html",
            calibration=(x[40:], y[40:]),
            class_names=["red", "green", "blue"],
            profile=False,
        )
    )
    assert "Reliability diagrams are left out" in page.text
    assert re.search("label (red|green|blue)", page.text)
    assert "would have mended" in page.text


def test_values_leave_out_what_is_right_or_wrong(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("float32")
    y = rng.normal(size=(60, 3)).astype("float32")
    page = Page(
        ee.report.write_report(
            heads("regression"),
            x[:40],
            y[:40],
            tmp_path / "report.html",
            calibration=(x[40:], y[40:]),
            profile=False,
        )
    )
    assert "mean absolute error" in page.text
    assert "Risk levels are left out" in page.text
    assert "Galleries of mistakes are left out" in page.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_names": ["a", "b"]}, "10 names, one for each"),
        ({"samples": ["a", "b"]}, "120 samples to show"),
        ({"y": None}, "arrays of samples and of labels"),
        ({"x": iter([])}, "Collect a dataset into arrays"),
    ],
)
def test_what_cannot_be_reported_is_refused(images, tmp_path, changes, message):
    model, (x, y), _ = images
    options = {"x": x, "y": y, **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        ee.report.write_report(
            model, path=tmp_path / "report.html", profile=False, **options
        )
    assert not list(tmp_path.iterdir())

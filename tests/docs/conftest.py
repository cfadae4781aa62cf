"""The setting that all pages of the guide go on from."""

import guide
import pytest


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    """The variables behind the page that everybody starts with."""
    folder = tmp_path_factory.mktemp("guide")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        page = guide.DOCS / "get-started.md"
        guide.run(page, names, epochs=lambda count: count // 2)
    return names, folder / "digits.keras"


@pytest.fixture
def setting(started, tmp_path, monkeypatch):
    """The same variables, with a model that no other page has changed."""
    import keras

    import keras_earlyexit as ee

    names, path = started
    monkeypatch.chdir(tmp_path)
    model = keras.models.load_model(path)
    return {**names, "model": model, "plain": ee.strip_exits(model)}

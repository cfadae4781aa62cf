"""Settings come from a file, the environment and flags, and nowhere else."""

import pathlib

import pytest

from cloud_worker.config import PREFIX, Settings, SettingsError, load


@pytest.fixture
def written(tmp_path):
    def write(text):
        file = tmp_path / "worker.toml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def variable(monkeypatch):
    return lambda name, value: monkeypatch.setenv(PREFIX + name, value)


def test_defaults_are_safe():
    settings = load(bundle=("b",))
    assert settings.listen.startswith("127.0.0.1:")
    assert not settings.insecure and not settings.allow_raw_input
    assert settings.metrics_port is None and settings.forward is None


def test_flags_count_more_than_variables_and_those_than_the_file(
    written, variable
):
    file = written('bundle = ["a"]\nmax_batch = 1\nmax_queue = 50\nworkers = 2')
    variable("MAX_BATCH", "3")
    variable("MAX_QUEUE", "60")
    settings = load(file, max_queue=70)
    found = settings.max_batch, settings.max_queue, settings.workers
    assert found == (3, 70, 2)
    assert settings.bundle == (pathlib.Path("a"),)


def test_several_bundles(written, variable):
    both = (pathlib.Path("a"), pathlib.Path("b"))
    assert load(bundle=["a", "b"]).bundle == both
    assert load(written('bundle = ["a", "b"]')).bundle == both
    variable("BUNDLE", "a:b")
    assert load().bundle == both


def test_urls_of_bundles(written, variable):
    url = "s3://models/digits/segment_1"
    both = (url, pathlib.Path("b"))
    assert load(bundle=[url, "b"]).bundle == both
    settings = load(written(f'bundle = ["{url}", "b"]'))
    assert settings.bundle == both
    assert load(written(settings.as_toml())).bundle == both
    variable("BUNDLE", f"{url}:b:{url}")
    assert load().bundle == (*both, url)


def test_what_is_printed_is_a_file_that_can_be_read(written):
    settings = load(
        bundle=['with "quotes" and \\', "b"],
        insecure=True,
        max_delay_ms=0.5,
        metrics_port=0,
        forward="localhost:1",
    )
    again = load(written(settings.as_toml()))
    assert again.model_dump() == settings.model_dump()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_bach = 3", "Received: max_bach=3. Choose one of: bundle,"),
        ("max_batch = 0", "Received: max_batch=0"),
        ('max_batch = "many"', "Received: max_batch='many' (of type str)"),
        ("max_delay_ms = -1", "Received: max_delay_ms=-1"),
        ("drain_s = inf", "Received: drain_s=inf"),
        ('log_level = "loud"', "Received: log_level='loud'"),
        ("metrics_port = 70000", "Received: metrics_port=70000"),
        ("max_queue = 3", "max_queue is 3, below max_batch=64"),
        ("forward_insecure = true", "forward_insecure is given without"),
        ("bundle = []", "bundle"),
        ("nonsense", "Expected a TOML file"),
        ("a = 1\na = 2", "Expected a TOML file"),
    ],
)
def test_wrong_files(text, expected, written):
    bundle = "" if text.startswith("bundle") else 'bundle = ["b"]\n'
    with pytest.raises(SettingsError) as error:
        load(written(bundle + text))
    assert expected in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(SettingsError, match="--config"):
        load("nowhere.toml", bundle=("b",))


def test_a_bundle_is_needed():
    with pytest.raises(SettingsError, match="Pass --bundle, set CLOUD_WORKER_"):
        load()


def test_misspelt_variables_are_errors(variable):
    variable("CLIENT_KA", "ca.pem")
    with pytest.raises(SettingsError, match="CLOUD_WORKER_CLIENT_KA"):
        load(bundle=("b",))


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())

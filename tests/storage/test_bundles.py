"""Bundles go to a store and come back, or are refused."""

import hashlib
import json
import os
import pathlib

import pytest
from bundle.conftest import CONTENTS, manifest_of

from keras_earlyexit.bundle.manifest import MANIFEST, render
from keras_earlyexit.bundle.remote import fetch, publish, version
from keras_earlyexit.bundle.specs import BundleError
from keras_earlyexit.bundle.watching import Watch
from keras_earlyexit.storage import Store


def write(folder, contents):
    """A bundle of these files; returns the hash of its manifest."""
    for name, data in contents.items():
        file = folder.joinpath(*name.split("/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    data = render(manifest_of(contents))
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bundle(tmp_path):
    write(tmp_path / "bundle", CONTENTS)
    return tmp_path / "bundle"


@pytest.fixture
def newer(tmp_path):
    write(tmp_path / "newer", {**CONTENTS, "stage_0.tflite": b"other"})
    return tmp_path / "newer"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def content(path):
    return {
        name: pathlib.Path(path, *name.split("/")).read_bytes()
        for name in CONTENTS
    }


def place(url):
    """Where the files of the current bundle are, below its URL."""
    found = json.loads(Store(url).read("current.json", 1000))
    return found["generation"]


def test_a_bundle_comes_back(url, bundle, cache):
    sha256 = publish(bundle, url)
    path, found = fetch(url, cache=cache)
    assert found == sha256
    assert content(path) == CONTENTS


def test_what_is_here_is_not_fetched_again(url, bundle, cache):
    publish(bundle, url)
    path, _ = fetch(url, cache=cache)
    Store(url).remove(f"{place(url)}/stage_0.tflite")
    assert fetch(url, cache=cache)[0] == path


def test_a_damaged_cache_is_mended(url, bundle, cache):
    publish(bundle, url)
    path, _ = fetch(url, cache=cache)
    with open(os.path.join(path, "stage_0.tflite"), "wb") as file:
        file.write(b"FIRST STAGE")
    assert content(fetch(url, cache=cache)[0]) == CONTENTS


def test_a_newer_one_takes_over_and_an_older_one_can_be_had(
    url, bundle, newer, cache
):
    first = publish(bundle, url)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        publish(newer, url)
    before = version(url)
    second = publish(newer, url, overwrite=True)
    assert version(url) != before
    assert fetch(url, cache=cache)[1] == second
    assert fetch(url, first, cache=cache)[1] == first
    assert fetch(url, second.upper(), cache=cache)[1] == second


def test_one_that_was_copied_by_other_means(url, bundle, cache):
    store = Store(url)
    for name in (*CONTENTS, MANIFEST):
        store.upload(bundle.joinpath(*name.split("/")), name)
    assert content(fetch(url, cache=cache)[0]) == CONTENTS
    with pytest.raises(BundleError, match="It is another bundle"):
        fetch(url, "0" * 64, cache=cache)


def test_until_the_last_object_is_written_there_is_the_one_before(
    url, bundle, newer, cache, monkeypatch
):
    first = publish(bundle, url)
    write_one = Store.write

    def killed(self, name, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(newer, url, overwrite=True)
    assert Store.write is write_one
    assert fetch(url, cache=cache)[1] == first


def test_nothing_there(url, cache):
    with pytest.raises(FileNotFoundError, match="Expected a bundle"):
        fetch(url, cache=cache)
    assert version(url) == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"FIRST STAGE", "SHA-256"),
        (b"first", "11 bytes"),
        (None, "nothing there"),
    ],
)
def test_a_file_that_is_not_as_it_was(url, bundle, cache, data, message):
    publish(bundle, url)
    name = f"{place(url)}/stage_0.tflite"
    if data is None:
        Store(url).remove(name)
    else:
        Store(url).write(name, data)
    with pytest.raises(BundleError, match=message):
        fetch(url, cache=cache)
    # Nothing of it stays.
    assert os.listdir(cache / "bundles") == []


def test_a_manifest_that_is_not_as_it_was(url, bundle, cache):
    publish(bundle, url)
    Store(url).write(f"{place(url)}/{MANIFEST}", b"{}")
    with pytest.raises(BundleError, match="somebody has changed it"):
        fetch(url, cache=cache)


def test_a_bundle_that_is_too_large(url, bundle, cache):
    publish(bundle, url)
    with pytest.raises(BundleError, match="at most 10 bytes. Received: 23"):
        fetch(url, max_bytes=10, cache=cache)


@pytest.mark.parametrize(
    "data",
    [
        b"nothing",
        b'{"kind": "keras_earlyexit current bundle"}',
        b'{"kind": "keras_earlyexit current bundle", "generation": "../..",'
        b' "manifest_sha256": "' + b"0" * 64 + b'"}',
    ],
)
def test_a_pointer_that_cannot_be_right(url, bundle, cache, data):
    publish(bundle, url)
    Store(url).write("current.json", data)
    with pytest.raises(BundleError, match="current"):
        fetch(url, cache=cache)


def test_a_change_is_seen(url, bundle, newer):
    publish(bundle, url)
    watch = Watch([url])
    assert watch.changed() == []
    publish(newer, url, overwrite=True)
    assert watch.changed() == []
    assert watch.changed() == [url]
    assert watch.changed(at_once=True) == []

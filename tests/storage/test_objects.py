"""Objects of a store are read and written, on this machine's own stores."""

import pytest

from keras_earlyexit.storage import Store, is_url
from keras_earlyexit.storage.objects import pointer, read_pointer


@pytest.fixture
def store(url):
    return Store(url)


def test_what_is_written_is_read(store):
    assert store.names("a") == []
    store.write("a/b", b"one")
    store.write("a/b", b"two")
    store.write("a/c", b"")
    assert store.read("a/b", 3) == b"two"
    assert store.names("a") == ["b", "c"]
    store.remove("a/b")
    store.remove("a/b")
    assert store.names("a") == ["c"]
    with pytest.raises(FileNotFoundError):
        store.read("a/b", 3)


def test_nothing_is_read_that_is_too_large(store):
    store.write("a", b"12345")
    with pytest.raises(ValueError, match="at most 4 bytes. Received: 5"):
        store.read("a", 4)
    with pytest.raises(ValueError, match="with 6 bytes"):
        list(store.chunks("a", 6))
    assert b"".join(store.chunks("a", 5)) == b"12345"


def test_only_one_creates_an_object(store):
    store.create("a", b"first")
    with pytest.raises(FileExistsError):
        store.create("a", b"second")
    assert store.read("a", 10) == b"first"


def test_a_file_is_uploaded(store, tmp_path):
    (tmp_path / "here").write_bytes(b"content")
    store.upload(tmp_path / "here", "deep/down/there")
    assert store.read("deep/down/there", 10) == b"content"


def test_a_kind_of_url_that_nothing_reads():
    pytest.importorskip("fsspec")
    with pytest.raises((OSError, ImportError), match="nosuch://"):
        Store("nosuch://bucket")


def test_what_is_a_url():
    assert is_url("s3://bucket/a") and is_url("file:///tmp")
    assert not any(map(is_url, ("a/b", "s3:/a", "C:\\a", "", "://a", 3)))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"kind": "other"}', b"{}"])
def test_a_pointer_that_is_none(data):
    with pytest.raises(ValueError, match="Expected a thing"):
        read_pointer(data, "thing", size=int)


def test_a_pointer():
    data = pointer("thing", size=3)
    assert read_pointer(data, "thing", size=int)["size"] == 3
    with pytest.raises(ValueError, match="with size"):
        read_pointer(data, "thing", size=str)

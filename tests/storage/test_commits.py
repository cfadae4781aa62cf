"""A state in a store is committed by one writer, whole or not at all."""

import pytest

from keras_earlyexit.storage.commits import Commits, TakenOver
from keras_earlyexit.storage.objects import Store


@pytest.fixture
def state(tmp_path):
    def write(content):
        file = tmp_path / "state"
        file.write_bytes(content)
        return file

    return write


def read(url):
    return b"".join(Commits(url).read())


def test_the_last_commit_is_read(url, state):
    assert Commits(url).read() is None
    commits = Commits(url)
    for number in range(6):
        commits.write(state(b"state %d" % number))
        assert read(url) == b"state %d" % number
    # What nobody can want any more is gone.
    store = Store(url)
    assert len(store.names("commits")) == len(store.names("data")) == 3


def test_another_machine_goes_on_and_the_first_one_cannot(url, state):
    first = Commits(url)
    first.write(state(b"one"))
    second = Commits(url)
    second.take_over()
    assert b"".join(second.read()) == b"one"
    with pytest.raises(TakenOver, match="End one of the two"):
        first.write(state(b"lost"))
    second.write(state(b"two"))
    with pytest.raises(TakenOver):
        first.write(state(b"lost as well"))
    assert read(url) == b"two"


def test_one_that_slept_long_commits_nothing(url, state):
    first = Commits(url)
    first.write(state(b"one"))
    second = Commits(url)
    second.take_over()
    for number in range(10):
        second.write(state(b"%d" % number))
    # Its number is free again, since old commits are removed.
    with pytest.raises(TakenOver):
        first.write(state(b"lost"))
    second.write(state(b"last"))
    assert read(url) == b"last"


def test_states_that_were_taken_over_often_stay(url, state):
    Commits(url).write(state(b"one"))
    for _ in range(6):
        commits = Commits(url)
        commits.take_over()
    commits.write(state(b"two"))
    commits.write(state(b"three"))
    assert read(url) == b"three"


def test_a_commit_whose_answer_was_lost_is_a_commit(url, state, monkeypatch):
    commits = Commits(url)
    commits.write(state(b"one"))
    create = Store.create

    def lost(self, name, data):
        create(self, name, data)
        raise OSError("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "create", lost)
        with pytest.raises(OSError, match="broke"):
            commits.write(state(b"two"))
    commits.write(state(b"three"))
    assert read(url) == b"three"


def test_a_write_that_fails_leaves_what_was_there(url, state, monkeypatch):
    commits = Commits(url)
    commits.write(state(b"one"))

    def full(self, file, name):
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "upload", full)
        with pytest.raises(OSError, match="no space"):
            commits.write(state(b"two"))
    assert read(url) == b"one"
    commits.write(state(b"three"))
    assert read(url) == b"three"


def test_a_damaged_state_is_seen(url, state):
    Commits(url).write(state(b"content"))
    store = Store(url)
    (name,) = store.names("data")
    store.write(f"data/{name}", b"CONTENT")
    with pytest.raises(ValueError, match="with the SHA-256"):
        read(url)
    store.write(f"data/{name}", b"cont")
    with pytest.raises(ValueError, match="with 7 bytes"):
        read(url)

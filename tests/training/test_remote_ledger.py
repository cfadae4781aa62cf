"""A ledger in an object store goes on on another machine, once."""

import secrets

import pytest
from linear_training import LinearStepper, batch, bytes_of
from linear_training import replay as replayed

from cloud_worker.training.learner import Learner
from cloud_worker.training.remote_ledger import RemoteLedger
from keras_earlyexit.snapshots import DamagedSnapshot
from keras_earlyexit.storage import Store
from protos.errors import CloudUnavailable

pytest.importorskip("fsspec")


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/store"
    return f"memory://{secrets.token_hex(8)}"


def make(url, **options):
    stepper = LinearStepper()
    return Learner(stepper, RemoteLedger(url), **options), stepper


def send(learner, *numbers):
    return [learner.learn("edge", 0, n, *batch(0, n)) for n in numbers]


def test_another_machine_goes_on_where_the_store_is(url):
    learner, _ = make(url, commit_every=2)
    learner.meet("edge", 0)
    # The fifth is applied, and not acknowledged.
    outcomes = send(learner, 0, 1, 2, 3, 4)
    assert [x.committed for x in outcomes] == [0, 2, 2, 4, 4]
    other, stepper = make(url, commit_every=2)
    assert other.meet("edge", 0) == 4
    send(other, 4, 5)
    assert bytes_of(stepper) == bytes_of(replayed([(0, n) for n in range(6)]))


def test_who_was_taken_over_acknowledges_nothing(url):
    learner, _ = make(url, commit_every=1)
    learner.meet("edge", 0)
    send(learner, 0)
    other, _ = make(url, commit_every=1)
    (outcome,) = send(learner, 1)
    assert outcome.committed == 1 and not learner.is_healthy
    assert other.meet("edge", 0) == 1
    assert send(other, 1)[0].committed == 2


def test_a_store_that_is_gone_for_a_while(url, monkeypatch):
    now = [0.0]
    learner, stepper = make(url, commit_every=1, clock=lambda: now[0])
    learner.meet("edge", 0)

    def gone(self, name, data):
        raise OSError("no route to host")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "create", gone)
        assert send(learner, 0)[0].committed == 0
        with pytest.raises(CloudUnavailable):
            send(learner, 1)
    now[0] = 60.0
    assert send(learner, 1)[0].committed == 2
    assert bytes_of(make(url)[1]) == bytes_of(stepper)


def test_a_damaged_state(url):
    learner, _ = make(url, commit_every=1)
    store = Store(url)
    for name in store.names("data"):
        store.write(f"data/{name}", b"x" * store.size(f"data/{name}"))
    with pytest.raises(DamagedSnapshot, match="SHA-256"):
        make(url)

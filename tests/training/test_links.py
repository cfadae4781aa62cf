"""Links that are deaf, dead or slow: each batch is applied once, in order."""

import errno
import threading
import time

import grpc
import pytest
from linear_training import AGREEMENT, LinearStepper, batch, bytes_of, replay
from proxy import DOWN, UP, Proxy
from training_server import serving

from cloud_worker.training.trainer import Trainer
from protos import split_pb2, split_pb2_grpc, training
from protos.calling.retry import Backoff
from protos.errors import CloudUnavailable, WireError
from protos.feeding.journal import Journal
from protos.feeding.sending import Sender
from protos.security import ClientSecurity
from protos.tensors import encode


def make_request(sequence, edge=0, **fields):
    (x,), y = batch(edge, sequence)
    request = split_pb2.TrainRequest(
        generation=training.identity_of(AGREEMENT).generation,
        sequence=sequence,
        tensors=[encode(x)],
        labels=encode(y),
        **fields,
    )
    request.crc32 = training.checksum(request)
    return request


class Setup:
    """A trainer behind a proxy, and an edge that only has a journal."""

    def __init__(self, folder, proxy, stepper):
        self.stepper, self.proxy = stepper, proxy
        self.journal = Journal(folder / "journal", 1 << 20, sync=False)
        self.sender = Sender(
            self.journal,
            proxy.address,
            ClientSecurity(insecure=True),
            AGREEMENT,
            1,
            "edge",
            hello_timeout_s=2.0,
            backoff=Backoff(0.02, 0.2),
        )
        self.sequence = 0

    def add(self, count):
        for _ in range(count):
            content = make_request(self.sequence).SerializeToString()
            assert self.journal.append(self.sequence, content, 10)
            self.sequence += 1

    def drain(self, seconds=40):
        done = self.journal.wait_acknowledged(self.sequence, seconds)
        self.sender.check()
        assert done, (self.sender.last_error, self.sender.progress)
        expected = replay([(0, i) for i in range(self.sequence)])
        assert bytes_of(self.stepper) == bytes_of(expected)


@pytest.fixture
def setup(tmp_path):
    stepper = LinearStepper()

    def make():
        return Trainer(
            stepper,
            AGREEMENT,
            tmp_path / "cloud",
            commit_every=5,
            idle_commit_s=0.05,
        )

    with serving(make) as (target, trainer):
        proxy = Proxy(target)
        found = Setup(tmp_path, proxy, stepper)
        found.trainer = trainer
        found.sender.start()
        yield found
        found.sender.close()
        found.journal.close()
        proxy.close()


def test_link_that_goes_and_comes_back(setup):
    setup.add(20)
    setup.drain()
    for _ in range(3):
        setup.proxy.down()
        setup.add(30)
        setup.proxy.up()
        setup.drain()
    assert setup.trainer.steps == 110
    assert setup.sender.progress.reconnects >= 3


def test_many_resets(setup):
    setup.proxy.set(UP, cut_after=20_000)
    setup.add(300)
    setup.proxy.set(UP, cut_after=None)
    setup.drain()
    assert setup.trainer.steps == 300


@pytest.mark.faults
def test_replies_that_do_not_arrive(setup):
    """Requests arrive and are applied; the edge hears nothing of it."""
    for _ in range(5):
        setup.proxy.set(DOWN, blackhole=True)
        setup.add(200)
        time.sleep(1.0)
        setup.proxy.set(DOWN, blackhole=False)
        setup.drain()
    assert setup.trainer.steps == 1000


@pytest.mark.faults
def test_partition_of_ten_seconds(setup):
    setup.add(50)
    setup.proxy.set(blackhole=True)
    setup.add(200)
    time.sleep(10.0)
    setup.proxy.set(blackhole=False)
    started = time.monotonic()
    setup.drain()
    assert time.monotonic() - started <= 5.0


@pytest.mark.faults
def test_slow_link_is_not_taken_for_a_dead_one(setup):
    """Pings are not late behind a journal that takes half a minute to send."""
    setup.add(5)
    setup.drain()
    setup.proxy.set(UP, bytes_per_s=4000)
    setup.add(600)
    setup.drain(120)
    assert setup.sender.progress.reconnects == 0
    payload = sum(
        len(make_request(i, epoch=1).SerializeToString()) for i in range(605)
    )
    # Nothing a second time; such small messages have frames of half their own.
    assert setup.sender.progress.bytes_up == payload
    assert setup.proxy.traffic[UP].num_bytes < payload + 64 * 605


def test_pauses_between_batches_are_not_filled_with_long_commits(
    setup, monkeypatch
):
    """Each would keep the batch waiting that comes meanwhile."""
    state, commits = setup.stepper.state, []

    def takes_long():
        commits.append(setup.stepper)
        time.sleep(0.2)
        return state()

    monkeypatch.setattr(setup.stepper, "state", takes_long)
    for _ in range(10):
        setup.add(1)
        time.sleep(0.3)
    setup.drain()
    # Two of five batches each, one before the first was measured, one at most
    # after the last.
    assert len(commits) <= 4


def test_disk_of_the_cloud_is_full_for_a_while(setup, monkeypatch):
    from keras_earlyexit import snapshots

    told = []

    async def on_health(works):
        told.append(works)

    setup.trainer._learning._on_health = on_health
    write, is_full = snapshots.write, threading.Event()

    def fails(*arguments):
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(snapshots, "write", fails)
    setup.add(7)
    setup.drain()
    is_full.set()
    setup.add(23)
    ends = time.monotonic() + 20
    while not told or not isinstance(setup.sender.last_error, CloudUnavailable):
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert told == [False] and setup.sender.progress.committed == 7
    assert len(setup.journal) == 23
    is_full.clear()
    setup.drain()
    assert told[-1] is True


def replies_to(target, *requests):
    """What the cloud says to raw requests of anybody."""
    with grpc.insecure_channel(target) as channel:
        stub = split_pb2_grpc.SplitStub(channel)
        replies = stub.Train(
            iter(requests), metadata=((training.EDGE_ID, "edge"),)
        )
        return list(replies)


def test_poison_on_the_wire(setup):
    setup.add(10)
    setup.drain()
    before = bytes_of(setup.stepper)
    target = setup.proxy.address
    good = make_request(10, epoch=1)
    damaged = split_pb2.TrainRequest.FromString(good.SerializeToString())
    damaged.labels.data = damaged.labels.data[:-1] + b"\1"
    nan = split_pb2.TrainRequest.FromString(good.SerializeToString())
    nan.tensors[0].data = b"\0\0\xc0\x7f" * 12
    nan.crc32 = training.checksum(nan)
    huge = split_pb2.TrainRequest.FromString(good.SerializeToString())
    huge.tensors[0].data = b"\x99\x76\x96\x7e" * 12
    huge.crc32 = training.checksum(huge)
    unequal = split_pb2.TrainRequest.FromString(good.SerializeToString())
    unequal.labels.CopyFrom(encode(batch(0, 1)[1][:2]))
    unequal.crc32 = training.checksum(unequal)
    for request, code in (
        (damaged, grpc.StatusCode.DATA_LOSS),
        (nan, grpc.StatusCode.INVALID_ARGUMENT),
        (huge, grpc.StatusCode.INVALID_ARGUMENT),
        (unequal, grpc.StatusCode.INVALID_ARGUMENT),
        (make_request(10, epoch=0), grpc.StatusCode.ABORTED),
        (
            split_pb2.TrainRequest(generation="x"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            replies_to(target, request)
        assert caught.value.code() is code
        assert bytes_of(setup.stepper) == before
    (gap,) = replies_to(target, make_request(12, epoch=1))
    assert gap.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert gap.expected_sequence == 10
    duplicate = replies_to(target, make_request(3, epoch=1))[0]
    assert not duplicate.status.code and duplicate.committed == 10
    assert bytes_of(setup.stepper) == before
    setup.add(5)
    setup.drain()


def test_cloud_that_has_lost_its_ledger(setup, tmp_path):
    setup.add(40)
    setup.drain()
    setup.add(1)
    setup.drain()
    setup.sender.close()
    journal = Journal(tmp_path / "journal_2", 1 << 20)
    journal.append(60, make_request(60).SerializeToString())
    sender = Sender(
        journal,
        setup.proxy.address,
        ClientSecurity(insecure=True),
        AGREEMENT,
        2,
        "edge",
    )
    sender.start()
    ends = time.monotonic() + 10
    while sender.error is None and time.monotonic() < ends:
        time.sleep(0.02)
    with pytest.raises(WireError, match="ledger"):
        sender.check()
    sender.close()
    journal.close()


def test_journal_that_cannot_be_read_ends_it(setup, monkeypatch):
    setup.add(5)
    setup.drain()

    def fail(sequence):
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(setup.journal, "read", fail)
    setup.add(1)
    ends = time.monotonic() + 10
    while setup.sender.error is None and time.monotonic() < ends:
        time.sleep(0.02)
    with pytest.raises(OSError, match="is gone"):
        setup.sender.check()

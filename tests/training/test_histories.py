"""Journal, sending and learning together, through generated histories.

Both sides are the real ones but for the connection: batches are handed over one
by one, twice, or not at all; so are the answers; and either process may end at
any moment, with what it had in memory.
"""

import functools
import shutil
import tempfile
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear_training import AGREEMENT, LinearStepper, batch, bytes_of, replay

from cloud_worker.training import decoding
from cloud_worker.training.learner import Learner
from protos import split_pb2, training
from protos.errors import Fenced
from protos.feeding.journal import Journal
from protos.feeding.sending import Sender
from protos.feeding.window import Window
from protos.limits import Limits
from protos.security import ClientSecurity
from protos.tensors import encode

LIMITS = Limits(64, 1 << 20)


@functools.cache
def state_after(count):
    """The bytes of the state after the first batches, each once."""
    return bytes_of(replay([(0, i) for i in range(count)]))


EVENTS = st.lists(
    st.sampled_from(
        ["make"] * 4
        + ["send"] * 6
        + ["answer"] * 3
        + ["request lost", "answer lost", "twice", "replay", "commit"]
        + ["break", "edge dies", "cloud dies"]
    ),
    max_size=40,
)


class Disk:
    """A ledger that outlasts its process."""

    path = "memory"

    def __init__(self):
        self.content = None

    def read(self):
        return self.content

    def write(self, arrays, facts):
        self.content = [array.copy() for array in arrays], facts


class World:
    """An edge, a cloud, and what is on the way between them."""

    def __init__(self, folder):
        self._folder, self._disk = folder, Disk()
        self.applied, self.captured = [], []
        self.run, self.made = 0, 0
        self.start_cloud()
        self.start_edge()

    def start_cloud(self):
        self.stepper = LinearStepper()
        self.learner = Learner(self.stepper, self._disk, commit_every=3)
        # What was not committed was never learned.
        del self.applied[self._disk.content[1]["steps"] :]

    def start_edge(self):
        self.run += 1
        self.journal = Journal(self._folder, 1 << 20, sync=False)
        self.made = self.journal.next_sequence or self.made
        self.sender = Sender(
            self.journal,
            "nowhere:1",
            ClientSecurity(insecure=True),
            AGREEMENT,
            self.run,
        )
        self.connect()

    def connect(self):
        expected = self.learner.meet("edge", self.run)
        first = self.journal.first_sequence
        assert first is None or expected >= first
        self.window = Window()
        self.sending = self.sender._records(
            expected, threading.Event(), self.window
        )
        self._sent_to, self.answers = expected, []

    def make(self):
        (x,), y = batch(0, self.made)
        request = split_pb2.TrainRequest(
            sequence=self.made, tensors=[encode(x)], labels=encode(y)
        )
        request.crc32 = training.checksum(request)
        content = request.SerializeToString(deterministic=True)
        assert self.journal.append(self.made, content, timeout_s=0)
        self.made += 1

    def next_message(self):
        """What the sender sends next; `None` if there is nothing."""
        if self._sent_to >= self.made:
            return None
        message = next(self.sending)
        self._sent_to = split_pb2.TrainRequest.FromString(message).sequence + 1
        self.captured.append(message)
        # An answer that is lost holds nothing up in these histories.
        self.window.answered(self._sent_to)
        return message

    def arrive(self, message):
        request = split_pb2.TrainRequest.FromString(message)
        found = decoding.read(request, AGREEMENT, LIMITS)
        outcome = self.learner.learn(
            "edge", request.epoch, request.sequence, found.arrays, found.labels
        )
        if outcome.is_applied:
            self.applied.append(request.sequence)
        if outcome.is_gap:
            # As the sender does when it is told so: it says hello again.
            self.connect()
        else:
            self.answers.append(outcome.committed)

    def do(self, event):
        if event == "make":
            self.make()
        elif event in ("send", "twice", "request lost"):
            message = self.next_message()
            if message is not None and event != "request lost":
                self.arrive(message)
                if event == "twice":
                    self.arrive(message)
        elif event == "answer" and self.answers:
            self.journal.acknowledge(self.answers.pop(0))
        elif event == "answer lost" and self.answers:
            self.answers.pop(0)
        elif event == "replay" and self.captured:
            self._replay(self.captured[len(self.applied) % len(self.captured)])
        elif event == "commit":
            self.learner.commit()
        elif event == "break":
            self.connect()
        elif event == "edge dies":
            self.journal.close()
            self.start_edge()
        elif event == "cloud dies":
            self.start_cloud()
            self.connect()

    def _replay(self, message):
        """The bytes of some earlier message, from whoever has kept them."""
        if split_pb2.TrainRequest.FromString(message).epoch < self.run:
            with pytest.raises(Fenced):
                self.arrive(message)
        else:
            self.arrive(message)

    def check(self):
        assert self.applied == list(range(len(self.applied)))
        assert bytes_of(self.stepper) == state_after(len(self.applied))
        # The edge still has all that the cloud could lose.
        kept = self.journal.first_sequence
        committed = self._disk.content[1]["edges"]["edge"][1]
        assert committed >= (self.made if kept is None else kept)

    def finish(self):
        """All that was made arrives, whatever has happened before."""
        self.connect()
        while (message := self.next_message()) is not None:
            self.arrive(message)
        self.learner.commit()
        self.journal.acknowledge(self.learner.committed("edge"))
        self.check()
        assert len(self.applied) == self.made and len(self.journal) == 0


GENERATED = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@settings(GENERATED, max_examples=200)
@given(EVENTS)
def test_histories_of_both_sides(events):
    check(events)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@settings(GENERATED, max_examples=2000)
@given(EVENTS)
def test_many_histories_of_both_sides(events):
    check(events)


def check(events):
    folder = tempfile.mkdtemp()
    try:
        world = World(folder)
        for event in events:
            world.do(event)
            world.check()
        world.finish()
        world.journal.close()
    finally:
        shutil.rmtree(folder)

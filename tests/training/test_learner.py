"""Every batch is in the state once, in sequence, or it is not acknowledged."""

import os
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear_training import LinearStepper, batch, bytes_of
from linear_training import replay as replayed

from cloud_worker.training.learner import Learner
from cloud_worker.training.ledger import Ledger, LedgerInUse
from keras_earlyexit.snapshots import DamagedSnapshot
from protos.errors import CloudUnavailable, Fenced, WireError


def make(folder, **options):
    stepper = LinearStepper()
    return Learner(stepper, Ledger(folder), **options), stepper


def replay(order):
    return bytes_of(replayed(order))


class Memory:
    """A ledger whose process may end, and whose disk may be full."""

    path = "memory"

    def __init__(self):
        self.content = None
        self.is_full = False

    def read(self):
        return self.content

    def write(self, arrays, facts):
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.content = [np.array(x) for x in arrays], facts


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["send"] * 5
            + ["duplicate", "skip", "old", "commit", "crash", "restart", "full"]
        ),
        st.integers(0, 1),
        st.integers(0, 6),
    ),
    max_size=40,
)


GENERATED = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
OF_A_LEDGER = given(EVENTS, st.integers(1, 5))


@settings(GENERATED, max_examples=200)
@OF_A_LEDGER
def test_histories(events, commit_every):
    check(events, commit_every)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@settings(GENERATED, max_examples=2000)
@OF_A_LEDGER
def test_many_histories(events, commit_every):
    check(events, commit_every)


def check(events, commit_every):
    """Send, repeat, reorder, drop, crash and restart against a replay."""
    ledger, now = Memory(), [0.0]

    def start():
        stepper = LinearStepper()
        return stepper, Learner(
            stepper, ledger, commit_every=commit_every, clock=lambda: now[0]
        )

    stepper, learner = start()
    epochs, acknowledged = [0, 0], [0, 0]
    applied = []
    expected = [learner.meet(str(edge), 0) for edge in (0, 1)]
    for kind, edge, number in events:
        now[0] += 2.0
        if kind == "crash":
            ledger.is_full = False
            stepper, learner = start()
            applied = applied[: ledger.content[1]["steps"]]
            expected = [learner.meet(str(i), epochs[i]) for i in (0, 1)]
            for i in (0, 1):
                assert expected[i] >= acknowledged[i]
        elif kind == "restart":
            epochs[edge] += 1
            try:
                expected[edge] = learner.meet(str(edge), epochs[edge])
            except CloudUnavailable:
                epochs[edge] -= 1
        elif kind == "full":
            ledger.is_full = not ledger.is_full
        elif kind == "commit":
            learner.commit()
        elif kind == "old":
            if epochs[edge]:
                with pytest.raises(Fenced):
                    learner.learn(
                        str(edge),
                        epochs[edge] - 1,
                        expected[edge],
                        *batch(edge, expected[edge]),
                    )
        else:
            sequence = expected[edge]
            if kind == "duplicate":
                sequence = max(0, sequence - 1 - number)
            elif kind == "skip":
                sequence += 1 + number
            try:
                outcome = learner.learn(
                    str(edge), epochs[edge], sequence, *batch(edge, sequence)
                )
            except CloudUnavailable:
                assert ledger.is_full
            else:
                assert outcome.is_applied == (sequence == expected[edge])
                assert outcome.is_gap == (sequence > expected[edge])
                if outcome.is_applied:
                    applied.append((edge, sequence))
                    expected[edge] += 1
                assert outcome.expected == expected[edge]
                assert outcome.committed <= expected[edge]
        for i in (0, 1):
            done = learner.committed(str(i))
            assert done >= acknowledged[i]
            # Only what would outlast a crash is acknowledged.
            assert done <= ledger.content[1]["edges"].get(str(i), [0, 0])[1]
            acknowledged[i] = done
        mine = [[s for e, s in applied if e == i] for i in (0, 1)]
        assert mine == [list(range(len(m))) for m in mine]
        assert bytes_of(stepper) == replay(applied)


def test_commits_every_few_batches(tmp_path):
    learner, _ = make(tmp_path, commit_every=3)
    assert learner.meet("a", 1) == 0
    done = [learner.learn("a", 1, i, *batch(0, i)).committed for i in range(7)]
    assert done == [0, 0, 3, 3, 3, 6, 6]
    assert learner.commit() and learner.committed("a") == 7


def test_restart_goes_on_after_what_is_committed(tmp_path):
    learner, _ = make(tmp_path / "one", commit_every=4)
    learner.meet("a", 1)
    for i in range(6):
        learner.learn("a", 1, i, *batch(0, i))
    learner._ledger.close()
    learner, stepper = make(tmp_path / "one", commit_every=4)
    assert learner.meet("a", 2) == 4
    for i in range(4, 9):
        learner.learn("a", 2, i, *batch(0, i))
    assert bytes_of(stepper) == replay([(0, i) for i in range(9)])


def test_older_runs_are_fenced_also_after_a_restart(tmp_path):
    learner, _ = make(tmp_path)
    learner.meet("a", 3)
    learner._ledger.close()
    learner, _ = make(tmp_path)
    with pytest.raises(Fenced):
        learner.meet("a", 2)
    with pytest.raises(Fenced):
        learner.learn("a", 2, 0, *batch(0, 0))
    with pytest.raises(Fenced):
        learner.learn("unknown", 0, 0, *batch(0, 0))


@pytest.mark.parametrize("value", [1e38, np.nan, np.inf, -1e7])
def test_poison_leaves_the_state_as_it_would_be_without(tmp_path, value):
    learner, stepper = make(tmp_path, commit_every=7)
    learner.meet("a", 1)
    for i in range(100):
        if i == 50:
            before = bytes_of(stepper)
            (x,), y = batch(0, i)
            x = x.copy()
            x[1, 2] = value
            with pytest.raises(WireError):
                learner.learn("a", 1, i, (x,), y)
            assert bytes_of(stepper) == before and learner.refused == 1
        assert learner.learn("a", 1, i, *batch(0, i)).is_applied
    assert bytes_of(stepper) == replay([(0, i) for i in range(100)])


def test_loss_that_is_not_finite_is_undone(tmp_path):
    learner, stepper = make(tmp_path, commit_every=4)
    learner.meet("a", 1)
    for i in range(6):
        learner.learn("a", 1, i, *batch(0, i))
    (x,), y = batch(0, 6)
    with np.errstate(all="ignore"), pytest.raises(WireError, match="finite"):
        learner.learn("a", 1, 6, (x,), y * np.inf)
    assert bytes_of(stepper) == replay([(0, i) for i in range(4)])
    outcome = learner.learn("a", 1, 6, (x,), y)
    assert outcome.is_gap and outcome.expected == 4
    for i in range(4, 6):
        learner.learn("a", 1, i, *batch(0, i))
    # It stays refused: the edge is to look at it.
    with pytest.raises(WireError):
        learner.learn("a", 1, 6, (x,), y)
    assert bytes_of(stepper) == replay([(0, i) for i in range(6)])


def test_full_disk(tmp_path):
    ledger, now = Memory(), [0.0]
    stepper = LinearStepper()
    learner = Learner(stepper, ledger, commit_every=2, clock=lambda: now[0])
    learner.meet("a", 1)
    ledger.is_full = True
    learner.learn("a", 1, 0, *batch(0, 0))
    outcome = learner.learn("a", 1, 1, *batch(0, 1))
    assert outcome.is_applied and outcome.committed == 0
    assert not learner.is_healthy
    for _ in range(3):
        now[0] += 5
        with pytest.raises(CloudUnavailable):
            learner.learn("a", 1, 2, *batch(0, 2))
    with pytest.raises(CloudUnavailable):
        learner.meet("b", 1)
    assert learner.committed("a") == 0 and "b" not in ledger.content[1]["edges"]
    ledger.is_full = False
    now[0] += 5
    assert learner.learn("a", 1, 2, *batch(0, 2)).committed == 2
    assert learner.is_healthy
    assert bytes_of(stepper) == replay([(0, i) for i in range(3)])


def test_ledger_of_another_model_is_refused(tmp_path):
    learner, _ = make(tmp_path, agreement="one")
    learner._ledger.close()
    with pytest.raises(ValueError, match="another model"):
        make(tmp_path, agreement="other")


def test_damaged_ledger_says_so(tmp_path):
    learner, _ = make(tmp_path)
    learner._ledger.close()
    path = tmp_path / "ledger"
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedSnapshot, match="ledger"):
        make(tmp_path)


def test_one_process_for_one_ledger(tmp_path):
    make(tmp_path)
    with pytest.raises(LedgerInUse, match="another process"):
        Ledger(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["ledger", "ledger.lock"]

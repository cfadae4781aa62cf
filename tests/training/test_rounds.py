"""Rounds of averaging: each offer counts once, and nobody holds them up."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_worker.training.rounds import Offer, Rounds
from protos.errors import Overloaded


def vector(*values):
    return np.array(values, "float32")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make(folder, **options):
    clock = Clock()
    return Rounds(folder, "form", clock=clock, **options), clock


def test_mean_is_weighted_by_samples(tmp_path):
    rounds, _ = make(tmp_path)
    rounds.add("b", Offer(1, 30, vector(4, 0)))
    rounds.add("a", Offer(1, 10, vector(0, 8)))
    rounds.end()
    assert rounds.last.vector.tolist() == [3, 2]
    assert rounds.last[0::2] == (1, 2) and rounds.last.samples == 40


def test_who_is_awaited(tmp_path):
    rounds, clock = make(tmp_path, quorum=2, wait_s=10)
    assert not rounds.is_due(set())
    rounds.add("a", Offer(1, 1, vector(1)))
    # Alone there, but fewer than the quorum.
    assert not rounds.is_due({"a"})
    assert not rounds.is_due({"a", "b", "c"})
    rounds.add("b", Offer(1, 1, vector(2)))
    assert rounds.is_due({"a", "b"}) and rounds.is_due({"a"})
    assert not rounds.is_due({"a", "b", "c"})
    clock.now = 10.0
    assert rounds.is_due({"a", "b", "c"})


def test_too_few_have_no_average(tmp_path):
    rounds, clock = make(tmp_path, quorum=2, wait_s=10)
    for number, edges in ((1, "ab"), (2, "a")):
        for edge in edges:
            rounds.add(edge, Offer(number, 1, vector(number)))
        clock.now += 10
        assert rounds.is_due({"a", "b"})
        rounds.end()
    assert rounds.last.round == 2 and rounds.last.vector is None
    # Who joins gets what there was.
    assert rounds.newest.tolist() == [1]
    again, _ = make(tmp_path, quorum=2)
    assert again.last == rounds.last and again.newest.tolist() == [1]


def test_an_offer_counts_once_also_after_a_restart(tmp_path):
    rounds, _ = make(tmp_path)
    assert rounds.add("a", Offer(1, 1, vector(1)))
    # Sent again, before the end of the round: it takes the first one's place.
    assert rounds.add("a", Offer(1, 1, vector(1)))
    rounds.end()
    for found in (rounds, make(tmp_path)[0]):
        assert not found.add("a", Offer(1, 1, vector(1)))
        assert found.last.round == 1 and found.last.edges == 1
        assert found.last.vector.tolist() == [1]
    assert rounds.add("a", Offer(2, 1, vector(3)))


def test_who_is_late_counts_in_the_round_that_is_open(tmp_path):
    rounds, _ = make(tmp_path)
    for number in (1, 2, 3):
        rounds.add("fast", Offer(number, 1, vector(0)))
        rounds.end()
    assert rounds.add("slow", Offer(1, 1, vector(2)))
    rounds.add("fast", Offer(4, 1, vector(0)))
    rounds.end()
    assert rounds.last.round == 4 and rounds.last.vector.tolist() == [1]


def test_disk_that_is_full_leaves_the_round_open(tmp_path, monkeypatch):
    from keras_earlyexit import snapshots

    rounds, _ = make(tmp_path)
    rounds.add("a", Offer(1, 1, vector(1)))

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write", fails)
        with pytest.raises(OSError):
            rounds.end()
    assert rounds.last.round == 0 and rounds.is_due({"a"})
    rounds.end()
    assert rounds.last.round == 1


def test_bounded(tmp_path, monkeypatch):
    from cloud_worker.training import rounds as module

    monkeypatch.setattr(module, "_MAX_OPEN_BYTES", 8)
    rounds, _ = make(tmp_path)
    for name in "aab":
        rounds.add(name, Offer(1, 1, vector(1)))
    with pytest.raises(Overloaded, match="average"):
        rounds.add("c", Offer(1, 1, vector(1)))


def test_of_other_weights_is_refused(tmp_path):
    rounds, _ = make(tmp_path)
    rounds.add("a", Offer(1, 1, vector(1)))
    rounds.end()
    with pytest.raises(ValueError, match="other"):
        Rounds(tmp_path, "another")


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["offer"] * 4 + ["again", "end", "crash"]),
        st.integers(0, 2),
    ),
    max_size=25,
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(EVENTS)
def test_histories(tmp_path_factory, events):
    """Whatever is sent again and lost: each offer is in one mean, or in none
    yet."""
    folder = tmp_path_factory.mktemp("rounds")
    rounds, _ = make(folder)
    numbers, waiting, samples = [0, 0, 0], {}, 0
    for kind, edge in events:
        name = str(edge)
        if kind == "offer" and name not in waiting:
            numbers[edge] += 1
            waiting[name] = numbers[edge]
        if kind in ("offer", "again") and numbers[edge]:
            number = waiting.get(name, numbers[edge])
            is_open = rounds.add(name, Offer(number, number, vector(number)))
            assert is_open == (name in waiting)
        elif kind == "end" and rounds.is_due(set()):
            before = rounds.last.round
            taken = set(rounds._open)
            rounds.end()
            assert rounds.last.round == before + 1
            assert rounds.last.samples == sum(waiting[n] for n in taken)
            samples += rounds.last.samples
            waiting = {n: x for n, x in waiting.items() if n not in taken}
        elif kind == "crash":
            rounds, _ = make(folder)
    expected = sum(n * (n + 1) // 2 for n in numbers) - sum(waiting.values())
    assert samples == expected

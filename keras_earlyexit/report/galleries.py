"""Which samples are worth looking at: easy and hard ones, and mistakes."""

import dataclasses

import numpy as np

from keras_earlyexit.report.samples import answer_text

_PER_EXIT = 8
_MISTAKES = 12


@dataclasses.dataclass(frozen=True)
class Card:
    """A sample, and what the exits say about it.

    Args:
        number: Its row in the data.
        shown: A `samples.Shown`.
        label: What is true, in words.
        answer: What was answered, in words.
        exit_name: Where it was answered.
        score: The score it left with, or `None` at `final`.
        is_right: Whether the answer is right; `None` where that is no
            question of yes or no.
        others: Pairs (exit, answer) of what other exits say.
    """

    number: int
    shown: object
    label: str
    answer: str
    exit_name: str
    score: float | None
    is_right: bool | None
    others: tuple = ()


class Galleries:
    """Picks samples and makes cards of them.

    Args:
        seen: `Observations` with labels.
        taken: Integer array (n,), the exit that each sample leaves at.
        samples: A `samples.Samples`.
        names: A name for each unit of the head.
    """

    def __init__(self, seen, taken, samples, names):
        self._seen = seen
        self._taken = taken
        self._samples = samples
        self._names = names
        self._rows = np.arange(len(seen))

    def by_exit(self):
        """For each exit some samples that left there, from easy to hard.

        Returns:
            List of pairs (exit name, list of `Card`).
        """
        found = []
        for k, name in enumerate(self._seen.exit_names):
            rows = np.flatnonzero(self._taken == k)
            scores = self._seen.scores[rows, min(k, self._last_early)]
            rows = rows[np.argsort(-scores, kind="stable")]
            count = min(_PER_EXIT, len(rows))
            places = np.linspace(0, len(rows) - 1, count).round().astype(int)
            cards = [self._card(row) for row in rows[places]] if count else []
            found.append((name, cards))
        return found

    def mistakes(self):
        """Rows whose early answer was worse than what came after, or better.

        Returns:
            Two integer arrays: samples that left early and that a deeper exit
            would have answered better; and those that left early with a
            better answer than the whole model's. The surest ones first.

        Raises:
            ValueError: For a regression model, whose answers are all wrong by
                something.
        """
        if self._seen.head.task == "regression":
            raise ValueError(
                "Expected a model whose answers are right or wrong. Received: "
                "observations of a regression model."
            )
        quality = self._seen.sample_metrics
        # The best of all exits from each one on.
        onward = np.maximum.accumulate(quality[:, ::-1], axis=1)[:, ::-1]
        own = quality[self._rows, self._taken]
        fixable = onward[self._rows, self._taken] > own
        better = own > quality[:, -1]
        return self._surest(fixable), self._surest(better)

    def cards(self, rows):
        """Cards of the first few rows, with what the exits behind say."""
        return [self._card(row, others=True) for row in rows[:_MISTAKES]]

    @property
    def _last_early(self):
        return self._seen.scores.shape[1] - 1

    def _surest(self, chosen):
        rows = np.flatnonzero(chosen)
        taken = np.minimum(self._taken[rows], self._last_early)
        order = np.argsort(-self._seen.scores[rows, taken], kind="stable")
        return rows[order]

    def _card(self, row, others=False):
        seen, k = self._seen, self._taken[row]
        behind = range(k + 1, len(seen.exit_names)) if others else ()
        return Card(
            number=int(row),
            shown=self._samples.show(row),
            label=self._text(seen.labels[row]),
            answer=self._answer(row, k),
            exit_name=seen.exit_names[k],
            score=None if k > self._last_early else float(seen.scores[row, k]),
            is_right=self._is_right(row, k),
            others=tuple(
                (seen.exit_names[j], self._answer(row, j)) for j in behind
            ),
        )

    def _is_right(self, row, k):
        head = self._seen.head
        if head.task == "regression":
            return None
        return bool(self._seen.sample_metrics[row, k] == 1.0)

    def _answer(self, row, k):
        """What an exit says, in words."""
        seen = self._seen
        if seen.head.positions and seen.head.task != "regression":
            share = seen.sample_metrics[row, k]
            return f"{share:.1%} of the positions right"
        return self._text(seen.answers(k)[row])

    def _text(self, answer):
        return answer_text(self._seen.head, self._names, answer)

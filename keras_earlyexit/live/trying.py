"""What the page shows: answers, opinions, savings, thresholds and risks."""

import collections
import dataclasses
import math
import threading

import numpy as np

from keras_earlyexit import plots
from keras_earlyexit.calibration import observe
from keras_earlyexit.report import findings

_WARM_UP = 5


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What one exit says of a sample.

    Args:
        exit_name: The exit.
        answer: Its class, in words.
        probability: The probability of that class.
        score: The score, or `None` at `final`.
        threshold: What the score has to exceed, or `None` at `final`.
        is_taken: Whether the sample left here.
        is_reached: Whether it was run for the sample.
    """

    exit_name: str
    answer: str
    probability: float
    score: float | None
    threshold: float | None
    is_taken: bool
    is_reached: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sample was answered.

    Args:
        answer: The class, in words.
        exit_name: The exit that answered.
        answered_by: `"edge"`, `"cloud"` or `"degraded"`.
        milliseconds: How long it took.
        saved_milliseconds: Against the median of the answers from the cloud,
            or `None` while there was none.
        bytes_up: What was sent to the cloud.
        saved_bytes: What was not: the picture's feature, if it stayed.
        relative_cost: Of the exit that answered.
        opinions: An `Opinion` of every exit.
        label: What is true, in words, or `None`.
    """

    answer: str
    exit_name: str
    answered_by: str
    milliseconds: float
    saved_milliseconds: float | None
    bytes_up: int
    saved_bytes: int
    relative_cost: float
    opinions: tuple
    label: str | None


class Trying:
    """A model to try, with data to choose from and to calibrate on.

    Args:
        model: An `EarlyExitModel` that classifies; its thresholds are moved.
        split: A `processes.Split` of it.
        data: `(x, y)` to choose samples from and to measure on.
        calibration: `(x, y)` of other samples, to choose thresholds on, or
            `None`.
        names: Names of the classes.
    """

    def __init__(self, model, split, data, calibration, names):
        self.model, self.split, self.names = model, split, names
        self.x, self.y = data
        self._seen = observe(model, *data, verbose=0)
        self._apart = None
        if calibration is not None:
            self._apart = observe(model, *calibration, verbose=0)
        feature = model.exit_graph.features[-1]
        self._feature_bytes = 4 * math.prod(feature.shape[1:])
        self._cloud_times = collections.deque(maxlen=50)
        self._lock = threading.Lock()
        self._warm_up()

    @property
    def threshold(self):
        """The threshold of all early exits; the first one's if they differ."""
        return float(np.atleast_1d(self.model.policy.threshold)[0])

    @property
    def threshold_range(self):
        """Thresholds below and above all scores."""
        scores = self._seen.scores
        return math.floor(scores.min()), math.ceil(scores.max())

    @property
    def has_risks(self):
        """Whether thresholds can be chosen by risk."""
        return self._apart is not None

    def set_threshold(self, threshold):
        """Moves the threshold of all early exits, here and at the edge."""
        with self._lock:
            self.model.policy.threshold = threshold
            count = len(self.model.exit_names) - 1
            self.split.set_thresholds(self.model.policy.thresholds(count))

    def threshold_for(self, risk, step):
        """The threshold that keeps a risk, and what is promised.

        Args:
            risk: What early exits may cost in accuracy, in (0, 1).
            step: What the threshold is rounded up to, which is more careful.

        Returns:
            A float, and a sentence.
        """
        with self._lock:
            found, trouble = findings.risk_levels(
                self.model, self._apart, [risk]
            )
        report = found[risk]
        threshold = min(float(report.threshold), self.threshold_range[1])
        threshold = round(step * math.ceil(threshold / step - 1e-6), 6)
        return threshold, " ".join(trouble or [report.message])

    def figures(self):
        """Accuracy and mean cost on the data, at the present thresholds."""
        threshold = self.model.policy.threshold
        return self._seen.accuracy(threshold), self._seen.mean_cost(threshold)

    def curve(self):
        """Accuracy against cost, with a ring at the present thresholds."""
        return plots.accuracy_cost_curve(
            self._seen, chosen=self.model.policy.threshold
        )

    def samples_by_exit(self, count):
        """Numbers of some samples, so many for each exit, easy ones first."""
        taken = self._seen.exit_index(self.model.policy.threshold)
        chosen = []
        for k in range(len(self.model.exit_names)):
            rows = np.flatnonzero(taken == k)
            last = self._seen.scores.shape[1] - 1
            scores = self._seen.scores[rows, min(k, last)]
            rows = rows[np.argsort(-scores, kind="stable")]
            places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
            chosen += rows[places.round().astype(int)].tolist()
        return chosen

    def answer(self, sample, label=None):
        """Lets the workers answer a sample, and asks every exit.

        Args:
            sample: Array, an input without the batch.
            label: Its class, or `None`.

        Returns:
            An `Outcome`.
        """
        with self._lock:
            reply = self.split.ask(sample)
            seen = observe(self.model, sample[None], verbose=0)
            opinions = self._opinions(seen, reply)
        saved = None
        if reply.answered_by == "cloud":
            self._cloud_times.append(reply.milliseconds)
        elif reply.answered_by == "edge" and self._cloud_times:
            saved = float(np.median(self._cloud_times)) - reply.milliseconds
        stayed = reply.answered_by == "edge"
        return Outcome(
            answer=self.names[int(np.argmax(reply.prediction))],
            exit_name=self.model.exit_names[reply.exit_index],
            answered_by=reply.answered_by,
            milliseconds=reply.milliseconds,
            saved_milliseconds=saved,
            bytes_up=reply.bytes_up,
            saved_bytes=self._feature_bytes if stayed else 0,
            relative_cost=float(self.model.relative_costs[reply.exit_index]),
            opinions=opinions,
            label=None if label is None else self.names[int(label)],
        )

    def _opinions(self, seen, reply):
        early = len(self.model.exit_names) - 1
        thresholds = self.model.policy.thresholds(early)
        found = []
        for k, name in enumerate(self.model.exit_names):
            probabilities = np.asarray(
                seen.head.probabilities(seen.predictions[k])
            )[0]
            best = int(probabilities.argmax())
            found.append(
                Opinion(
                    exit_name=name,
                    answer=self.names[best],
                    probability=float(probabilities[best]),
                    score=float(seen.scores[0, k]) if k < early else None,
                    threshold=float(thresholds[k]) if k < early else None,
                    is_taken=k == reply.exit_index,
                    is_reached=k <= reply.exit_index,
                )
            )
        return tuple(found)

    def _warm_up(self):
        """The first answers are slow, and the cloud's time is to be known."""
        hardest = np.argsort(self._seen.scores.max(axis=1))[:_WARM_UP]
        for row in hardest:
            self.answer(self.x[row])
        # Those that met a cold cloud worker.
        while len(self._cloud_times) > 2:
            self._cloud_times.popleft()

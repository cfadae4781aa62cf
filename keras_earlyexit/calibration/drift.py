"""Says when the calibration set no longer describes the traffic.

What was promised for calibrated thresholds holds for samples like those of
the calibration set. Whether they still come can be seen without labels: by the
exits that are taken, and by the scores that samples leave with.
"""

import dataclasses

import numpy as np

from keras_earlyexit.calibration import _checks
from keras_earlyexit.calibration._sequential import (
    ChangeBets,
    CountedRanks,
    SortedRanks,
)
from keras_earlyexit.calibration.observations import Observations

# How many samples `exit_shares_now` describes at most.
_RECENT = 1000
# Bits of a score that count. Batches of other sizes round differently, and
# scores that saturate would then be ties in one batch but not in another.
_SCORE_BITS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class DriftReport:
    """What a `DriftMonitor` has found so far.

    Args:
        drifted: Whether there has been an alarm; it stays until `reset`.
        evidence: Natural logarithm of the martingale after the last sample,
            0 at the start. There is an alarm when it reaches log(1 / alpha).
        since: Number of the sample that raised the alarm, from 0 on, or
            `None`. The drift began before it.
        n: Number of samples seen.
        exit_shares_now: Array (E + 1,), share of the last samples, at most
            1000, that left at each exit; zeros before the first.
        exit_shares_reference: Array (E + 1,), the same of the reference.
        message: In a sentence, what was found and what to do.
    """

    drifted: bool
    evidence: float
    since: int | None
    n: int
    exit_shares_now: np.ndarray
    exit_shares_reference: np.ndarray
    message: str


class DriftMonitor:
    """Watches exits and scores of a model in use, and alarms when they drift.

    A sequential test that may be looked at after every sample. If the samples
    of the reference and of the traffic are exchangeable (for instance
    independent, from one distribution),

        P(there is ever an alarm) <= alpha,

    whatever the size of the reference and however long the traffic lasts.

    Every sample gives two ranks among the reference and all traffic before it:
    of the exit that it takes, and of its score among the samples that left at
    the same exit (none at `final`). Ties are broken at random. As long as
    samples are exchangeable all these ranks are independent and uniform. Two
    martingales M_e and M_s bet that they are not, from some moment on, and

        M = (1 + M_e) / 2 (1 + M_s) / 2

    puts a quarter of the stake each on nothing, on the exits, on the scores,
    and on both. By Ville's inequality M reaches 1 / alpha with probability
    alpha at most.

    What is lost: drift that moves neither exits nor scores is not seen, so
    nothing is where nobody leaves early or scores are saturated. Samples that
    arrive in a meaningful order (sorted by class, frames of a video) are not
    exchangeable and count as drift. What has drifted becomes the past that new
    samples are compared with: a large reference notices weaker drift. A
    reference that thresholds were chosen on is not exchangeable with new
    samples by the letter; to have it so, split it with `take` and choose on
    one part. Keeps 8 bytes for every sample that left early.

    Args:
        reference: `Observations` of samples as they should be, n at least 1
            and better some hundreds, made by the model with its present
            weights and policy. Labels are not needed.
        thresholds: The thresholds that the traffic meets: a number, one per
            early exit (E,), or what `calibrate` returned.
        alpha: The chance of a false alarm, ever, in (0, 1).
        seed: Integer, of the random numbers that break ties.

    Raises:
        TypeError: If `reference` is no `Observations`.
        ValueError: If it is empty or has NaN scores, or if `thresholds` or
            `alpha` are not as described.

    Example:

    ```python
    seen = ee.calibration.observe(model, x_calibration)
    ee.calibrate(model, seen)
    monitor = ee.calibration.DriftMonitor(seen, model.policy.threshold)
    for x in traffic:
        report = monitor.update(model.predict_exits(x))
        if report.drifted:
            print(report.message)
            break
    ```

    Reference:
        Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World,
        second edition, Springer 2022, chapter 8 (conformal test martingales).
    """

    def __init__(self, reference, thresholds, *, alpha=0.01, seed=0):
        if not isinstance(reference, Observations):
            raise TypeError(
                "Expected `reference` to be Observations. Received: "
                f"{_checks.describe(reference)}. Make them with "
                "`ee.calibration.observe(model, x_calibration)`."
            )
        if not len(reference) or np.isnan(reference.scores).any():
            raise ValueError(
                "Expected a reference of at least one sample, with scores "
                f"that are not NaN. Received: {reference!r} with "
                f"{int(np.isnan(reference.scores).sum())} NaN scores. Observe "
                "the model on its calibration set."
            )
        advice = "It is the chance of a false alarm; 0.01 is usual."
        self.alpha = _checks.fraction("alpha", alpha, advice)
        thresholds = getattr(thresholds, "threshold", thresholds)
        self._exits = reference.exit_index(thresholds)
        early = reference.scores.shape[1]
        self._thresholds = np.broadcast_to(
            np.asarray(thresholds, "float32"), (early,)
        )
        # `final` has no score: any column stands in and is never looked at.
        column = np.minimum(self._exits, early - 1)[:, None]
        scores = np.take_along_axis(reference.scores, column, axis=1)[:, 0]
        self._scores = _rounded(scores)
        self._exit_names = reference.exit_names
        self._seed = seed
        self.reset()

    def reset(self):
        """Forgets the traffic, evidence and alarm; the reference stays.

        The false-alarm rate is that of one start: k starts raise at least one
        false alarm with probability k alpha at most. After the thresholds were
        chosen anew the scores have a new reference: make a new monitor.
        """
        early = len(self._thresholds)
        self._exit_ranks = CountedRanks(
            np.bincount(self._exits, minlength=early + 1)
        )
        self._score_ranks = [
            SortedRanks(self._scores[self._exits == k]) for k in range(early)
        ]
        self._exit_bets, self._score_bets = ChangeBets(), ChangeBets()
        self._random = np.random.default_rng(self._seed)
        self._n, self._since, self._evidence = 0, None, 0.0
        self._recent = self._exits[:0]

    def update(self, result):
        """Takes in the next samples, in the order in which they came.

        The report does not depend on how samples are divided into batches.

        Args:
            result: `ExitResult` of N samples, N = 0 allowed, as
                `model.predict_exits` returns it.

        Returns:
            A `DriftReport` on everything since the start.

        Raises:
            TypeError: If `result` has no exits and scores.
            ValueError: If they do not come from a model like that of the
                reference with its thresholds. Nothing is taken in then.
        """
        exits, scores = self._checked(result)
        uniform = self._random.random((len(exits), 2))
        exit_ranks = self._exit_ranks.ranks(exits, uniform[:, 0])
        scores_ranked = np.full(len(exits), np.nan)
        for k, known in enumerate(self._score_ranks):
            rows = np.flatnonzero(exits == k)
            scores_ranked[rows] = known.ranks(scores[rows], uniform[rows, 1])
        path = sum(
            np.logaddexp(0.0, bets.bet(ranks)) - np.log(2.0)
            for bets, ranks in (
                (self._exit_bets, exit_ranks),
                (self._score_bets, scores_ranked),
            )
        )
        if self._since is None:
            alarms = np.flatnonzero(path >= -np.log(self.alpha))
            if len(alarms):
                self._since = self._n + int(alarms[0])
        if len(path):
            self._evidence = float(path[-1])
        self._n += len(exits)
        self._recent = np.concatenate([self._recent, exits])[-_RECENT:]
        return self._report()

    def _report(self):
        now = self._shares(self._recent)
        reference = self._shares(self._exits)
        if self._since is None:
            message = (
                f"No drift found in {self._n} samples: evidence "
                f"{self._evidence:.2f} of {-np.log(self.alpha):.2f}."
            )
        else:
            moves = ", ".join(
                f"{name} {before:.1%} -> {after:.1%}"
                for name, before, after in zip(
                    self._exit_names, reference, now, strict=True
                )
            )
            message = (
                f"Drift found at sample {self._since}: without drift the "
                f"chance of an alarm is at most {self.alpha:g}. Exits taken: "
                f"{moves}. Calibrate on recent samples and make a new monitor."
            )
        return DriftReport(
            drifted=self._since is not None,
            evidence=self._evidence,
            since=self._since,
            n=self._n,
            exit_shares_now=now,
            exit_shares_reference=reference,
            message=message,
        )

    def _shares(self, exits):
        counts = np.bincount(exits, minlength=len(self._exit_names))
        return counts / max(len(exits), 1)

    def _checked(self, result):
        """Exits (N,) and rounded scores (N,) that fit the reference."""
        if not (hasattr(result, "exit_index") and hasattr(result, "score")):
            raise TypeError(
                "Expected an ExitResult. Received: "
                f"{_checks.describe(result)}. Pass what "
                "`model.predict_exits(x)` returns."
            )
        exits, scores = np.asarray(result.exit_index), np.asarray(result.score)
        early = len(self._thresholds)
        if (
            exits.dtype.kind not in "iu"
            or scores.dtype.kind != "f"
            or exits.ndim != 1
            or scores.shape != exits.shape
        ):
            raise ValueError(
                "Expected integer `exit_index` (N,) and float `score` (N,). "
                f"Received: shapes {exits.shape} and {scores.shape}, of dtype "
                f"{exits.dtype} and {scores.dtype}. Pass what "
                "`model.predict_exits(x)` returns."
            )
        if len(exits) and not 0 <= exits.min() <= exits.max() <= early:
            raise ValueError(
                f"Expected `exit_index` from 0 to {early}, for the exits "
                f"{', '.join(self._exit_names)}. Received: {exits.min()} to "
                f"{exits.max()}. The reference comes from another model: "
                "make a monitor with observations of this one."
            )
        exits = exits.astype("int64")
        # Compared in float32, as in the model; NaN passes no threshold.
        left = exits < early
        passed = scores[left].astype("float32") > self._thresholds[exits[left]]
        if not (passed.all() and np.isnan(scores[~left]).all()):
            raise ValueError(
                "Expected scores above the thresholds "
                f"{self._thresholds.tolist()}, and NaN at `final`. Received: "
                f"{int((~passed).sum())} samples of {len(exits)} that left "
                "early with other scores, and "
                f"{int((~np.isnan(scores[~left])).sum())} at `final` that "
                "have one. Make a new monitor with the model's present policy "
                "and thresholds."
            )
        return exits, _rounded(scores)


def _rounded(scores):
    fraction, exponent = np.frexp(scores.astype("float64"))
    fraction = np.round(np.ldexp(fraction, _SCORE_BITS))
    return np.ldexp(fraction, exponent - _SCORE_BITS)

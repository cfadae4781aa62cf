"""One pass over a data set: what every exit answers, and how sure it is.

Why kept: with the scores and answers of all exits at hand, the cost and the
accuracy of any threshold are a comparison and a mean. Curves, risk control and
searches over thresholds run the network once.
"""

import dataclasses
import functools
import typing

import numpy as np

from keras_earlyexit.calibration import _checks, _reading
from keras_earlyexit.calibration.fingerprints import fingerprints_of


class Curve(typing.NamedTuple):
    """Cost and quality of the routed answers along a range of thresholds.

    Args:
        thresholds: Array (L,), rising from `-inf` (everybody leaves at the
            first exit) to `inf` (nobody leaves early).
        costs: Array (L,), mean relative cost at each threshold.
        values: Array (L,), accuracy in [0, 1], or for values the mean
            absolute error in units of the label.
    """

    thresholds: np.ndarray
    costs: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Observations:
    """Scores and answers of every exit for n samples; see `observe`.

    Sample i leaves at the first early exit k with `scores[i, k]` strictly
    above that exit's threshold, and at `final` (index E) if there is none.
    Thresholds are a number for all early exits or one per early exit, and are
    compared in float32, as in the model.

    Args:
        scores: Float array (n, E).
        predictions: List of E + 1 arrays (n, ..., units), answers in the
            head's own form.
        labels: `None`, or class numbers (n, ...) or labels and values (n, ...,
            units).
        relative_costs: Float array (E + 1,).
        exit_names: Names of the exits, `final` last.
        head: The model's `tasks.Head`.
        policy_name: Name of the policy that made the scores.
        fingerprints: `None`, or uint64 array (n,), the samples' hashes, for
            `calibrate` to notice those that the model was trained on.
        confidences: `None`, or float array (n, E), what the confidence
            branches say, for `scored_by`.
    """

    scores: np.ndarray
    predictions: list
    labels: np.ndarray | None
    relative_costs: np.ndarray
    exit_names: tuple
    head: object
    policy_name: str | None = None
    fingerprints: np.ndarray | None = None
    confidences: np.ndarray | None = None

    def __len__(self):
        return len(self.scores)

    def __repr__(self):
        labels = "without labels" if self.labels is None else "with labels"
        return (
            f"Observations({len(self)} samples {labels}, "
            f"exits {', '.join(self.exit_names)}, policy={self.policy_name!r})"
        )

    def take(self, rows):
        """The observations of some samples, to split what was seen once.

        Args:
            rows: Integer or boolean array, or a slice, over the n samples.

        Returns:
            `Observations`.
        """
        return dataclasses.replace(
            self,
            scores=self.scores[rows],
            predictions=[part[rows] for part in self.predictions],
            labels=None if self.labels is None else self.labels[rows],
            fingerprints=(
                None if self.fingerprints is None else self.fingerprints[rows]
            ),
            confidences=(
                None if self.confidences is None else self.confidences[rows]
            ),
        )

    def scored_by(self, policy):
        """The same answers with the scores of another policy.

        Args:
            policy: A policy, its name or config.

        Returns:
            `Observations`.

        Raises:
            ValueError: If the policy does not fit the model's answers, or
                needs confidences that were not kept.

        Example:

        ```python
        seen = ee.calibration.observe(model, x, y)
        ee.plots.accuracy_cost_curve(
            {name: seen.scored_by(name) for name in ("entropy", "margin")}
        )
        ```
        """
        from keras_earlyexit import policies

        policy = policies.get(policy)
        policy.check(self.head, self.scores.shape[1])
        if policy.uses_confidence and self.confidences is None:
            raise ValueError(
                "Expected observations with confidences for the policy "
                f"{policy.name!r}, which reads them. Received: {self!r}, "
                "without. Observe again."
            )
        return dataclasses.replace(
            self,
            scores=_reading.scores_of(
                policy, self.head, self.predictions[:-1], self.confidences
            ),
            policy_name=policy.name,
        )

    def exit_index(self, thresholds):
        """Index of the exit that each sample leaves at.

        Args:
            thresholds: A number, or one per early exit (E,).

        Returns:
            Integer array (n,), E for `final`.

        Raises:
            ValueError: If thresholds are NaN, or not one or E of them.
        """
        early = self.scores.shape[1]
        leaves = self.scores > _as_thresholds(thresholds, early)
        return np.where(leaves.any(axis=1), leaves.argmax(axis=1), early)

    def exit_index_grid(self, thresholds):
        """As `exit_index`, for many thresholds at once.

        Args:
            thresholds: Array (L,) of thresholds that all early exits share,
                or (L, E) with one for each early exit in every row.

        Returns:
            Integer array (n, L); column j belongs to `thresholds[j]`.

        Raises:
            ValueError: If thresholds are NaN or have another shape.
        """
        early = self.scores.shape[1]
        thresholds = _checks.grid(thresholds, early).astype("float32")
        if thresholds.ndim == 1:
            thresholds = np.repeat(thresholds[:, None], early, axis=1)
        found = np.zeros((len(self), len(thresholds)), "int16")
        inside = np.ones(found.shape, bool)
        for k in range(early):
            inside &= ~(self.scores[:, k, None] > thresholds[:, k])
            found += inside
        return found

    def exit_shares(self, thresholds):
        """Share of the samples that leave at each exit: (E + 1,), sums to 1."""
        counts = np.bincount(
            self.exit_index(thresholds), minlength=len(self.exit_names)
        )
        return counts / len(self)

    def mean_cost(self, thresholds):
        """Mean relative cost, a float: 1 is the model without exits."""
        taken = self.exit_index(thresholds)
        return float(np.mean(self.relative_costs[taken]))

    def accuracy(self, thresholds):
        """Accuracy of the routed answers, a float in [0, 1].

        The share of samples that are right; with several positions or labels
        for each sample the mean over them.

        Args:
            thresholds: A number, or one per early exit (E,).

        Raises:
            ValueError: If there are no labels, or for a regression model,
                which has a `mean_absolute_error` instead.
        """
        self._check_metric("accuracy")
        return self.metric(thresholds)

    def exit_accuracies(self):
        """Accuracy of each exit if it answers every sample: (E + 1,)."""
        self._check_metric("accuracy")
        return self.exit_metrics()

    def mean_absolute_error(self, thresholds):
        """Mean absolute error of the routed answers of a regression model.

        Args:
            thresholds: A number, or one per early exit (E,).

        Returns:
            A float in units of the label.

        Raises:
            ValueError: If there are no labels, or for a classifier, which has
                an `accuracy` instead.
        """
        self._check_metric("mean_absolute_error")
        return self.metric(thresholds)

    @property
    def metric_name(self):
        """What `metric` is: `"accuracy"` or `"mean_absolute_error"`."""
        if self.head.task == "regression":
            return "mean_absolute_error"
        return "accuracy"

    def metric(self, thresholds):
        """The task's own figure, `metric_name`, of the routed answers."""
        taken = self.exit_index(thresholds)[:, None]
        values = np.take_along_axis(self.sample_metrics, taken, axis=1)
        return float(np.mean(values))

    def exit_metrics(self):
        """The task's own figure of each exit alone: float array (E + 1,)."""
        return self.sample_metrics.mean(axis=0)

    def curve(self, num=100):
        """Cost and quality along the thresholds that can be told apart.

        Args:
            num: How many thresholds to take at most between the two ends.
                They are quantiles of the scores, without repetition.

        Returns:
            A `Curve`, which unpacks into (thresholds, costs, values).

        Raises:
            ValueError: If there are no labels.

        Example:

        ```python
        seen = ee.calibration.observe(model, x, y)
        thresholds, costs, accuracies = seen.curve()
        ```
        """
        scores = np.unique(
            np.quantile(self.scores, np.linspace(0, 1, num), method="lower")
        )
        thresholds = np.unique([-np.inf, *scores, np.inf])
        taken = self.exit_index_grid(thresholds)
        values = np.take_along_axis(self.sample_metrics, taken, axis=1)
        costs = self.relative_costs[taken].mean(axis=0)
        return Curve(thresholds, costs, values.mean(axis=0))

    def answers(self, exit_index):
        """What one exit answers all samples.

        Args:
            exit_index: Which exit, -1 for `final`.

        Returns:
            Class numbers (n, ...), labels of 0 and 1 (n, ..., labels), or
            values (n, ..., units).
        """
        prediction = self.predictions[exit_index]
        if self.head.task == "classification":
            return prediction.argmax(axis=-1)
        if self.head.task == "multilabel":
            half = 0.0 if self.head.from_logits else 0.5
            return (prediction > half).astype("int64")
        return prediction

    @functools.cached_property
    def sample_metrics(self):
        """The task's own figure of each sample at each exit: (n, E + 1)."""
        self._check_labels()
        columns = []
        for k in range(len(self.exit_names)):
            answers = self.answers(k)
            if self.head.task == "regression":
                values = np.abs(answers - self.labels)
            else:
                values = answers == self.labels
            columns.append(values.reshape(len(self), -1).mean(axis=1))
        return np.stack(columns, axis=1).astype("float64")

    def _check_labels(self):
        if self.labels is None:
            raise ValueError(
                f"Expected observations with labels. Received: {self!r}. Pass "
                "them along: `observe(model, x, y)`."
            )

    def _check_metric(self, name):
        if name != self.metric_name:
            raise ValueError(
                f"Expected a model that has a figure `{name}`. Received: a "
                f"{self.head.task} model. Use `{self.metric_name}`."
            )


def observe(
    model, x, y=None, batch_size=None, *, with_labels=True, verbose="auto"
):
    """What every exit of a model answers, for every sample of a data set.

    All exits answer all samples in one pass, with the model's current weights
    and policy; nothing is skipped and no threshold is used. The result stays
    as it is when the model is trained further. It holds every exit's answers,
    4 n (E + 1) units bytes.

    Args:
        model: An `EarlyExitModel`; it need not be compiled.
        x: Arrays or tensors, a `tf.data.Dataset`, a `keras.utils.PyDataset`
            or a generator, all finite. These yield batches x or (x, y).
        y: Labels (n,), (n, 1) or one-hot for classes, (n, units) otherwise;
            `None` if there are none, or if `x` brings them.
        batch_size: Rows per batch of arrays, 256 by default.
        with_labels: Whether to keep labels; `False` ignores what `x` brings.
        verbose: 1 for a progress bar, 0 for silence; `"auto"` shows a bar in
            a terminal once the pass has taken a few seconds.

    Returns:
        `Observations` of n samples.

    Raises:
        TypeError: If `model` has no exits, or `x` has no samples.
        ValueError: If `x` is empty, endless or does not fit the model, if an
            answer is NaN, or if labels do not fit.

    Example:

    ```python
    seen = ee.calibration.observe(model, x, y)
    print(seen.exit_accuracies(), seen.mean_cost(0.9), seen.accuracy(0.9))
    ```
    """
    import keras

    from keras_earlyexit.exit_graph import confidence_name
    from keras_earlyexit.inputs import num_rows
    from keras_earlyexit.model import EarlyExitModel

    if not isinstance(model, EarlyExitModel):
        raise TypeError(
            "Expected a model with exits. Received: "
            f"{model!r} (of type {type(model).__name__}). Use "
            "`ee.add_exits(model)`."
        )
    batches, total, found_labels = _reading.open_data(model, x, y, batch_size)
    net = model.net
    if keras.backend.backend() == "tensorflow":
        # The rounding of the routed graph, which is compiled without XLA.
        net.jit_compile = False
    predictions = [[] for _ in model.exit_names]
    scores, confidences, hashes = [], [], []
    # Hashes are for calibration to compare with those of the training.
    hashing = getattr(model, "training_fingerprints", None) is not None
    progress = _reading.Progress(total, verbose)
    for batch in batches:
        if not num_rows(batch):
            continue
        if hashing:
            hashes.append(fingerprints_of(batch))
        outputs = {
            name: np.asarray(output, "float32")
            for name, output in net.predict_on_batch(batch).items()
        }
        for kept, name in zip(predictions, model.exit_names, strict=True):
            kept.append(outputs[name])
        confidences.append(
            np.concatenate(
                [outputs[confidence_name(k)] for k in model.exit_names[:-1]],
                axis=1,
            )
        )
        scores.append(
            _reading.scores_of(
                model.policy,
                model.head,
                [outputs[name] for name in model.exit_names[:-1]],
                confidences[-1],
            )
        )
        progress.advance()
    progress.close()
    if not scores:
        raise ValueError(
            "Expected at least one sample. Received: data without any (x of "
            f"type {type(x).__name__}). A generator can be read only once."
        )
    predictions = [np.concatenate(kept) for kept in predictions]
    scores = np.concatenate(scores)
    _reading.refuse_nan([*predictions, scores])
    if found_labels and with_labels:
        y = np.concatenate(
            [keras.ops.convert_to_numpy(p) for p in found_labels]
        )
    if y is not None and with_labels:
        y = _reading.as_labels(model.head, y, predictions[-1].shape)
    return Observations(
        scores=scores,
        predictions=predictions,
        labels=y if with_labels else None,
        relative_costs=model.relative_costs,
        exit_names=model.exit_names,
        head=model.head,
        policy_name=model.policy.name,
        fingerprints=np.concatenate(hashes) if hashing else None,
        confidences=np.concatenate(confidences),
    )


def _as_thresholds(thresholds, early):
    array = np.asarray(thresholds, "float32")
    if array.shape not in ((), (early,)) or np.isnan(array).any():
        raise ValueError(
            f"Expected a number as threshold, or {early}, one per early exit. "
            f"Received: {thresholds!r} (of type {type(thresholds).__name__})."
        )
    return array

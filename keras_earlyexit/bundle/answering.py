"""A loaded bundle: its stages run one after another on fewer and fewer rows."""

import dataclasses

import numpy as np

from keras_earlyexit.bundle.specs import fit_inputs, refuse_nan
from keras_earlyexit.results import ExitResult

DEFAULT_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Routed:
    """What became of one batch in a bundle.

    Args:
        predictions: Array (N, ...): each sample's answer where it left; for
            samples that would go on, what the bundle's last exit says.
        exit_index: Integer array (N,), counted over the whole model.
        score: Float array (N,); NaN at `final`, which has none.
        staying: Integer array (M,): rows of the samples that would go on.
            Empty where the bundle ends with `final`.
        feature: Array (M, ...), their features; `None` if M is 0.
        carry: Array (M, ...), what the policy hands on; `None` if M is 0 or
            it hands on nothing.
    """

    predictions: np.ndarray
    exit_index: np.ndarray
    score: np.ndarray
    staying: np.ndarray
    feature: np.ndarray | None
    carry: np.ndarray | None


class Bundle:
    """A model with exits, or a segment of one, loaded from a bundle.

    Made by `ee.load_bundle`. Several threads may use one bundle.

    Args:
        manifest: A `Manifest`.
        stages: For each of its stages a callable: a tuple of arrays -> dict
            of arrays by name.
        manifest_sha256: SHA-256 of the bundle's `manifest.json`, in hex.
    """

    def __init__(self, manifest, stages, manifest_sha256):
        self._manifest = manifest
        self._stages = stages
        self._first = manifest.stages[0].index
        self._num_early = len(manifest.exit_names) - 1
        self._costs = np.asarray(manifest.relative_costs)
        self._sha256 = manifest_sha256
        self.thresholds = manifest.thresholds

    @property
    def manifest(self):
        """What the bundle says of itself, a `Manifest`."""
        return self._manifest

    @property
    def manifest_sha256(self):
        """SHA-256 of `manifest.json`, which holds those of all files."""
        return self._sha256

    @property
    def stages(self):
        """The stages of this bundle: a tuple of arrays -> dict of arrays."""
        return tuple(self._stages)

    @property
    def exit_names(self):
        """Names of all exits of the model, also those of other segments."""
        return self._manifest.exit_names

    @property
    def relative_costs(self):
        """Cost of each exit over the plain model's: float array (E + 1,)."""
        return self._costs.copy()

    @property
    def is_last(self):
        """Whether the bundle ends with `final`."""
        return self._manifest.stages[-1].index == self._num_early

    @property
    def thresholds(self):
        """Threshold of each early exit of the model: float32 array (E,).

        Set it to a number, or to one for each early exit; `inf` lets nobody
        leave. The bundle's files stay as they are.
        """
        return self._thresholds.copy()

    @thresholds.setter
    def thresholds(self, value):
        self._thresholds = self._checked(value)

    def _checked(self, value):
        values = np.asarray(value)
        count = self._num_early
        if (
            values.dtype.kind not in "iuf"
            or values.shape not in ((), (count,))
            or np.isnan(values).any()
        ):
            raise ValueError(
                f"Expected one threshold, or {count}, one for each early exit "
                f"of the model, none of them NaN. Received: {value!r} (of "
                f"type {type(value).__name__})."
            )
        return np.broadcast_to(values, (count,)).astype("float32")

    def from_stage(self, index):
        """The same bundle, entered at a later stage.

        Args:
            index: One of this bundle's stages, counted over the whole model.

        Returns:
            A `Bundle` that starts there and takes what the stage before hands
            on. It shares the stages, and has thresholds of its own, which
            start as they are here.

        Raises:
            ValueError: If the bundle does not have that stage.

        Example:

        ```python
        here = edge.route(x)
        there = whole.from_stage(1).predict_exits(here.feature)
        ```
        """
        end = self._first + len(self._stages)
        if type(index) is not int or not self._first <= index < end:
            raise ValueError(
                f"Expected `index` to be a stage of this bundle, from "
                f"{self._first} to {end - 1}. Received: index={index!r} (of "
                f"type {type(index).__name__})."
            )
        skipped = index - self._first
        if not skipped:
            structure = self._manifest.input_structure
        else:
            several = len(self._manifest.stages[skipped].inputs) > 1
            structure = "dict" if several else "tensor"
        manifest = dataclasses.replace(
            self._manifest,
            stages=self._manifest.stages[skipped:],
            input_structure=structure,
        )
        later = Bundle(manifest, self._stages[skipped:], self._sha256)
        later.thresholds = self._thresholds
        return later

    def predict_exits(self, x, batch_size=None):
        """Answers every sample at the exit that it leaves at.

        In a segment that does not end with `final`, the samples that would go
        on are answered by its last exit: see `route` to send them on.

        Args:
            x: An array (N, ...), or a list or dict by name for several
                inputs. A later segment takes the `feature`, or a dict of
                `feature` and `carry`.
            batch_size: Rows that are routed together, 64 by default.

        Returns:
            An `ExitResult`; `exit_index` counts over the whole model.

        Raises:
            ValueError: If `x` does not fit, or if answers come out as NaN.

        Example:

        ```python
        bundle = ee.load_bundle("model_bundle")
        result = bundle.predict_exits(x)
        print(result.exit_index, result.mean_cost)
        ```
        """
        arrays = self._fit(x)
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if type(size) is not int or size < 1:
            raise ValueError(
                "Expected `batch_size` to be an integer of at least 1. "
                f"Received: batch_size={batch_size!r} (of type "
                f"{type(batch_size).__name__})."
            )
        # One set of thresholds for all parts, whatever is set meanwhile.
        thresholds = self._thresholds
        found = [
            self._route(part, thresholds) for part in _slices(arrays, size)
        ]
        predictions, exit_index, score = (
            parts[0] if len(parts) == 1 else np.concatenate(parts)
            for parts in zip(
                *((x.predictions, x.exit_index, x.score) for x in found),
                strict=True,
            )
        )
        refuse_nan(predictions, "answers")
        return ExitResult(
            predictions=predictions,
            exit_index=exit_index,
            score=score,
            relative_cost=self._costs[exit_index],
        )

    def route(self, x, thresholds=None):
        """Routes one batch and keeps what a next segment needs.

        Args:
            x: As in `predict_exits`; all rows are routed together.
            thresholds: As `thresholds`, for this call; `None` takes those.

        Returns:
            A `Routed`.

        Raises:
            ValueError: If `x` or the thresholds do not fit.

        Example:

        ```python
        here = edge.route(x)
        there = cloud.predict_exits(here.feature)  # for rows here.staying
        ```
        """
        if thresholds is None:
            thresholds = self._thresholds
        else:
            thresholds = self._checked(thresholds)
        return self._route(self._fit(x), thresholds)

    def route_fitted(self, arrays):
        """As `route`, for arrays that have been looked at already.

        Args:
            arrays: Tuple of arrays in the order of the first stage's inputs,
                in their types, with equally many rows and without NaN.

        Returns:
            A `Routed`.
        """
        return self._route(arrays, self._thresholds)

    def all_exits(self, x):
        """Every exit's answer for every sample: nothing is skipped.

        Args:
            x: As in `predict_exits`; all rows are run together.

        Returns:
            Dict of arrays: `exit_0` (N, ...), `exit_0_score` (N,), ...,
            `final`, for the exits of this bundle; `feature` and `carry` too,
            where it does not end with `final`.
        """
        arrays, answers = self._fit(x), {}
        if not len(arrays[0]):
            raise ValueError("Expected at least one sample. Received: none.")
        for index, stage in enumerate(self._stages, self._first):
            outputs = stage(arrays)
            name = self.exit_names[index]
            answers[name] = outputs["prediction"]
            if "score" in outputs:
                answers[f"{name}_score"] = outputs["score"]
                arrays = _crossing(outputs)
        if not self.is_last:
            names = ("feature", "carry")[: len(arrays)]
            answers.update(zip(names, arrays, strict=True))
        return answers

    def _fit(self, x):
        manifest = self._manifest
        return fit_inputs(
            x, manifest.stages[0].inputs, manifest.input_structure
        )

    def _route(self, arrays, thresholds):
        rows = len(arrays[0])
        if not rows:
            return self._nothing()
        waiting = None  # All rows: nobody has left yet.
        for index, stage in enumerate(self._stages, self._first):
            outputs = stage(arrays)
            found, score = outputs["prediction"], outputs.get("score")
            if score is None:
                score = np.full(len(found), np.nan, "float32")
            if waiting is None:
                # Of this batch alone: all may be written over.
                predictions, scores = found, score
                exit_index = np.full(rows, index)
            else:
                predictions[waiting] = found
                exit_index[waiting] = index
                scores[waiting] = score
            going_on = index < self._num_early
            if not going_on:
                break
            leaves = score > thresholds[index]
            num_leaving = np.count_nonzero(leaves)
            going_on = num_leaving < len(leaves)
            if not going_on:
                break
            arrays = _crossing(outputs)
            if num_leaving:
                stays = np.flatnonzero(~leaves)
                waiting = stays if waiting is None else waiting[stays]
                arrays = tuple(array[stays] for array in arrays)
        if not going_on:
            waiting = np.zeros(0, "int64")
        elif waiting is None:
            waiting = np.arange(rows)
        return Routed(
            predictions=predictions,
            exit_index=exit_index,
            score=scores,
            staying=waiting,
            feature=arrays[0] if going_on else None,
            carry=arrays[1] if going_on and len(arrays) > 1 else None,
        )

    def _nothing(self):
        (spec,) = (
            spec
            for spec in self._manifest.stages[-1].outputs
            if spec.name == "prediction"
        )
        shape = [size or 0 for size in spec.shape]
        return Routed(
            predictions=np.zeros(shape, spec.dtype),
            exit_index=np.zeros(0, "int64"),
            score=np.zeros(0, "float32"),
            staying=np.zeros(0, "int64"),
            feature=None,
            carry=None,
        )


def _crossing(outputs):
    """What the next stage takes: the feature, and the carry if there is one."""
    if "carry" in outputs:
        return outputs["feature"], outputs["carry"]
    return (outputs["feature"],)


def _slices(arrays, size):
    rows = len(arrays[0])
    for start in range(0, max(rows, 1), size):
        yield tuple(array[start : start + size] for array in arrays)

"""The samples that thresholds are chosen from: observed, and looked at."""

import warnings

import numpy as np

from keras_earlyexit.calibration._reading import yields_batches
from keras_earlyexit.calibration.observations import Observations, observe


def observed(model, x, y=None, needs_labels=False, check=None):
    """Observations of a calibration set, of which nothing is missing.

    Args:
        model: An `EarlyExitModel`.
        x: As in `observe`, or `Observations` of the model.
        y: Labels, or `None`.
        needs_labels: Whether labels are kept, and asked for.
        check: Called with the model's head before anything is computed.
    """
    head = getattr(x if isinstance(x, Observations) else model, "head", None)
    if check is not None:
        check(head)
    if isinstance(x, Observations):
        _check_same(x, model)
    else:
        if needs_labels and y is None and not yields_batches(x):
            raise _labels_missing()
        y = y if needs_labels else None
        x = observe(model, x, y, with_labels=needs_labels)
    if needs_labels and x.labels is None:
        raise _labels_missing()
    if not len(x):
        raise ValueError(
            "Expected at least one calibration sample. Received: none. Look "
            "at how the samples were divided."
        )
    return x


def refuse_trained(model, seen):
    """Warns the caller's caller of trained samples; refuses mostly such.

    Args:
        model: An `EarlyExitModel`, with or without a record of its training.
        seen: `Observations`.

    Raises:
        ValueError: If more than half of the samples were trained on.
    """
    record = getattr(model, "training_fingerprints", None)
    if record is None or seen.fingerprints is None:
        return
    share = record.overlap_of(seen.fingerprints)
    if not share:
        return
    found = f"{round(share * len(seen))} of the {len(seen)} calibration samples"
    if share > 0.5:
        raise ValueError(
            "Expected samples that the model was not trained on. Received: "
            f"{found} are among those that it was trained on. Their scores "
            "are too good, and nothing follows from them for new samples. "
            "Pass another split. If different samples may have equal inputs, "
            "set `model.training_fingerprints = None` first."
        )
    warnings.warn(
        f"The model was trained on {found}. Their scores are too good, so "
        "that thresholds come out too low and no promise holds. Leave them "
        "out.",
        stacklevel=3,
    )


def _check_same(seen, model):
    policy = getattr(model, "policy", None)
    if policy is None:
        raise TypeError(
            "Expected a model with exits. Received: "
            f"{model!r} (of type {type(model).__name__})."
        )
    if seen.policy_name != policy.name or not np.array_equal(
        seen.relative_costs, model.relative_costs
    ):
        raise ValueError(
            "Expected observations of this model with its present policy "
            f"{policy.name!r}. Received: {seen!r}. Observe it again."
        )


def _labels_missing():
    return ValueError(
        "Expected labels for risk='performance_gap'. Received: y=None. Pass "
        "`calibrate(model, x, y)` or a dataset of (x, y), or take "
        "risk='consistency', which compares with the whole model's answers."
    )

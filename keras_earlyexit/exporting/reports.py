"""What an export has made, and how well it answers."""

import dataclasses

import numpy as np

from keras_earlyexit.exit_graph import FINAL
from keras_earlyexit.exporting import probing


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `ee.export` has written.

    Args:
        path: The folder, as given.
        format: Format of the stages.
        quantize: As given.
        bundles: Paths of the bundles: `path`, or its segments.
        stage_bytes: Size of each stage's files: tuple (E + 1,) of integers.
        num_bytes: Size of all files but the manifests.
        float32_weight_bytes: Size of the model's weights at four bytes each,
            to compare with.
        samples: How many samples the figures below are from.
        largest_difference: Largest |exported - model| among all exits'
            predictions and scores, over max(1, largest value of the model).
        differs_most_at: Which of them that is, such as `exit_0_score`.
        agreement: Share of the samples whose routed answer, at the policy's
            thresholds, is the class (or has the labels) that the model's
            has; `None` for a model that answers with values.
        accuracy: Accuracy of the routed answers of what was written, and
        model_accuracy: of the model; `None` without labels, and for models
            that answer with values.
    """

    path: str
    format: str
    quantize: str | None
    bundles: tuple
    stage_bytes: tuple
    num_bytes: int
    float32_weight_bytes: int
    samples: int
    largest_difference: float
    differs_most_at: str
    agreement: float | None
    accuracy: float | None
    model_accuracy: float | None

    def __str__(self):
        kind = f", {self.quantize}" if self.quantize else ""
        lines = [
            f"{self.path}: {self.format}{kind}, {self.num_bytes} bytes "
            f"(weights in float32: {self.float32_weight_bytes})",
            f"stages: {', '.join(map(str, self.stage_bytes))} bytes",
            f"largest difference to the model: {self.largest_difference:.2g} "
            f"at {self.differs_most_at} ({self.samples} samples)",
        ]
        if self.agreement is not None:
            lines.append(f"same routed answers: {self.agreement:.4f}")
        if self.accuracy is not None:
            lines.append(
                f"routed accuracy: {self.accuracy:.4f} "
                f"(the model: {self.model_accuracy:.4f})"
            )
        return "\n".join(lines)


def report(model, *, wanted, found, y, manifests, path, bundles):
    """Compares what was written with the model.

    Args:
        model: An `EarlyExitModel`.
        wanted: Dict of its answers, as `probing.reference` gives it.
        found: The same of the bundles.
        y: Labels, or `None`.
        manifests: The `Manifest` of every bundle.
        path, bundles: As in `ExportReport`.

    Returns:
        An `ExportReport`.
    """
    difference, where = probing.largest_difference(found, wanted)
    thresholds = model.policy.thresholds(len(model.exit_names) - 1)
    classes, others = (
        _routed_classes(answers, model.exit_names, thresholds, model.head)
        for answers in (found, wanted)
    )
    right = [None, None]
    if y is not None and classes is not None:
        right = [_accuracy(x, y, model.head) for x in (classes, others)]
    first = manifests[0]
    files = [file for manifest in manifests for file in manifest.files]
    return ExportReport(
        path=path,
        format=first.format,
        quantize=first.quantize,
        bundles=bundles,
        stage_bytes=tuple(
            sum(
                file.size_bytes
                for file in manifest.files
                if file.path.split("/")[0] == stage.path
            )
            for manifest in manifests
            for stage in manifest.stages
        ),
        num_bytes=sum(file.size_bytes for file in files),
        float32_weight_bytes=4 * model.net.count_params(),
        samples=len(wanted[FINAL]),
        largest_difference=difference,
        differs_most_at=where,
        agreement=None if classes is None else _share_alike(classes, others),
        accuracy=right[0],
        model_accuracy=right[1],
    )


def _routed_classes(answers, exit_names, thresholds, head):
    """The class, or labels, that each sample leaves with; `None` for values."""
    if head.task == "regression":
        return None
    *early, final = exit_names
    found = answers[final].copy()
    # From the last exit to the first, which then has the last word.
    for name, threshold in reversed(list(zip(early, thresholds, strict=True))):
        leaves = answers[f"{name}_score"] > threshold
        found[leaves] = answers[name][leaves]
    if head.task == "classification":
        return found.argmax(axis=-1)
    return (found > (0.0 if head.from_logits else 0.5)).astype("int64")


def _share_alike(classes, others):
    """Share of samples with equal answers at all positions and labels."""
    alike = (classes == others).reshape(len(classes), -1)
    return float(alike.all(axis=1).mean())


def _accuracy(classes, y, head):
    """Share of right answers; positions and labels count one by one."""
    y = np.asarray(y)
    if head.task == "classification" and y.shape == (*classes.shape, 1):
        y = y[..., 0]
    elif head.task == "classification" and y.ndim > classes.ndim:
        y = y.argmax(axis=-1)
    return float((classes == np.reshape(y, classes.shape)).mean())

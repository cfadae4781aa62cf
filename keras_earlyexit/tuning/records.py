"""What is known of every trial, a file each, for pictures and for pruning.

A trial has a folder `trial_<id>`, which KerasTuner makes and keeps its own
`trial.json` in. What it cannot say, curves and the values of each epoch, is in
`exits.json` beside that, written whole or not at all. So any number of
processes may write and read them.
"""

import dataclasses
import json
import math
import pathlib

from keras_earlyexit import json_values

RECORD = "exits.json"
MODEL = "model.keras"
_FORMAT = "keras_earlyexit.trial"
_VERSION = 1
_STATUS = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "INVALID": "failed",
    "RUNNING": "running",
}


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """A trial: what was tried, and what came of it.

    Args:
        id: Its name, as the tuner gives it.
        status: `"completed"`, `"pruned"` (judged too, but stopped early),
            `"failed"` or `"running"`.
        values: Dict of hyperparameters by name.
        message: Why it failed, or `None`.
        exit_layers: Layer names that the early exits hang on, or `None`.
        relative_costs: Of every exit, `final` last, or `None`.
        metric_name: `"accuracy"` or `"mean_absolute_error"`, or `None`.
        metric: As in `Judgement`, or `None`.
        mean_cost: As in `Judgement`, or `None`.
        final_metric: As in `Judgement`, or `None`.
        thresholds: As in `Judgement`, or `None`.
        curve: As in `Judgement`, empty if unknown.
        score: As in `Judgement`, or `None`.
        epochs: Dict by epoch, from 0, of pairs (mean cost, worth) on the
            calibration split; empty unless dominated trials are pruned.
        seconds: How long it took, or `None`.
        folder: Where its files are, a `pathlib.Path`, or `None`.
    """

    id: str
    status: str
    values: dict
    message: str | None = None
    exit_layers: tuple | None = None
    relative_costs: tuple | None = None
    metric_name: str | None = None
    metric: float | None = None
    mean_cost: float | None = None
    final_metric: float | None = None
    thresholds: tuple | None = None
    curve: tuple = ()
    score: float | None = None
    epochs: dict = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    folder: pathlib.Path | None = None

    @property
    def is_judged(self):
        """Whether it was trained and has figures."""
        return self.status in ("completed", "pruned")

    @property
    def model_path(self):
        """The model that it has trained, with its thresholds, or `None`."""
        path = None if self.folder is None else self.folder / MODEL
        return path if path is not None and path.exists() else None

    @property
    def worth(self):
        """The metric, negated where less of it is better."""
        return self.metric if self.metric_name == "accuracy" else -self.metric


def write_record(record):
    """Writes what is known of a trial into its folder."""
    fields = dataclasses.asdict(record)
    del fields["folder"]
    text = json_values.render(_with_text(fields), _FORMAT, _VERSION)
    record.folder.mkdir(parents=True, exist_ok=True)
    json_values.write(record.folder / RECORD, text)


def read_trials(directory):
    """Reads the trials of a search, also while it runs.

    Args:
        directory: The folder of the search: a tuner's `project_dir`.

    Returns:
        A list of `TrialRecord`, by their names.

    Raises:
        ValueError: If a file is not what it should be.

    Example:

    ```python
    for trial in ee.tuning.read_trials(tuner.project_dir):
        print(trial.id, trial.status, trial.metric, trial.mean_cost)
    ```
    """
    folders = pathlib.Path(directory).glob("trial_*")
    found = [_read(folder) for folder in sorted(folders) if folder.is_dir()]
    return [record for record in found if record is not None]


def best_of(trials):
    """The judged trial with the largest score, or `None` without one."""
    judged = [trial for trial in trials if trial.is_judged]
    return max(judged, key=lambda trial: trial.score, default=None)


def _read(folder):
    own, theirs = folder / RECORD, folder / "trial.json"
    record = None
    if own.exists():
        record = _parse(own)
    if not theirs.exists():
        return record
    state = _state(theirs)
    if state is None:
        return record
    status = _STATUS.get(state.get("status"), "running")
    if record is not None and (
        record.status != "running" or status == "running"
    ):
        return record
    if status == "completed":
        # It was judged by another hypermodel than ours.
        return None
    values = state.get("hyperparameters", {}).get("values", {})
    return TrialRecord(
        id=str(state.get("trial_id")),
        status=status,
        values=dict(values),
        message=reason_of(state.get("message")),
        folder=folder,
    )


def _state(path):
    """KerasTuner's own file, or `None` while it is written, in place."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def reason_of(message):
    """The error in a traceback: its last line, without the exception's name."""
    if not message:
        return None
    text = message.strip().splitlines()[-1]
    return text.removeprefix("keras_tuner.src.errors.FailedTrialError: ")


def _parse(path):
    fields = json_values.parse(
        json_values.read(path), _FORMAT, _VERSION, "trial", "Run the search"
    )
    names = {field.name for field in dataclasses.fields(TrialRecord)}
    json_values.check_names(f"'{path}'", fields, names - {"folder"})
    fields = _with_numbers(fields)
    pairs = {
        int(epoch): _pairs(points) for epoch, points in fields["epochs"].items()
    }
    for name in ("exit_layers", "relative_costs", "thresholds"):
        if fields[name] is not None:
            fields[name] = tuple(fields[name])
    fields.update(epochs=pairs, curve=_pairs(fields["curve"]))
    return TrialRecord(**fields, folder=path.parent)


def _pairs(points):
    return tuple((float(cost), float(value)) for cost, value in points)


def _with_text(fields):
    """Thresholds may be infinite, for which JSON has no number."""
    if fields["thresholds"] is not None:
        fields["thresholds"] = [
            value if math.isfinite(value) else str(value)
            for value in fields["thresholds"]
        ]
    return fields


def _with_numbers(fields):
    if fields["thresholds"] is not None:
        fields["thresholds"] = [float(value) for value in fields["thresholds"]]
    return fields

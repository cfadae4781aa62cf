"""KerasTuner's tuners, made to go on after a kill.

Three things stand in the way of that: KerasTuner writes its files in place, so
a kill may leave half a file; it takes up a search only if the same process id
has finished a trial before; and a grid search forgets where it was. And a trial
that ends its process, for lack of memory say, would be tried for ever.
"""

import json
import os
import pathlib

import keras_tuner

from keras_earlyexit import json_values
from keras_earlyexit.tuning.records import (
    TrialRecord,
    reason_of,
    write_record,
)

KINDS = ("random", "bayesian", "hyperband", "grid")
# A process can also be ended by somebody who has nothing to do with the trial.
MAX_ATTEMPTS = 3
_ATTEMPTS = "attempts"


class _Whole:
    """Writes the state of an oracle whole or not at all."""

    def save(self):
        write_whole(self._get_oracle_fname(), self.get_state())

    def reload(self):
        """Takes up what is there, also if trials and oracle differ.

        A trial's own file is written first. So after a kill there may be a
        trial that the oracle does not know yet, or one that has ended and
        that the oracle takes for running.
        """
        super().reload()
        for trial_id in set(self.trials) - set(self.start_order):
            del self.trials[trial_id]
        for trial_id in list(self._retry_queue):
            if self.trials[trial_id].status in ("COMPLETED", "FAILED"):
                self._retry_queue.remove(trial_id)
                self._note_end(trial_id)

    def _note_end(self, trial_id):
        if trial_id not in self.end_order:
            self.end_order.append(trial_id)

    def _save_trial(self, trial):
        folder = pathlib.Path(self._get_trial_dir(trial.trial_id))
        write_whole(folder / "trial.json", trial.get_state())


class _Random(_Whole, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Bayesian(_Whole, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


class _Hyperband(_Whole, keras_tuner.oracles.HyperbandOracle):
    pass


class _Grid(_Whole, keras_tuner.oracles.GridSearchOracle):
    """A grid search that knows where it was."""

    def get_state(self):
        order, last = [], None
        if self.start_order:
            # The first trial has the first values of all, so all follow it.
            last = self.start_order[0]
        while last is not None:
            order.append(last)
            last = self._ordered_ids.next(last)
        state = super().get_state()
        state.update(ordered=order, populate_next=self._populate_next)
        return state

    def set_state(self, state):
        super().set_state(state)
        for before, trial_id in zip(
            [None, *state["ordered"]], state["ordered"], strict=False
        ):
            self._ordered_ids.insert(trial_id, before)
        self._populate_next = list(state["populate_next"])

    def _note_end(self, trial_id):
        super()._note_end(trial_id)
        self._populate_next.append(trial_id)


class _Resuming:
    """Counts attempts, notes why a trial has failed, and tells of its end."""

    on_end = None

    def run_trial(self, trial, *args, **kwargs):
        path = self._folder_of(trial) / _ATTEMPTS
        # A line for each, appended: nothing to be read back or lost.
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{self.tuner_id}\n")
        attempts = len(path.read_text(encoding="utf-8").splitlines())
        if attempts > MAX_ATTEMPTS:
            raise keras_tuner.errors.FailedTrialError(
                f"{MAX_ATTEMPTS} processes have ended while they ran it."
            )
        return super().run_trial(trial, *args, **kwargs)

    def on_trial_end(self, trial):
        if trial.message:
            # A worker's message does not reach its chief.
            write_record(
                TrialRecord(
                    id=str(trial.trial_id),
                    status="failed",
                    values=dict(trial.hyperparameters.values),
                    message=reason_of(trial.message),
                    folder=self._folder_of(trial),
                )
            )
        super().on_trial_end(trial)
        if self.on_end is not None:
            self.on_end(str(trial.trial_id))

    def _folder_of(self, trial):
        return pathlib.Path(self.get_trial_dir(trial.trial_id))


class _Tuner(_Resuming, keras_tuner.Tuner):
    pass


class _HyperbandTuner(_Resuming, keras_tuner.Hyperband):
    """Hyperband with an oracle that is handed in."""

    def __init__(self, oracle, hypermodel, **options):
        keras_tuner.Tuner.__init__(self, oracle, hypermodel, **options)


def make_tuner(
    kind, hypermodel, directory, *, trials=None, epochs=1, seed=0, on_end=None
):
    """Makes a tuner that takes up the search that is in a folder.

    Args:
        kind: `"random"`, `"bayesian"`, `"hyperband"` or `"grid"`.
        hypermodel: `ExitHyperModel`.
        directory: Folder of the search.
        trials: How many trials at most; Hyperband follows from the epochs.
        epochs: Epochs of a trial, at most.
        seed: Integer, of what is drawn.
        on_end: Called with the id of each trial that this process has ended.

    Returns:
        A `keras_tuner.Tuner`.
    """
    directory = pathlib.Path(directory)
    options = {
        "objective": hypermodel.objective,
        "seed": seed + 1,  # To KerasTuner, 0 is none.
        # Failed trials are counted and shown; they are no reason to stop.
        "max_consecutive_failed_trials": 10**9,
    }
    if kind == "hyperband":
        oracle = _Hyperband(max_epochs=epochs, factor=3, **options)
    else:
        oracle = {"random": _Random, "bayesian": _Bayesian, "grid": _Grid}[
            kind
        ](max_trials=trials, **options)
    oracle.verbose = 0
    _allow_reload(directory)
    make = _HyperbandTuner if kind == "hyperband" else _Tuner
    tuner = make(
        oracle=oracle,
        hypermodel=hypermodel,
        directory=directory.parent,
        project_name=directory.name,
    )
    tuner.on_end = on_end
    return tuner


def write_whole(path, state):
    """Writes KerasTuner's JSON, in which numbers may be infinite."""
    json_values.write(path, json.dumps(state))


def _allow_reload(directory):
    """Lets any tuner take up the search that another one has begun."""
    name = os.environ.get("KERASTUNER_TUNER_ID", "tuner0")
    if (directory / "oracle.json").exists():
        write_whole(directory / f"{name}.json", {})

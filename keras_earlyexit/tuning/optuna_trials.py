"""The trials of an `ExitHyperModel`, drawn by a study of Optuna.

Why beside KerasTuner: a study lives in a database, which any number of
machines can share without a chief that they depend on; and it looks for whole
fronts, where KerasTuner knows one number for each trial.
"""

import contextlib
import math
import pathlib

from keras_earlyexit.tuning.records import TrialRecord, write_record


class OptunaObjective:
    """What `study.optimize` takes: runs one trial, returns its two figures.

    The study needs two directions, `directions`: of the metric (an error is
    negated) there is to be much, of the mean cost little. A trial that cannot
    be built fails, and the study goes on. What is known of each trial is in
    `directory`, as with KerasTuner: see `read_trials`.

    Args:
        hypermodel: `ExitHyperModel`.
        directory: Folder for the records and the models, shared by all who
            take part.
        x: Training data, as in `fit`.
        y: Labels, unless `x` brings them.
        validation_data: `(x, y)` or a dataset, to judge by.
        **fitting: Further arguments of `fit`.

    Example:

    ```python
    objective = ee.tuning.OptunaObjective(
        hypermodel, "search", x, y, validation_data=(x_val, y_val), epochs=5
    )
    study = optuna.create_study(
        study_name="exits",
        storage="sqlite:///search.db",
        directions=objective.directions,
        load_if_exists=True,
    )
    study.optimize(objective, n_trials=30)
    print(study.best_trials)  # those that no other beats
    ```
    """

    def __init__(
        self, hypermodel, directory, x, y=None, *, validation_data, **fitting
    ):
        self.hypermodel = hypermodel
        self.directory = pathlib.Path(directory)
        self._data = {"x": x, "y": y, "validation_data": validation_data}
        self._fitting = fitting

    directions = ("maximize", "minimize")

    def __call__(self, trial):
        import keras

        hp = _Suggesting(trial)
        # The repetition of a lost trial has its attributes: the same record.
        number = trial.user_attrs.get("record", f"{trial.number:04d}")
        trial.set_user_attr("record", number)
        record = TrialRecord(
            id=number,
            status="running",
            values=hp.values,
            folder=self.directory / f"trial_{number}",
        )
        keras.utils.clear_session()
        try:
            model = self.hypermodel.make(hp)
        except (TypeError, ValueError) as error:
            write_record(
                TrialRecord(
                    id=number,
                    status="failed",
                    values=hp.values,
                    message=str(error),
                    folder=record.folder,
                )
            )
            trial.set_user_attr("message", str(error))
            # To Optuna, a trial without figures is one that has failed.
            return math.nan, math.nan
        done = self.hypermodel.plan.run(
            model, record, self.directory, **self._data, **self._fitting
        )
        trial.set_user_attr("score", done.score)
        trial.set_user_attr("exit_layers", done.exit_layers)
        return done.worth, done.mean_cost


class _Suggesting:
    """A trial of Optuna with the methods of `keras_tuner.HyperParameters`."""

    def __init__(self, trial):
        self.values = {}
        self._trial = trial
        self._is_active = True

    def Int(self, name, min_value, max_value, step=1, sampling="linear", **_):
        log = sampling == "log"
        return self._suggested(
            "int", name, min_value, max_value, step=step or 1, log=log
        )

    def Float(
        self, name, min_value, max_value, step=None, sampling="linear", **_
    ):
        log = sampling == "log"
        return self._suggested(
            "float", name, min_value, max_value, step=step, log=log
        )

    def Choice(self, name, values, **_):
        return self._suggested("categorical", name, values)

    def Boolean(self, name, **_):
        return self._suggested("categorical", name, [False, True])

    def Fixed(self, name, value, **_):
        return value

    @contextlib.contextmanager
    def conditional_scope(self, parent_name, parent_values):
        outside = self._is_active
        active = self.values.get(parent_name) in parent_values
        self._is_active = outside and active
        try:
            yield
        finally:
            self._is_active = outside

    def _suggested(self, kind, name, *arguments, **options):
        if not self._is_active:
            return None
        suggest = getattr(self._trial, f"suggest_{kind}")
        self.values[name] = suggest(name, *arguments, **options)
        return self.values[name]

"""`ExitHyperModel`: early exits as hyperparameters of KerasTuner."""

import inspect
import pathlib

import keras

from keras_earlyexit.tuning.pruning import Pruning
from keras_earlyexit.tuning.records import TrialRecord
from keras_earlyexit.tuning.running import TrialPlan
from keras_earlyexit.tuning.space import SearchSpace

try:
    import keras_tuner
except ImportError as error:
    raise ImportError(
        "ExitHyperModel needs KerasTuner, which could not be imported "
        f"({error}). Install it with `pip install keras-earlyexit[tune]`."
    ) from error


class ExitHyperModel(keras_tuner.HyperModel):
    """Early exits of a network as a search space for KerasTuner.

    What is searched: how many exits, where, which exit block, which objective
    with which weight of the cost, which policy, and the learning rate; see
    `SearchSpace`. Every tuner of KerasTuner can draw from it. A trial is
    trained on `x` and `y`; its thresholds are then chosen on the calibration
    split and judged on the validation split, which share no samples.

    KerasTuner is given, as metrics of the trial, `score` (which `objective`
    makes as large as possible), `accuracy` or `mean_absolute_error`,
    `mean_cost` and `final_metric`. All else that is known of a trial, its
    curve of costs and accuracies too, is in the tuner's folder: see
    `read_trials`. The trained model, thresholds set, is beside that.

    A trial that cannot be built, since its exits do not fit the network or
    none of them fits the budget, is a failed trial. KerasTuner gives up after
    three of these in a row, unless `max_consecutive_failed_trials` is larger.

    Args:
        build_or_model: A functional Keras model, which every trial starts
            from a copy of, weights included; or a function that returns a new
            one, called with the hyperparameters `hp` if it has an argument.
        budget: Mean relative cost that may be spent; the score is the best
            metric that it buys. `None` makes it the area below the curve of
            cost and metric.
        space: `SearchSpace`; `None` takes its defaults.
        calibration: `(x, y)`, or a dataset of such batches, to choose
            thresholds from. `None` takes every other sample of the validation
            data, and judges by the rest.
        pruning: `Pruning`, or `True` for its defaults: trials that a finished
            one has left behind are stopped early.
        optimizer: Name of a Keras optimizer.
        cost: How cost is counted, as in `add_exits`.
        name: Name of the hypermodel.

    Raises:
        ImportError: If KerasTuner is not installed.
        TypeError: If `build_or_model` is neither a model nor a function.
        ValueError: If the model has too few places for exits, or the budget
            is not above 0.

    Example:

    ```python
    hypermodel = ee.tuning.ExitHyperModel(build, budget=0.4)
    tuner = keras_tuner.BayesianOptimization(
        hypermodel, hypermodel.objective, max_trials=30, directory="search"
    )
    tuner.search(x, y, validation_data=(x_val, y_val), epochs=5)
    best = ee.tuning.best_of(ee.tuning.read_trials(tuner.project_dir))
    model = keras.models.load_model(best.model_path)
    ```
    """

    def __init__(
        self,
        build_or_model,
        *,
        budget=None,
        space=None,
        calibration=None,
        pruning=None,
        optimizer="adam",
        cost="macs",
        name=None,
    ):
        super().__init__(name=name)
        if budget is not None and not budget > 0:
            raise ValueError(
                "Expected `budget` to be a mean relative cost above 0. "
                f"Received: budget={budget!r} (of type "
                f"{type(budget).__name__})."
            )
        if pruning is True:
            pruning = Pruning(budget=budget)
        self.plan = TrialPlan(
            space=space or SearchSpace(),
            budget=budget,
            calibration=calibration,
            pruning=pruning or None,
            optimizer=optimizer,
            cost=cost,
        )
        self._source = Source(build_or_model, self.plan)
        self._is_exploring = False
        self._unbuildable = None

    @property
    def objective(self):
        """What tuners are to make as large as possible: the score."""
        return keras_tuner.Objective("score", "max")

    def declare_hyperparameters(self, hp):
        # A tuner explores the space now: it builds models to see what they
        # ask for, with nobody to catch the error of one that cannot be built.
        self._is_exploring = True

    def build(self, hp):
        """Builds a trial's model.

        Args:
            hp: `keras_tuner.HyperParameters`.

        Returns:
            A compiled `EarlyExitModel`.

        Raises:
            keras_tuner.errors.FailedTrialError: If it cannot be built.
        """
        try:
            return self.make(hp)
        except (TypeError, ValueError) as error:
            if not self._is_exploring:
                raise keras_tuner.errors.FailedTrialError(str(error)) from error
            self._unbuildable = error
            inputs = keras.Input((1,))
            return keras.Model(inputs, keras.layers.Identity()(inputs))

    def make(self, hp):
        """As `build`, with the error of what is wrong: no failed trial."""
        plain = self._source.network(hp)
        return self.plan.build(plain, hp, self._source.is_model)

    def fit(
        self,
        hp,
        model,
        x=None,
        y=None,
        *,
        validation_data=None,
        callbacks=None,
        **options,
    ):
        """Trains and judges a trial's model; see `keras.Model.fit`.

        Args:
            hp: `keras_tuner.HyperParameters`.
            model: What `build` made.
            x: Training data.
            y: Labels, unless `x` brings them.
            validation_data: `(x, y)` or a dataset, to judge by.
            callbacks: Those of the user and of the tuner.
            **options: Further arguments of `fit`.

        Returns:
            Dict of figures by name.
        """
        self._is_exploring = False
        error, self._unbuildable = self._unbuildable, None
        if error is not None and not hasattr(model, "exit_names"):
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        tuner, trial = _caller(callbacks)
        folder = pathlib.Path(tuner.get_trial_dir(trial.trial_id))
        record = TrialRecord(
            id=str(trial.trial_id),
            status="running",
            values=dict(hp.values),
            folder=folder,
        )
        done = self.plan.run(
            model,
            record,
            tuner.project_dir,
            x,
            y,
            validation_data,
            callbacks=callbacks,
            **options,
        )
        return {
            "score": done.score,
            done.metric_name: done.metric,
            "mean_cost": done.mean_cost,
            "final_metric": done.final_metric,
        }


class Source:
    """Where the networks of the trials come from.

    Args:
        build_or_model: As in `ExitHyperModel`.
        plan: `TrialPlan`.
    """

    def __init__(self, build_or_model, plan):
        self.is_model = isinstance(build_or_model, keras.Model)
        if not self.is_model and not callable(build_or_model):
            raise TypeError(
                "Expected a Keras model, or a function that returns one. "
                f"Received: {build_or_model!r} (of type "
                f"{type(build_or_model).__name__})."
            )
        self._given = build_or_model
        self._takes_hp = not self.is_model and bool(_required(build_or_model))
        if not self._takes_hp:
            # Now, when somebody listens, rather than once for every trial.
            plan.check(self.network(None))

    def network(self, hp):
        """A network without exits for one trial."""
        if self.is_model:
            return self._given
        return self._given(hp) if self._takes_hp else self._given()


def _required(function):
    """Arguments that a function must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _caller(callbacks):
    """The tuner that runs a trial, and the trial: a callback knows them."""
    for callback in callbacks or ():
        if hasattr(callback, "tuner") and hasattr(callback, "trial"):
            return callback.tuner, callback.trial
    raise ValueError(
        "Expected to be called by a tuner, whose callbacks say which trial "
        "this is. Received: callbacks without one. Use `tuner.search(...)`, "
        "or train the model that `build` makes by its own `fit`."
    )

"""`ExitHyperModel` with the tuners of KerasTuner."""

import keras
import keras_tuner
import numpy as np
import pytest
from tuning_data import build, digits

import keras_earlyexit as ee
from keras_earlyexit import tuning

FAST = tuning.SearchSpace(exits=(1, 2), objectives=("branchynet", "eenet_v2"))
ONE = tuning.SearchSpace(exits=1, objectives="sdn")
MANY = tuning.SearchSpace(exits=(9, 10))


@pytest.fixture(scope="module")
def data():
    x, y = digits("train[:200]")
    return {"x": x, "y": y, "validation_data": digits("calibration[:120]")}


def search(tuner, data, **options):
    tuner.search(**data, epochs=1, batch_size=50, verbose=0, **options)
    return tuning.read_trials(tuner.project_dir)


TUNERS = {
    "random": lambda h, **k: keras_tuner.RandomSearch(h, max_trials=2, **k),
    "bayesian": lambda h, **k: keras_tuner.BayesianOptimization(
        h, max_trials=2, num_initial_points=1, **k
    ),
    "hyperband": lambda h, **k: keras_tuner.Hyperband(
        h, max_epochs=2, factor=2, **k
    ),
}


LONG = pytest.mark.long


# Of two points there is little to learn, says scikit-learn.
@pytest.mark.filterwarnings("ignore:The optimal value found:UserWarning")
@pytest.mark.parametrize(
    "name",
    ["random", *(pytest.param(x, marks=LONG) for x in TUNERS if x != "random")],
)
def test_tuners(name, data, tmp_path):
    space = FAST if name == "random" else ONE
    hypermodel = tuning.ExitHyperModel(build, budget=0.8, space=space)
    tuner = TUNERS[name](
        hypermodel, objective=hypermodel.objective, directory=tmp_path, seed=1
    )
    trials = search(tuner, data)
    assert len(trials) == len(tuner.oracle.trials) >= 2
    for trial in trials:
        assert trial.status == "completed"
        assert 0 <= trial.metric <= 1 and 0 <= trial.score <= 1
        assert trial.mean_cost <= trial.relative_costs[-1]
        assert len(trial.thresholds) == len(trial.exit_layers)
        costs, values = np.transpose(trial.curve)
        assert (np.diff(costs) > 0).all() and (np.diff(values) > 0).all()
    best = tuning.best_of(trials)
    (theirs,) = tuner.oracle.get_best_trials(1)
    assert theirs.score == best.score
    assert theirs.metrics.get_best_value("mean_cost") == best.mean_cost
    # The saved model is the one that was judged, thresholds included.
    model = keras.models.load_model(best.model_path)
    x, y = data["validation_data"]
    result = model.predict_exits(x[1::2])
    assert np.mean(result.predictions.argmax(-1) == y[1::2]) == best.metric
    assert result.mean_cost == pytest.approx(best.mean_cost)


def test_trials_that_cannot_be_built_are_failed_trials(data, tmp_path):
    # One block does not fit the network, and is what the tuner builds first.
    space = tuning.SearchSpace(
        exits=1,
        placements="even",
        blocks=("token", "pool"),
        objectives="sdn",
        learning_rates=0.01,
    )
    hypermodel = tuning.ExitHyperModel(build(), space=space)
    tuner = keras_tuner.GridSearch(
        hypermodel, hypermodel.objective, directory=tmp_path, max_trials=2
    )
    trials = search(tuner, data)
    failed = [trial for trial in trials if trial.status == "failed"]
    assert 0 < len(failed) < len(trials)
    for trial in trials:
        assert (trial.values["block"] == "token") == (trial in failed)
    assert all("token" in trial.message for trial in failed)
    hp = keras_tuner.HyperParameters()
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="token"):
        hypermodel.build(hp)


def test_a_budget_that_no_exit_fits(data, tmp_path):
    hypermodel = tuning.ExitHyperModel(
        lambda hp: build(), budget=0.05, space=FAST
    )
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        hypermodel.objective,
        directory=tmp_path,
        max_trials=2,
    )
    (*_, last) = search(tuner, data)
    assert last.status == "failed" and not last.is_judged
    assert "a budget of 0.05" in last.message
    assert tuning.best_of([last]) is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "Received: 3 "),
        ((build, {"budget": 0}), ValueError, "budget=0 "),
        ((build, {"budget": 0.05}), ValueError, "costs 0.2.* is the least"),
        ((build, {"space": MANY}), ValueError, "at least 9 block ends"),
        ((ee.add_exits(build(), 1),), TypeError, "without exits"),
    ],
)
def test_bad_arguments(arguments, error, message):
    given, *options = arguments
    with pytest.raises(error, match=message):
        tuning.ExitHyperModel(given, **(options[0] if options else {}))


def test_a_policy_that_nothing_trains():
    space = tuning.SearchSpace(exits=1, objectives="sdn", policies="learned")
    hypermodel = tuning.ExitHyperModel(build, space=space)
    hp = keras_tuner.HyperParameters()
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="'sdn'"):
        hypermodel.build(hp)


def test_data_that_cannot_be_divided(data, tmp_path):
    hypermodel = tuning.ExitHyperModel(build, space=FAST)
    tuner = keras_tuner.RandomSearch(
        hypermodel, hypermodel.objective, directory=tmp_path, max_trials=1
    )
    given = dict(data, validation_data=None)
    (trial,) = search(tuner, given)
    assert trial.status == "failed" and "validation_data" in trial.message

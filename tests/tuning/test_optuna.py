"""Trials that a study of Optuna draws."""

import math

import optuna
import pytest
from tuning_data import build, digits

from keras_earlyexit import tuning
from keras_earlyexit.tuning import optuna_trials

SPACE = tuning.SearchSpace(
    exits=(1, 2),
    placements=("free", "pareto"),
    blocks=("pool", "token"),
    objectives=("sdn", "eenet_v2"),
)


@pytest.fixture
def objective(tmp_path):
    hypermodel = tuning.ExitHyperModel(build, budget=0.8, space=SPACE)
    x, y = digits("train[:200]")
    return tuning.OptunaObjective(
        hypermodel,
        tmp_path / "search",
        x,
        y,
        validation_data=digits("calibration[:120]"),
        epochs=1,
        batch_size=100,
        verbose=0,
    )


def test_a_study_of_two_figures(objective, tmp_path):
    url = f"sqlite:///{tmp_path}/search.db"
    study = optuna_trials.open_study(url, "exits", seed=1)
    common = {"objective": "sdn", "learning_rate": 0.01}
    study.enqueue_trial(
        {**common, "block": "pool", "placement": "pareto", "exits": 1}
    )
    study.enqueue_trial(
        {**common, "block": "token", "placement": "free", "exits": 2}
    )
    ended = []
    optuna_trials.run_study(study, objective, 2, ended.append)
    assert ended == ["0000", "0001"]
    good, bad = study.get_trials()
    # What depends on the number of exits chosen freely was not drawn.
    assert set(good.params) == {*common, "block", "placement", "exits"}
    assert {"place_0", "place_1"} <= set(bad.params)
    done, failed = tuning.read_trials(tmp_path / "search")
    assert good.values == [done.metric, done.mean_cost]
    assert done.values == good.params and done.model_path.exists()
    assert [trial.number for trial in study.best_trials] == [0]
    assert bad.state == optuna.trial.TrialState.FAIL
    assert "token" in bad.user_attrs["message"] == failed.message
    # Whoever comes later finds that there is nothing left to do.
    again = optuna_trials.open_study(url, "exits")
    optuna_trials.run_study(again, objective, 2, ended.append)
    assert len(again.get_trials()) == len(ended) == 2


def test_networks_with_hyperparameters_of_their_own():
    drawn = {}

    def network(hp):
        drawn["width"] = hp.Int("width", 8, 32, step=8, default=16)
        drawn["rate"] = hp.Float("rate", 0.1, 10.0, sampling="log")
        drawn["even"] = hp.Boolean("even")
        drawn["fixed"] = hp.Fixed("fixed", 3)
        with hp.conditional_scope("width", [1]):
            drawn["never"] = hp.Choice("never", ["a", "b"])
        return build()

    hypermodel = tuning.ExitHyperModel(network, space=SPACE)
    fixed = {"width": 24, "rate": 1.0, "even": True, "block": "pool"}
    trial = optuna.trial.FixedTrial(
        {
            **fixed,
            "placement": "pareto",
            "exits": 2,
            "objective": "eenet_v2",
            "cost_weight": 0.5,
            "learning_rate": 0.01,
        }
    )
    hp = optuna_trials._Suggesting(trial)
    model = hypermodel.make(hp)
    assert drawn == {
        **{"width": 24, "rate": 1.0, "even": True},
        **{"fixed": 3, "never": None},
    }
    assert hp.values["cost_weight"] == 0.5 == model.objective.cost_weight
    assert math.isclose(
        float(model.optimizer.learning_rate), 0.01, rel_tol=1e-5
    )
    assert len(model.exit_layers) == 2

"""Trials that a study of Optuna draws."""

import math

import optuna
import pytest
from tuning_data import build, digits

from keras_earlyexit import tuning
from keras_earlyexit.tuning import optuna_trials
from keras_earlyexit.tuning.optuna_study import SharedStudy

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
    shared = SharedStudy(url, "exits", seed=1)
    study = shared.study
    common = {"objective": "sdn", "learning_rate": 0.01}
    study.enqueue_trial(
        {**common, "block": "pool", "placement": "pareto", "exits": 1}
    )
    study.enqueue_trial(
        {**common, "block": "token", "placement": "free", "exits": 2}
    )
    ended = []
    shared.run(objective, 2, ended.append)
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
    again = SharedStudy(url, "exits")
    again.run(objective, 2, ended.append)
    assert len(again.study.get_trials()) == len(ended) == 2


def test_who_comes_too_late_runs_nothing(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/search.db"
    shared = SharedStudy(url, "exits")
    other = optuna.load_study(study_name="exits", storage=url)
    ask = shared.study.ask

    def overtaken():
        """Asks just after another process, and after having looked."""
        other.tell(other.ask(), (0.5, 0.5))
        return ask()

    monkeypatch.setattr(shared.study, "ask", overtaken)
    ran = []

    def objective(trial):
        ran.append(trial.number)
        return (math.nan, math.nan) if trial.number == 3 else (0.5, 0.5)

    ended = []
    shared.run(objective, 1, ended.append)
    assert ran == ended == []
    states = [trial.state.name for trial in other.get_trials()]
    assert states == ["COMPLETE", "PRUNED"]
    # It has given its number back. One that fails counts.
    shared.run(objective, 3, ended.append)
    assert ran == [3] and ended == ["0003"]
    states = [trial.state.name for trial in other.get_trials()]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"]
    shared.run(objective, 3, ended.append)
    assert ran == [3]


def test_lost_trials_are_run_again(tmp_path):
    url = f"sqlite:///{tmp_path}/search.db"
    shared = SharedStudy(url, "exits", heartbeat_s=1)
    # As of processes that were killed before anything was heard of them, and
    # of one that was interrupted.
    study = optuna.load_study(study_name="exits", storage=url)
    lost = [study.ask() for _ in range(2)]
    lost[0].set_user_attr("record", "0000")
    value = lost[0].suggest_float("place", 0.0, 1.0)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    ran, told = {}, []

    def objective(trial):
        found = trial.suggest_float("place", 0.0, 1.0)
        ran[trial.number] = trial.user_attrs.get("record"), found
        return found, 0.5

    shared.run(objective, 3, tell=told.append)
    assert told == ["waiting for trials of other processes"]
    assert len(ran) == 3 and ("0000", value) in ran.values()
    counting = [t for t in shared.study.trials if t.state.name == "COMPLETE"]
    assert [trial.number for trial in counting] == sorted(ran)
    assert not set(ran) & {0, 1, 2}


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

"""KerasTuner's oracles after a kill at a bad moment."""

import json
import shutil

import keras_tuner
import pytest

from keras_earlyexit.tuning import tuners

SCORE = keras_tuner.Objective("score", "max")
ORACLES = {
    "random": lambda: tuners._Random(SCORE, max_trials=4, seed=3),
    "bayesian": lambda: tuners._Bayesian(SCORE, max_trials=4, seed=3),
    "grid": lambda: tuners._Grid(SCORE, max_trials=4, seed=3),
    "hyperband": lambda: tuners._Hyperband(SCORE, max_epochs=3, seed=3),
}


class Search:
    """An oracle that hands out trials nobody trains for."""

    def __init__(self, make, folder):
        space = keras_tuner.HyperParameters()
        space.Int("a", 0, 3)
        space.Choice("b", ["x", "y"])
        self.folder = folder
        self.oracle = make()
        self.oracle.verbose = 0
        self.oracle.update_space(space)
        self.oracle._set_project_dir(folder.parent, folder.name)
        if (folder / "oracle.json").exists():
            self.oracle.reload()

    def begin(self):
        return self.oracle.create_trial("tuner0")

    def end(self, trial):
        score = float(trial.hyperparameters.values["a"])
        self.oracle.update_trial(trial.trial_id, {"score": score})
        trial.status = "COMPLETED"
        self.oracle.end_trial(trial)

    def values(self):
        found = sorted(self.oracle.trials.items())
        return [(name, trial.hyperparameters.values) for name, trial in found]


@pytest.fixture(params=sorted(ORACLES))
def search(request, tmp_path):
    def open_again():
        return Search(ORACLES[request.param], tmp_path / "search")

    return open_again


@pytest.fixture
def without_a_kill(request, search, tmp_path):
    """The values of all trials of a search that nobody disturbs."""
    undisturbed = search()
    for _ in range(3):
        undisturbed.end(undisturbed.begin())
    values = undisturbed.values()
    shutil.rmtree(undisturbed.folder)
    return values


def finish(search):
    """Runs what is left; returns how many trials were run."""
    runs = 0
    while runs < 10 and len(search.oracle.end_order) < 3:
        search.end(search.begin())
        runs += 1
    return runs


def test_killed_in_a_trial(search, without_a_kill):
    first = search()
    first.end(first.begin())
    first.begin()
    again = search()
    assert finish(again) == 2
    assert again.values() == without_a_kill


def test_killed_between_a_trials_file_and_the_oracles(search, without_a_kill):
    first = search()
    first.end(first.begin())
    before = (first.folder / "oracle.json").read_text()
    trial = first.begin()
    (first.folder / "oracle.json").write_text(before)
    # The trial stands alone: nobody knows that it was begun.
    assert (first.folder / f"trial_{trial.trial_id}" / "trial.json").exists()
    again = search()
    assert finish(again) == 2
    assert again.values() == without_a_kill


def test_killed_before_the_oracle_knows_of_an_end(search, without_a_kill):
    first = search()
    trial = first.begin()
    before = (first.folder / "oracle.json").read_text()
    first.end(trial)
    (first.folder / "oracle.json").write_text(before)
    again = search()
    # What has ended is not run again.
    assert again.oracle.end_order == [trial.trial_id]
    assert finish(again) == 2
    assert again.values() == without_a_kill


def test_no_file_is_ever_half_a_file(search, monkeypatch):
    """A kill while the oracle's file is written leaves the one before."""
    first = search()
    first.end(first.begin())
    before = json.loads((first.folder / "oracle.json").read_text())

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        first.oracle.save()
    monkeypatch.undo()
    assert json.loads((first.folder / "oracle.json").read_text()) == before

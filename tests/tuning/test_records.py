"""Records of trials: files, pruning by them, pictures of them."""

import dataclasses
import json

import numpy as np
import pytest

from keras_earlyexit import tuning
from keras_earlyexit.tuning.records import write_record

SVG = ("front", "trials", "places")


def record(folder, number, metric=0.8, **changes):
    cost = 0.3 + 0.1 * number
    made = tuning.TrialRecord(
        id=f"{number:02d}",
        status="completed",
        values={"exits": number + 1, "objective": "sdn", "learning_rate": 0.01},
        exit_layers=("conv", "pool")[: number + 1],
        relative_costs=(0.2, 0.5, 1.1)[-(min(number, 1) + 2) :],
        metric_name="accuracy",
        metric=metric,
        mean_cost=cost,
        final_metric=0.9,
        thresholds=(0.5, float("inf"))[: number + 1],
        curve=((0.2, metric - 0.2), (cost, metric), (1.1, 0.9)),
        score=metric,
        epochs={0: ((0.2, 0.3), (1.1, 0.6))},
        seconds=3.0,
        folder=folder / f"trial_{number:02d}",
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def trials(tmp_path):
    made = [
        record(tmp_path, 0),
        record(tmp_path, 1, 0.85),
        record(tmp_path, 2, 0.7, status="pruned", message="stopped early"),
        dataclasses.replace(
            tuning.TrialRecord("03", "failed", {"exits": 9}, message="no room"),
            folder=tmp_path / "trial_03",
        ),
    ]
    for trial in made:
        write_record(trial)
    return made


def test_what_is_written_is_read(trials, tmp_path):
    assert tuning.read_trials(tmp_path) == trials
    assert tuning.best_of(trials).id == "01"
    assert trials[0].model_path is None
    (tmp_path / "trial_00" / "model.keras").touch()
    assert trials[0].model_path == tmp_path / "trial_00" / "model.keras"


def test_tuners_files_say_what_records_do_not(trials, tmp_path):
    def theirs(name, **state):
        folder = tmp_path / f"trial_{name}"
        folder.mkdir(exist_ok=True)
        (folder / "trial.json").write_text(json.dumps(state))

    # Judged already, although the tuner does not know yet.
    theirs("00", trial_id="00", status="RUNNING")
    message = "Traceback\n  ...\nValueError: out of places"
    theirs("04", trial_id="04", status="FAILED", message=message)
    theirs("05", trial_id="05", status="RUNNING")
    theirs("06", trial_id="06", status="COMPLETED")
    (tmp_path / "trial_07").mkdir()
    (tmp_path / "trial_07" / "trial.json").write_text('{"trial_id": "0')
    found = {trial.id: trial for trial in tuning.read_trials(tmp_path)}
    assert found["00"] == trials[0]
    assert found["04"].message == "ValueError: out of places"
    assert found["05"].status == "running"
    assert set(found) == {"00", "01", "02", "03", "04", "05"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "of format"),
        ("{", "in JSON"),
        ('{"format": "keras_earlyexit.trial", "version": 99}', "version 1"),
        ('{"format": "keras_earlyexit.trial", "version": 1}', "the keys"),
    ],
)
def test_files_that_are_no_records(tmp_path, text, message):
    (tmp_path / "trial_0").mkdir()
    (tmp_path / "trial_0" / "exits.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        tuning.read_trials(tmp_path)


def test_a_trial_is_dominated_where_all_of_it_is():
    pruning = tuning.Pruning(margin=0.05)
    other = ((0.3, 0.5), (0.6, 0.8))
    assert pruning.dominates(other, ((0.3, 0.4), (0.7, 0.75)))
    # Better somewhere, cheaper somewhere, or within the margin somewhere.
    assert not pruning.dominates(other, ((0.3, 0.4), (0.7, 0.85)))
    assert not pruning.dominates(other, ((0.2, 0.1), (0.7, 0.7)))
    assert not pruning.dominates(other, ((0.3, 0.46),))
    assert not pruning.dominates((), ((0.3, 0.4),))


def test_with_a_budget_only_what_it_buys_counts():
    pruning = tuning.Pruning(margin=0.05, budget=0.5)
    other = ((0.3, 0.5), (0.6, 0.8))
    assert pruning.dominates(other, ((0.2, 0.4), (0.9, 0.99)))
    assert not pruning.dominates(other, ((0.2, 0.4), (0.5, 0.6)))
    # Nothing that the budget buys is known of one of them.
    assert not pruning.dominates(other, ((0.7, 0.1),))
    assert not pruning.dominates(((0.7, 0.9),), ((0.2, 0.1),))


@pytest.mark.parametrize("given", [{"margin": -1}, {"warmup": -1}])
def test_bad_pruning(given):
    with pytest.raises(ValueError, match="0 or more"):
        tuning.Pruning(**given)


def test_pictures(trials, tmp_path):
    for name in SVG:
        path = tmp_path / f"{name}.svg"
        getattr(tuning, f"plot_{name}")(trials, path=path)
        assert path.read_text().lstrip().startswith("<?xml")
    figure = tuning.plot_front(
        trials, references={"plain": (1.0, 0.95)}, budget=0.4
    )
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["plain"].get_xydata().tolist() == [[100.0, 95.0]]
    front = lines["front of all trials"].get_xydata()
    costs, values = front.T
    assert (np.diff(costs) > 0).all() and (np.diff(values) > 0).all()
    # Trial 1's chosen thresholds are on it, trial 2's are not.
    assert [40.0, 85.0] in front.round(6).tolist()
    assert 70.0 not in values
    assert "trial 01: 85% for 40.0%" in lines


def test_axes_of_the_trials(trials):
    (axes,) = tuning.plot_trials(trials).axes
    labels = [text.get_text() for text in axes.get_xticklabels()]
    # `objective` and `learning_rate` are the same in all of them.
    assert labels == [
        *("exits", "exit_0 (%)", "exit_1 (%)"),
        *("mean cost (%)", "Accuracy (%)"),
    ]


def test_pictures_of_nothing(trials):
    for name in SVG:
        with pytest.raises(ValueError, match="at least one trial"):
            getattr(tuning, f"plot_{name}")(trials[3:])


def test_errors_instead_of_accuracies(tmp_path):
    found = [
        record(
            tmp_path,
            k,
            metric,
            metric_name="mean_absolute_error",
            score=-metric,
            curve=((0.2, metric + 1), (1.1, metric)),
        )
        for k, metric in enumerate([3.0, 2.0])
    ]
    (axes,) = tuning.plot_front(found).axes
    assert axes.get_ylabel().startswith("Mean absolute error")
    assert tuning.best_of(found).id == "01" and found[0].worth == -3.0


def test_tensorboard(trials, tmp_path):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    for _ in range(2):  # What was written before is replaced.
        tuning.write_hparams(trials, tmp_path / "logs")
    runs = sorted(folder.name for folder in (tmp_path / "logs").iterdir())
    assert runs == ["trial_00", "trial_01", "trial_02"]
    folder = tmp_path / "logs" / "trial_01"
    assert len(list(folder.iterdir())) == 1
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata(
            "_hparams_/session_start_info"
        ).plugin_data.content
    )
    values = data.session_start_info.hparams
    assert values["exits"].number_value == 2
    assert values["objective"].string_value == "sdn"
    assert {"accuracy", "mean_cost", "score"} <= set(events.Tags()["tensors"])

"""Bundles answer as their stages do, and skip what can be skipped."""

import dataclasses
import threading

import numpy as np
import pytest

from keras_earlyexit.bundle.answering import Bundle
from keras_earlyexit.bundle.manifest import Manifest, StageEntry
from keras_earlyexit.bundle.specs import TensorSpec

ROW = TensorSpec("row", (None, 4), "float32")
FEATURE = TensorSpec("feature", (None, 4), "float32")
CARRY = TensorSpec("carry", (None, 1), "float32")
PREDICTION = TensorSpec("prediction", (None, 3), "float32")
SCORE = TensorSpec("score", (None,), "float32")


class Stage:
    """Multiplies by a matrix; notes how many rows have come."""

    def __init__(self, index, last=False, carries=False):
        generator = np.random.default_rng(index)
        self.weights = generator.normal(size=(4, 4)).astype("float32")
        self.index, self.last, self.carries = index, last, carries
        self.rows = []

    def __call__(self, arrays):
        x = arrays[0]
        self.rows.append(len(x))
        feature = np.tanh(x @ self.weights)
        outputs = {"prediction": feature[:, :3].copy()}
        if not self.last:
            outputs["score"] = feature[:, 3].copy()
            outputs["feature"] = feature
        if self.carries:
            before = arrays[1] if len(arrays) > 1 else 0.0
            outputs["carry"] = feature[:, :1] + before
            outputs["score"] = outputs["carry"][:, 0].copy()
        return outputs


def a_bundle(carries=False, stages=slice(None), **changes):
    """A bundle of three stages, or some of them."""
    crossing = (FEATURE, CARRY) if carries else (FEATURE,)
    entries = [
        StageEntry(0, "0", (ROW,), (*crossing, PREDICTION, SCORE)),
        StageEntry(1, "1", crossing, (*crossing, PREDICTION, SCORE)),
        StageEntry(2, "2", crossing, (PREDICTION,)),
    ]
    made = [Stage(i, last=i == 2, carries=carries and i < 2) for i in range(3)]
    first = stages.start or 0
    manifest = Manifest(
        format="litert",
        model_name="small",
        weights_sha256="",
        exit_names=("exit_0", "exit_1", "final"),
        relative_costs=(0.25, 0.5, 1.02),
        thresholds=(0.2, 0.1),
        policy={},
        head={},
        class_names=None,
        segment_index=0,
        segment_count=1,
        input_structure="dict" if first and carries else "tensor",
        stages=tuple(entries[stages]),
        files=(),
    )
    manifest = dataclasses.replace(manifest, **changes)
    return Bundle(manifest, made[stages], "0" * 64)


def one_by_one(bundle, x, thresholds):
    """What each row is to be answered, without any batch."""
    answers = []
    for row in x:
        arrays = (row[None],)
        for index, stage in enumerate(bundle.stages):
            found = stage(arrays)
            score = found.get("score", [np.nan])[0]
            if index == 2 or score > thresholds[index]:
                answers.append((found["prediction"][0], index, score))
                break
            arrays = tuple(
                found[key] for key in ("feature", "carry") if key in found
            )
    return [np.stack(part) for part in zip(*answers, strict=True)]


@pytest.fixture
def x():
    return np.random.default_rng(5).normal(size=(150, 4)).astype("float32")


@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 150, 1000])
def test_a_batch_is_answered_row_by_row(carries, batch_size, x):
    bundle = a_bundle(carries)
    expected = one_by_one(bundle, x, (0.2, 0.1))
    result = bundle.predict_exits(x, batch_size)
    np.testing.assert_allclose(result.predictions, expected[0], atol=1e-6)
    np.testing.assert_array_equal(result.exit_index, expected[1])
    np.testing.assert_allclose(result.score, expected[2], atol=1e-6)
    assert set(result.exit_index) == {0, 1, 2}
    costs = np.array([0.25, 0.5, 1.02])[expected[1]]
    np.testing.assert_array_equal(result.relative_cost, costs)


def test_work_is_skipped(x):
    bundle = a_bundle()
    result = bundle.predict_exits(x, batch_size=150)
    counts = np.bincount(result.exit_index)
    entered = [150, 150 - counts[0], counts[2]]
    assert [stage.rows for stage in bundle.stages] == [[n] for n in entered]


@pytest.mark.parametrize(
    "thresholds, leaves_at, stages_run",
    [(-np.inf, 0, 1), ((np.inf, -np.inf), 1, 2), (np.inf, 2, 3)],
)
def test_everybody_leaves_at_one_exit(thresholds, leaves_at, stages_run, x):
    bundle = a_bundle()
    bundle.thresholds = thresholds
    result = bundle.predict_exits(x[:9])
    assert (result.exit_index == leaves_at).all()
    assert np.isnan(result.score).all() == (leaves_at == 2)
    assert sum(len(stage.rows) for stage in bundle.stages) == stages_run


def test_a_score_at_the_threshold_does_not_leave(x):
    bundle = a_bundle()
    score = bundle.all_exits(x[:1])["exit_0_score"][0]
    bundle.thresholds = (score, -np.inf)
    assert bundle.predict_exits(x[:1]).exit_index == [1]


def test_thresholds(x):
    bundle = a_bundle()
    np.testing.assert_allclose(bundle.thresholds, [0.2, 0.1])
    bundle.thresholds[:] = 5
    np.testing.assert_allclose(bundle.thresholds, [0.2, 0.1])
    bundle.thresholds = 1
    np.testing.assert_allclose(bundle.thresholds, [1, 1])
    for wrong in (np.nan, (0.1,), (0.1, 0.2, 0.3), "0.5", None, [[0.1, 0.2]]):
        with pytest.raises(ValueError, match="one threshold, or 2"):
            bundle.thresholds = wrong
        if wrong is not None:
            with pytest.raises(ValueError, match="one threshold, or 2"):
                bundle.route(x, wrong)
    here = bundle.route(x, (-np.inf, 0.0))
    assert (here.exit_index == 0).all()
    np.testing.assert_allclose(bundle.thresholds, [1, 1])


@pytest.mark.parametrize("carries", [False, True])
def test_segments_answer_together_as_the_whole(carries, x):
    whole = a_bundle(carries)
    expected = whole.predict_exits(x)
    edge = a_bundle(carries, slice(0, 1))
    cloud = a_bundle(carries, slice(1, 3))
    assert (edge.is_last, cloud.is_last) == (False, True)
    here = edge.route(x)
    assert len(here.feature) == len(here.staying) > 0
    crossing = here.feature
    if carries:
        crossing = {"feature": here.feature, "carry": here.carry}
    there = cloud.predict_exits(crossing)
    for name in ("predictions", "exit_index", "score"):
        merged = getattr(here, name).copy()
        merged[here.staying] = getattr(there, name)
        np.testing.assert_allclose(merged, getattr(expected, name), atol=1e-6)
    np.testing.assert_array_equal(
        there.relative_cost, expected.relative_cost[here.staying]
    )


@pytest.mark.parametrize("carries", [False, True])
def test_a_bundle_is_entered_at_a_later_stage(carries, x):
    whole = a_bundle(carries)
    whole.thresholds = (0.3, 0.0)
    expected = whole.predict_exits(x)
    first = whole.from_stage(0)
    np.testing.assert_array_equal(
        first.predict_exits(x).exit_index, expected.exit_index
    )
    here = a_bundle(carries, slice(0, 1)).route(x, (0.3, 0.0))
    crossing = here.feature
    if carries:
        crossing = {"feature": here.feature, "carry": here.carry}
    there = whole.from_stage(1).predict_exits(crossing)
    np.testing.assert_allclose(
        there.predictions, expected.predictions[here.staying], atol=1e-6
    )
    np.testing.assert_array_equal(
        there.exit_index, expected.exit_index[here.staying]
    )
    twice = whole.from_stage(1).from_stage(2)
    assert twice.stages == whole.stages[2:] and twice.is_last
    assert twice.manifest_sha256 == whole.manifest_sha256
    twice.thresholds = 0.9
    np.testing.assert_allclose(whole.thresholds, [0.3, 0.0])


@pytest.mark.parametrize("index", [0, 3, -1, 1.0, True, "1", None])
def test_wrong_stage_to_enter_at(index):
    segment = a_bundle(stages=slice(1, 3))
    with pytest.raises(ValueError, match="from 1 to 2"):
        segment.from_stage(index)


def test_a_segment_alone_answers_with_its_last_exit(x):
    edge = a_bundle(stages=slice(0, 2))
    alone = edge.predict_exits(x)
    every = edge.all_exits(x)
    assert set(alone.exit_index) == {0, 1}
    late = alone.exit_index == 1
    np.testing.assert_array_equal(
        alone.predictions[late], every["exit_1"][late]
    )
    np.testing.assert_array_equal(
        alone.score[late], every["exit_1_score"][late]
    )
    assert edge.route(x, -np.inf).feature is None
    assert edge.route(x, (np.inf, np.inf)).staying.tolist() == list(range(150))


def test_all_exits(x):
    every = a_bundle().all_exits(x)
    assert sorted(every) == [
        *("exit_0", "exit_0_score", "exit_1", "exit_1_score", "final"),
    ]
    first = a_bundle(True, slice(0, 1)).all_exits(x)
    assert sorted(first) == ["carry", "exit_0", "exit_0_score", "feature"]
    with pytest.raises(ValueError, match="at least one sample"):
        a_bundle().all_exits(x[:0])


def test_no_samples(x):
    result = a_bundle().predict_exits(x[:0])
    assert result.predictions.shape == (0, 3)
    assert len(result) == 0 and np.isnan(result.mean_cost)
    assert len(a_bundle().route(x[:0]).staying) == 0


def test_threads(x):
    bundle = a_bundle()
    expected = bundle.predict_exits(x).exit_index
    found = [None] * 8

    def answer(i):
        found[i] = bundle.predict_exits(x, batch_size=i + 1).exit_index

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exit_index in found:
        np.testing.assert_array_equal(exit_index, expected)


def test_nan_in_the_answers_is_an_error(x):
    bundle = a_bundle()
    bundle.stages[0].weights[:] = np.nan
    with pytest.raises(ValueError, match="answers with NaN in 150 of 150"):
        bundle.predict_exits(x, batch_size=40)


@pytest.mark.parametrize("batch_size", [0, -3, 2.0, "8", True])
def test_wrong_batch_size(batch_size, x):
    with pytest.raises(ValueError, match="`batch_size`"):
        a_bundle().predict_exits(x, batch_size)

"""Models that answer at every position are trained and used like others."""

import keras
import numpy as np
import pytest
from dense_tasks import TASKS
from zoo import as_numpy

import keras_earlyexit as ee


@pytest.fixture(scope="module", params=TASKS)
def trained(request):
    """A model with exits, trained, and its test data."""
    keras.utils.set_random_seed(0)
    build, data, exits = TASKS[request.param]
    model = ee.add_exits(
        build(), exits=exits, block="dense", policy="max_probability"
    )
    model.compile(keras.optimizers.Adam(0.01), "eenet_v0")
    history = model.fit(
        *data("train", 300), batch_size=30, epochs=10, verbose=0
    )
    model.losses_seen = history.history["loss"]
    return model, data("test", 96)


def outputs_of(model, x):
    return {name: as_numpy(value) for name, value in model(x).items()}


@pytest.mark.backends_long
def test_every_exit_answers_at_every_position(trained):
    model, (x, y) = trained
    outputs = outputs_of(model, x)
    for name in model.exit_names:
        assert outputs[name].shape == (*y.shape, model.head.units)
        np.testing.assert_allclose(outputs[name].sum(-1), 1, atol=1e-5)
    for name in model.exit_names[:-1]:
        assert outputs[f"{name}_confidence"].shape == (len(x), 1)
    assert model.head.positions == y.shape[1:]


@pytest.mark.backends_long
def test_training_learns_every_exit(trained):
    model, (x, y) = trained
    assert model.losses_seen[-1] < 0.7 * model.losses_seen[0]
    # More is right than if the most frequent class were answered everywhere.
    usual = np.bincount(y.ravel()).max() / y.size
    outputs = outputs_of(model, x)
    final = (outputs["final"].argmax(-1) == y).mean()
    assert final > usual + 0.02


def thresholds_in_use(model, x):
    """Thresholds that samples pass at every exit, none of them by a hair."""
    scores = ee.calibration.observe(model, x).scores
    middle = np.sort(scores, axis=0)[len(x) // 4 : -len(x) // 4]
    widest = np.diff(middle, axis=0).argmax(axis=0)
    return [
        float(column[i : i + 2].mean())
        for column, i in zip(middle.T, widest, strict=True)
    ]


@pytest.mark.backends_long
def test_evaluate_says_what_predict_gives(trained):
    model, (x, y) = trained
    model.policy.threshold = thresholds_in_use(model, x)
    logs = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)
    outputs = outputs_of(model, x)
    for name in model.exit_names:
        accuracy = (outputs[name].argmax(-1) == y).mean()
        np.testing.assert_allclose(
            logs[f"{name}_accuracy"], accuracy, atol=1e-5
        )
    result = model.predict_exits(x)
    assert set(result.exit_index) == {0, 1, 2}
    routed = (result.predictions.argmax(-1) == y).mean()
    np.testing.assert_allclose(logs["routed_accuracy"], routed, atol=1e-5)
    np.testing.assert_allclose(logs["mean_cost"], result.mean_cost, atol=1e-5)
    only_routed = model.evaluate(
        x, y, verbose=0, return_dict=True, routed_only=True
    )
    for name, value in only_routed.items():
        np.testing.assert_allclose(value, logs[name], atol=1e-5)


@pytest.mark.backends_long
@pytest.mark.parametrize("reduce", ["mean", 0.1])
def test_a_batch_is_answered_as_its_samples_alone(trained, reduce):
    model, (x, _) = trained
    before = model.policy
    model.policy = ee.policies.get("max_probability", reduce=reduce)
    try:
        model.policy.threshold = thresholds_in_use(model, x[:8])
        together = model.predict_exits(x[:8])
        alone = [model.predict_exits(x[i : i + 1]) for i in range(8)]
        outputs = outputs_of(model, x[:8])
    finally:
        model.policy = before
    for part in ("predictions", "score", "exit_index"):
        np.testing.assert_allclose(
            np.concatenate([getattr(one, part) for one in alone]),
            getattr(together, part),
            atol=1e-5,
        )
    assert len(set(together.exit_index)) > 1
    for row, k in enumerate(together.exit_index):
        expected = outputs[model.exit_names[k]][row]
        np.testing.assert_allclose(
            together.predictions[row], expected, atol=1e-5
        )


@pytest.mark.backends_long
@pytest.mark.parametrize("risk", ["consistency", "performance_gap"])
def test_calibrate_keeps_the_risk_over_positions(trained, risk):
    model, (x, y) = trained
    report = ee.calibrate(
        model, x, y, risk=risk, epsilon=0.2, method="crc", delta=0.1
    )
    assert report.threshold == model.policy.threshold < np.inf
    final = outputs_of(model, x)["final"].argmax(-1)
    routed = model.predict(x, verbose=0).argmax(-1)
    target = final if risk == "consistency" else y
    loss = (routed != target).mean() - (final != target).mean()
    np.testing.assert_allclose(report.empirical_risk, loss, atol=1e-6)
    assert loss < 0.2
    assert report.expected_relative_cost < model.relative_costs[-1]


@pytest.mark.backends_long
def test_a_saved_model_answers_the_same(trained, tmp_path):
    model, (x, y) = trained
    model.policy.threshold = thresholds_in_use(model, x)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.head == model.head
    np.testing.assert_array_equal(again.relative_costs, model.relative_costs)
    for one, other in zip(again(x).values(), model(x).values(), strict=True):
        np.testing.assert_array_equal(as_numpy(one), as_numpy(other))
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    again.fit(x, y, verbose=0)

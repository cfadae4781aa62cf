"""Jointly learned gates: targets, distribution, gradients and phases."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_earlyexit as ee
from keras_earlyexit.objectives.jei import UncertaintyGate, uncertainties
from keras_earlyexit.objectives.jei_phases import GATES
from keras_earlyexit.policies.confidence import exit_distribution

pytestmark = pytest.mark.backends_long

EAGER = keras.backend.backend() != "jax"
DATA = pathlib.Path(__file__).parents[1] / "data" / "jei.json"
GOLDEN = json.loads(DATA.read_text())
COSTS = [0.3, 0.6, 1.1]
GENERATOR = np.random.default_rng(2)
LOGITS = 2 * GENERATOR.normal(size=(3, 6, 5)).astype("float32")
GATE_VALUES = GENERATOR.uniform(0.05, 0.6, (2, 6, 1)).astype("float32")
Y = np.array([0, 4, 2, 2, 1, 3])


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


CE = -np.log(softmax(LOGITS)[:, np.arange(6), Y]).T


def distribution(gates):
    """P_l = max(0, min(g_l, 1 - sum_{j<l} g_j)), the rest at `final`."""
    found, taken = [], np.zeros(gates.shape[1])
    for gate in gates[..., 0]:
        found.append(np.maximum(np.minimum(gate, 1 - taken), 0))
        taken = taken + gate
    found.append(1 - sum(found))
    return np.stack(found, axis=-1)


def parts_of(objective, y=Y, logits=False, gates=GATE_VALUES, **options):
    given = list(LOGITS if logits else softmax(LOGITS))
    parts = objective(y, given, list(gates), COSTS, **options)
    return {name: float(value) for name, value in parts.items()}


@pytest.mark.parametrize("cost_weight", [0.0, 0.7])
@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("logits", [True, False])
def test_value(cost_weight, one_hot, logits):
    objective = ee.objectives.get(
        "jei", cost_weight=cost_weight, from_logits=logits
    )
    weight = np.array([1.0, 0.0, 2.0, 1.0, 0.5, 1.5])
    y = np.eye(5, dtype="float32")[Y] if one_hot else Y
    found = parts_of(objective, y, logits, sample_weight=weight)
    leaving = distribution(GATE_VALUES)
    best = np.argmin(CE + cost_weight * np.array(COSTS), axis=1)
    g = GATE_VALUES[..., 0].T
    target = np.arange(2) >= best[:, None]
    entropy = -np.where(target, np.log(g), np.log(1 - g)).mean(axis=1)
    expected = {
        # The rescaled sum has the value of the plain mean.
        "prediction_loss": (weight * CE.mean(axis=1)).mean(),
        "cost_loss": (weight * (leaving @ COSTS)).mean(),
        "confidence_loss": (weight * entropy).mean(),
    }
    expected["loss"] = (
        expected["prediction_loss"]
        + cost_weight * expected["cost_loss"]
        + expected["confidence_loss"]
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_golden_targets():
    golden = GOLDEN["gate_targets"]
    objective = ee.objectives.get("jei", cost_weight=golden["cost_weight"])
    losses = np.asarray(golden["cross_entropy"], "float32")
    costs = np.asarray(golden["costs"], "float32")
    best = ops.convert_to_numpy(
        objective.best_exits(
            ops.convert_to_tensor(losses), ops.convert_to_tensor(costs)
        )
    )
    assert best.tolist() == golden["best_exit"]
    # The targets themselves, from gates that are right: the loss is 0.
    targets = np.asarray(golden["targets"], "float32").T[..., None]
    ones = np.exp(-losses)
    predictions = [np.stack([p, 1 - p], axis=-1) for p in ones.T]
    for gates, is_zero in ((targets, True), (1 - targets, False)):
        found = objective(np.zeros(3, int), predictions, list(gates), costs)
        assert (float(found["confidence_loss"]) < 1e-6) == is_zero


def test_targets_rise_with_depth_and_do_not_read_the_gates():
    objective = ee.objectives.get("jei", cost_weight=0.5)
    losses, costs = (
        ops.convert_to_tensor(np.asarray(v, "float32")) for v in (CE, COSTS)
    )
    best = ops.convert_to_numpy(objective.best_exits(losses, costs))
    targets = np.arange(2) >= best[:, None]
    assert (np.diff(targets.astype(int), axis=1) >= 0).all()
    assert len(set(best)) > 1
    # The loss is linear in each target, so that these gates tell them apart.
    for gates in (GATE_VALUES, 1 - GATE_VALUES, np.full_like(GATE_VALUES, 0.2)):
        g = gates[..., 0].T
        expected = -np.where(targets, np.log(g), np.log(1 - g)).mean()
        found = parts_of(objective, gates=gates)["confidence_loss"]
        assert found == pytest.approx(expected, rel=1e-5)


def test_probabilities_of_leaving_sum_to_one():
    gates = GENERATOR.uniform(0, 1, (4, 100, 1)).astype("float32")
    gates[:, :20] = gates[:, :20].round()
    leaving, _ = exit_distribution([ops.convert_to_tensor(g) for g in gates])
    leaving = ops.convert_to_numpy(ops.concatenate(leaving, axis=-1))
    assert leaving.min() >= 0
    np.testing.assert_allclose(leaving.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(leaving, distribution(gates), atol=1e-6)


def test_both_weightings_have_the_same_value():
    paper = parts_of(ee.objectives.get("jei", weighting="paper"))
    code = parts_of(ee.objectives.get("jei", weighting="code"))
    assert paper == pytest.approx(code, rel=1e-6)
    with pytest.raises(ValueError, match="'paper' or 'code'. Received"):
        ee.objectives.get("jei", weighting="other")


@pytest.mark.parametrize(
    "options",
    [{"warm_up_epochs": -1}, {"turn_batches": 0}, {"patience": 0}],
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` to be . or more. Rec"):
        ee.objectives.get("jei", **options)


def test_warm_up_weighs_early_exits_more():
    objective = ee.objectives.get("jei")
    objective.warming_up = True
    expected = (CE @ [3.0, 2.0, 1.0]).mean()
    found = parts_of(objective)["prediction_loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_saturated_gates_and_answers_stay_finite():
    sure = np.zeros((3, 6, 5), "float32")
    sure[..., 0] = 1.0
    gates = np.stack([np.zeros((6, 1)), np.ones((6, 1))]).astype("float32")
    objective = ee.objectives.get("jei")
    for given in (gates, gates[::-1]):
        found = objective(Y, list(sure), list(given), COSTS)
        assert np.isfinite([float(value) for value in found.values()]).all()


def test_what_a_gate_reads():
    p = softmax(LOGITS[0])
    ranked = np.sort(p, axis=1)
    sharp = p**2 / (p**2).sum(axis=1, keepdims=True)
    expected = np.stack(
        [
            ranked[:, -1],
            -(p * np.log(p)).sum(axis=1),
            ranked[:, -1] - ranked[:, -2],
            -(sharp * np.log(sharp)).sum(axis=1),
        ],
        axis=1,
    )
    found = ops.convert_to_numpy(uncertainties(ops.convert_to_tensor(p)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pixels = softmax(LOGITS).transpose(1, 0, 2)
    found = ops.convert_to_numpy(uncertainties(ops.convert_to_tensor(pixels)))
    np.testing.assert_allclose(found[:, 0], pixels.max(-1).mean(1), atol=1e-6)
    gate = UncertaintyGate(ee.tasks.Head(5, "softmax", "classification"))
    answer = gate(p)
    assert gate.count_params() == GOLDEN["gate_parameters"]
    kernel, bias = gate.gate.get_weights()
    np.testing.assert_allclose(
        ops.convert_to_numpy(answer["confidence"]),
        1 / (1 + np.exp(-(expected @ kernel + bias))),
        atol=1e-5,
    )


def build(copies=1):
    """Small models on digits with the same weights."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten(name="rows")(inputs)
    x = layers.Dense(24, activation="relu", name="first")(x)
    x = layers.Dense(24, activation="relu", name="second")(x)
    outputs = layers.Dense(10, activation="softmax", name="head")(x)
    plain = keras.Model(inputs, outputs)
    found = [
        ee.add_exits(plain, ["rows", "first"], copy=True) for _ in range(copies)
    ]
    for model in found[1:]:
        model.set_weights(found[0].get_weights())
    return found


@pytest.fixture(scope="module")
def digits():
    x, y = ee.datasets.load("digits", "train")
    return x[:400].astype("float32") / 16, y[:400]


def step(model, objective, data, regime="joint", gates_at=None):
    """The change of each weight in one step of gradient descent."""
    model.compile(
        keras.optimizers.SGD(1.0), objective, regime=regime, run_eagerly=EAGER
    )
    if gates_at is not None:
        for refiner in model.exit_graph.refiners[:-1]:
            refiner.gate.kernel.assign(np.zeros((4, 1)))
            refiner.gate.bias.assign([gates_at[refiner.name]])
    names = [variable.path for variable in model.weights]
    before = model.get_weights()
    model.train_on_batch(*data)
    return {
        name: old - new
        for name, old, new in zip(
            names, before, model.get_weights(), strict=True
        )
    }


def of_exits(changes):
    return {k: v for k, v in changes.items() if "_gate/" not in k}


def test_exits_get_no_gradient_from_the_gates(digits):
    """What the gates say or should say does not matter to the exits."""
    data = digits[0][:32], digits[1][:32]
    code = {"weighting": "code"}
    changes = []
    for model, cost_weight, bias in zip(
        build(3), (0.0, 5.0, 5.0), (0.0, 0.0, 3.0), strict=True
    ):
        objective = ee.objectives.get("jei", cost_weight=cost_weight, **code)
        at = {"exit_0_gate": bias, "exit_1_gate": -bias}
        changes.append(step(model, objective, data, gates_at=at))
    for name, change in of_exits(changes[0]).items():
        for other in changes[1:]:
            np.testing.assert_allclose(other[name], change, atol=1e-6)
    biases = [c["exit_0_gate/gate/bias"].item() for c in changes]
    assert len(set(biases)) == 3 and all(biases)


def test_uniform_leaving_has_the_gradient_of_the_plain_mean(digits):
    data = digits[0][:32], digits[1][:32]
    one, other, third = build(3)
    # Gates of 1/3 each: P = (1/3, 1/3, 1/3).
    third_at = float(np.log(0.5))
    uniform = {"exit_0_gate": third_at, "exit_1_gate": third_at}
    paper = ee.objectives.get("jei", weighting="paper")
    found = step(one, paper, data, gates_at=uniform)
    mean = ee.objectives.get("branchynet", weights=[1 / 3] * 3)
    expected = step(other, mean, data)
    moved = 0
    for name, change in of_exits(found).items():
        np.testing.assert_allclose(
            change, expected[name], atol=1e-6, err_msg=name
        )
        moved += np.abs(change).max() > 1e-5
    assert moved >= 8
    # Elsewhere the weighting matters.
    uneven = {"exit_0_gate": 2.0, "exit_1_gate": -2.0}
    found = step(third, paper, data, gates_at=uneven)
    name = "exit_0/prediction_branch/kernel"
    assert np.abs(found[name] - expected[name]).max() > 1e-3


class Watch(keras.callbacks.Callback):
    """Which groups move in each batch, and whether it is warm-up."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.before = self._values()

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        after = self._values()
        moved = {
            name
            for name, values in after.items()
            if not all(map(np.array_equal, values, self.before[name]))
        }
        self.seen.append((self.model.objective.warming_up, moved))
        self.before = after

    def _values(self):
        groups = self.model.composite_optimizer.groups
        return {
            name: [ops.convert_to_numpy(v).copy() for v in variables]
            for name, variables in groups.items()
        }


def test_phases(digits):
    (model,) = build()
    objective = ee.objectives.get("jei", warm_up_epochs=1, turn_batches=2)
    model.compile(keras.optimizers.AdamW(0.01), objective)
    watch = Watch()
    x, y = digits[0][:160], digits[1][:160]
    model.fit(x, y, batch_size=32, epochs=2, callbacks=[watch], verbose=0)
    exits = {"exit_0", "exit_1"}
    # `final` has no variables of its own beside the backbone's.
    assert watch.seen[:5] == [(True, exits)] * 5
    turns = [{GATES}, {GATES}, exits, exits, {GATES}]
    assert [moved for _, moved in watch.seen[5:]] == turns
    assert not any(warming_up for warming_up, _ in watch.seen[5:])


def test_positive_weights_from_validation_data(digits):
    (model,) = build()
    objective = ee.objectives.get("jei", warm_up_epochs=0, cost_weight=0.2)
    model.compile(keras.optimizers.SGD(0.0), objective)
    x, y = digits
    held_out = x[200:300], y[200:300]
    model.fit(x[:64], y[:64], epochs=1, validation_data=held_out, verbose=0)
    outputs = model.net(held_out[0])
    losses = [
        -np.log(
            ops.convert_to_numpy(outputs[name])[np.arange(100), held_out[1]]
        )
        for name in model.exit_names
    ]
    total = np.stack(losses, axis=1) + 0.2 * model.relative_costs
    counts = np.bincount(total.argmin(axis=1), minlength=3)[:2]
    expected = np.minimum((100 - counts) / np.maximum(counts, 0.1), 5.0)
    state = model.objective.state
    found = ops.convert_to_numpy(state.positive_weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # They weight the targets of the next epoch.
    logs = model.evaluate(*held_out, verbose=0, return_dict=True)
    best = total.argmin(axis=1)
    entropy = []
    for i in range(2):
        g = ops.convert_to_numpy(outputs[f"exit_{i}_confidence"])[:, 0]
        right = best <= i
        entropy.append(-np.where(right, expected[i] * np.log(g), np.log(1 - g)))
    expected = np.mean(entropy)
    assert logs["confidence_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_the_weight_of_cost_moves_samples_early(digits):
    plain, *models = build(3)
    plain = ee.strip_exits(plain)
    plain.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy"
    )
    plain.fit(*digits, epochs=20, verbose=0)
    shares = []
    for model, cost_weight in zip(models, (0.0, 50.0), strict=True):
        for layer in plain.layers:
            model.net.get_layer(layer.name).set_weights(layer.get_weights())
        objective = ee.objectives.get(
            "jei", cost_weight=cost_weight, warm_up_epochs=1, gate_rate=1.0
        )
        model.compile(keras.optimizers.Adam(0.1), objective, run_eagerly=EAGER)
        model.fit(*digits, batch_size=50, epochs=4, verbose=0)
        result = model.predict_exits(digits[0])
        shares.append(np.bincount(result.exit_index, minlength=3) / 400)
    assert shares[0][2] > 0.6 > 0.2 > shares[0][0]
    assert shares[1][0] == 1.0


def test_a_model_without_probabilities():
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="first")(inputs)
    plain = keras.Model(inputs, layers.Dense(2)(x))
    model = ee.add_exits(plain, ["first"], task="regression")
    with pytest.raises(ValueError, match="classifier for objective 'jei'"):
        model.compile("sgd", "jei")

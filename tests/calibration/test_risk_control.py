"""Chosen thresholds: golden values, edges, and the guarantee itself."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from keras_earlyexit.calibration import control_risk

DATA = pathlib.Path(__file__).parent.parent / "data"
GOLDEN = json.loads((DATA / "risk_control.json").read_text())
METHODS = ("empirical", "crc", "ucb", "ucb_hb", "ltt")
INF = float("inf")


def grid_losses():
    grid = GOLDEN["control_risk_grid"]
    rows = np.arange(grid["n"])[:, None]
    return (rows < np.array(grid["ones_in_first"])).astype("float64")


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("method", ["empirical", "crc", "ucb", "ltt"])
def test_grid_golden(method, ascending):
    grid = GOLDEN["control_risk_grid"]
    thresholds, losses = np.array(grid["thresholds"]), grid_losses()
    order = slice(None, None, -1 if ascending else 1)
    for row in grid["expected_index"]:
        chosen = control_risk(
            losses[:, order], thresholds[order], row["epsilon"], method=method
        )
        index = row[method]
        assert chosen == (INF if index is None else thresholds[index])


def test_grid_golden_when_bound_is_two_and_losses_are_halves_of_it():
    grid = GOLDEN["control_risk_grid"]
    for row in grid["expected_index"]:
        chosen = control_risk(
            2 * grid_losses(), grid["thresholds"], 2 * row["epsilon"], 0.1,
            "ltt", bound=2.0,
        )  # fmt: skip
        index = row["ltt"]
        assert chosen == (INF if index is None else grid["thresholds"][index])


def summarisation_trials(n, method, assume_monotone):
    """Mean exit layer and test risk, (50 trials, 8 epsilons) each."""
    with np.load(DATA / "calm_cnndm.npz", allow_pickle=False) as data:
        thresholds = data["thresholds"]
        layers = data["mean_exit_layer"].astype("float64")
        rouge = data["relative_rouge"].astype("float64")
    losses = (rouge[0] - rouge).T
    random = np.random.RandomState(42)
    layer, risk = np.zeros((2, 50, 8))
    for trial in range(50):
        chosen = random.choice(2000, n, replace=False)
        test = np.setdiff1d(np.arange(2000), chosen)
        test_risk = losses[test].mean(axis=0)
        for j, epsilon in enumerate(GOLDEN["cnndm"]["epsilon"]):
            threshold = control_risk(
                losses[chosen],
                thresholds,
                epsilon,
                method=method,
                assume_monotone=assume_monotone,
            )
            # Nobody leaves: the full model, the first row of the file.
            index = max(np.searchsorted(-thresholds, -threshold), 0)
            layer[trial, j], risk[trial, j] = layers[index], test_risk[index]
    return layer, risk


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize(
    "rules, method",
    [
        ("authors", "empirical"),
        ("authors", "crc"),
        ("authors", "ucb"),
        ("design_rules", "empirical"),
        ("design_rules", "crc"),
        ("design_rules", "ltt"),
    ],
)
def test_summarisation_experiment(rules, method, n):
    golden = GOLDEN["cnndm"]
    golden = golden[rules] if rules == "design_rules" else golden
    golden = golden[f"n_{n}"][method]
    layer, risk = summarisation_trials(n, method, rules == "authors")
    over = risk > np.array(GOLDEN["cnndm"]["epsilon"])
    close = np.testing.assert_allclose
    close(layer.mean(axis=0), golden["mean_exit_layer"], atol=0.00501)
    close(layer.std(axis=0), golden["std"], atol=0.00501)
    close(risk.mean(axis=0), golden["test_risk"], atol=0.0000501)
    close(over.mean(axis=0), golden["violations"], atol=1e-9)


class Population:
    """Two exits on 20,000 samples; drawn from with replacement, so that the
    mean over the population is the true risk."""

    def __init__(self, loss, seed=7):
        generator = np.random.default_rng(seed)
        size, num_classes = 20_000, 4
        labels = generator.integers(num_classes, size=size)
        true = np.eye(num_classes)[labels]
        clear = generator.gamma(2.0, 2.0, (size, 1))
        noise = generator.normal(size=(2, size, num_classes))
        early = self._softmax(0.6 * clear * true + 1.5 * noise[0])
        final = self._softmax(clear * true + 0.6 * (noise[0] + noise[1]))
        if loss == "zero_one":
            # Consistency with the final prediction.
            gap = (early.argmax(1) != final.argmax(1)).astype("float64")
            self.bound = 1.0
        else:
            # Brier performance gap; negative where the early exit is better.
            gap = ((early - true) ** 2 - (final - true) ** 2).sum(axis=1)
            self.bound = 2.0
        self.thresholds = np.linspace(1.0, 0.25, 61)
        leaves = early.max(axis=1, keepdims=True) > self.thresholds
        self.losses = leaves * gap[:, None]
        self.risks = self.losses.mean(axis=0)

    @staticmethod
    def _softmax(logits):
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def risks_of_choices(self, method, n, epsilon, draws, seed=0):
        """True risk of the chosen threshold, for each calibration set."""
        generator = np.random.default_rng(seed)
        result = np.zeros(draws)
        for draw in range(draws):
            rows = generator.integers(len(self.losses), size=n)
            threshold = control_risk(
                self.losses[rows],
                self.thresholds,
                epsilon,
                delta=0.1,
                method=method,
                bound=self.bound,
            )
            if threshold != INF:
                index = np.searchsorted(-self.thresholds, -threshold)
                result[draw] = self.risks[index]
        return result


@pytest.fixture(scope="module", params=["zero_one", "brier"])
def population(request):
    return Population(request.param)


GUARANTEES = [(100, 0.1), (1000, 0.05)]


@pytest.mark.parametrize("n, epsilon", GUARANTEES)
@pytest.mark.parametrize("method", ["ucb", "ucb_hb", "ltt"])
def test_risk_exceeds_epsilon_with_probability_delta(
    population, method, n, epsilon
):
    risks = population.risks_of_choices(method, n, epsilon, draws=400)
    violations = int((risks > epsilon).sum())
    assert violations <= stats.binom.ppf(0.999, 400, 0.1)
    # Not by never leaving: the risk that is allowed is used.
    if method == "ucb":
        assert risks.mean() > 0.2 * epsilon


@pytest.mark.parametrize("n, epsilon", GUARANTEES)
def test_mean_risk_of_crc_is_at_most_epsilon(population, n, epsilon):
    risks = population.risks_of_choices("crc", n, epsilon, draws=400)
    assert 0.5 * epsilon < risks.mean() <= epsilon


def test_the_empirical_rule_would_fail_both_tests(population):
    risks = population.risks_of_choices("empirical", 100, 0.1, draws=400)
    assert (risks > 0.1).sum() > stats.binom.ppf(0.999, 400, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_an_admissible_threshold_below_a_refused_one_is_not_taken(method):
    losses = np.zeros((500, 4))
    losses[:250, 1] = 1.0
    thresholds = [0.9, 0.7, 0.5, 0.3]
    assert control_risk(losses, thresholds, 0.1, method=method) == 0.9
    anywhere = control_risk(
        losses, thresholds, 0.1, method=method, assume_monotone=True
    )
    assert anywhere == (0.3 if method in ("empirical", "crc") else 0.9)


@pytest.mark.parametrize("method", METHODS)
def test_all_or_nothing(method):
    thresholds = np.linspace(0, 1, 7)
    none, full = np.zeros((500, 7)), np.ones((500, 7))
    for assume_monotone in (False, True):
        options = {"method": method, "assume_monotone": assume_monotone}
        assert control_risk(none, thresholds, 0.05, **options) == 0.0
        assert control_risk(full, thresholds, 0.05, **options) == INF


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_and_one_threshold(method):
    chosen = control_risk([[0.0]], [0.5], 0.4, method=method)
    assert chosen == (0.5 if method == "empirical" else INF)
    assert control_risk([[1.0]], [0.5], 0.4, method=method) == INF


@pytest.mark.parametrize("method", METHODS)
def test_any_real_dtype_gives_the_same_threshold(method):
    losses, thresholds = grid_losses(), [5, 4, 3, 2, 1]
    expected = control_risk(losses, thresholds, 0.2, method=method)
    for dtype in ("bool", "int64", "float16", "float32"):
        actual = control_risk(
            losses.astype(dtype), thresholds, 0.2, method=method
        )
        assert actual == expected
    assert isinstance(expected, float)


def test_negative_losses_are_kept_but_for_the_p_values():
    losses = np.zeros((200, 1))
    losses[::10], losses[1::5] = 1.0, -1.0  # mean -0.1, clipped 0.1
    for method in ("empirical", "crc", "ucb"):
        assert control_risk(losses, [0.5], 0.05, method=method) == 0.5
    for method in ("ucb_hb", "ltt"):
        assert control_risk(losses, [0.5], 0.05, method=method) == INF
        assert control_risk(losses, [0.5], 0.2, method=method) == 0.5


def test_ltt_takes_the_exact_tail_for_losses_of_zero_and_one_only():
    losses = np.zeros((100, 1))
    losses[:5] = 1.0  # p-values at 0.1: 0.0576 exact, 0.157 general
    assert control_risk(losses, [0.5], 0.1, method="ltt") == 0.5
    losses[5] = 1e-12
    assert control_risk(losses, [0.5], 0.1, method="ltt") == INF
    # Clipping comes first: a performance gap is -1, 0 or 1.
    losses[5] = -1.0
    assert control_risk(losses, [0.5], 0.1, method="ltt") == 0.5


def test_equality_is_decided_as_on_paper():
    losses = np.zeros((99, 1))
    losses[:4] = 1.0
    # (4 + 1) / (99 + 1) <= 0.05
    assert control_risk(losses, [0.5], 0.05, method="crc") == 0.5
    losses = np.zeros((100, 1))
    losses[:7] = 1.0
    # not 7 / 100 < 0.07
    assert control_risk(losses, [0.5], 0.07, method="empirical") == INF


@pytest.mark.parametrize("method", METHODS)
def test_a_risk_below_its_bound_is_admissible_at_once(method):
    losses = np.full((3, 2), 0.2)
    assert control_risk(losses, [2, 1], 0.5, method=method, bound=0.2) == 1.0


def test_rounding_beyond_the_bound_is_accepted():
    losses = np.full((400, 1), np.float32(1.0) + np.float32(2e-7))
    assert control_risk(losses, [0.5], 0.5) == INF


def bad(losses=None, thresholds=(0.9, 0.5), epsilon=0.1, **options):
    losses = np.zeros((10, 2)) if losses is None else losses
    return lambda: control_risk(losses, thresholds, epsilon, **options)


@pytest.mark.parametrize(
    "call, message",
    [
        (bad(np.full((10, 2), 1.5)), "values from 1.5 to 1.5.*`bound`"),
        (bad(np.full((10, 2), -1.5)), r"\[-1.0, 1.0\]"),
        (bad(np.full((10, 2), np.nan)), "NaN"),
        (bad(np.zeros((0, 2))), "non-empty"),
        (bad(np.zeros((10, 0)), []), "non-empty"),
        (bad(np.zeros(10)), r"Received shape \(10,\)"),
        (bad(np.zeros((2, 10))), "transpose"),
        (bad(thresholds=[0.5, 0.5]), "strictly increasing"),
        (bad(np.zeros((4, 3)), [0.9, 0.2, 0.5]), "np.unique"),
        (bad(np.zeros((4, 1)), [np.nan]), "without NaN"),
        (bad(thresholds=0.5), "one entry per column"),
        (bad(epsilon=0.0), r"`epsilon`.*Received epsilon=0.0 \(float\)"),
        (bad(epsilon=1.0), "strictly between 0 and 1"),
        (bad(epsilon=None), r"None \(NoneType\)"),
        (bad(delta=0.0), "`delta`"),
        (bad(delta=1), "`delta`"),
        (bad(bound=-1.0), "`bound`"),
        (bad(method="ucb-hb"), "Did you mean 'ucb_hb'"),
        (bad(method="wsr"), "'empirical', 'crc', 'ucb', 'ucb_hb', 'ltt'"),
        (bad(method=None), r"None \(NoneType\)"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call", [bad([["a", "b"]]), bad(thresholds=["a", "b"])]
)
def test_bad_types(call):
    with pytest.raises(TypeError, match="real numbers"):
        call()


def test_fixed_sequence_and_crc_agree_with_mapie():
    control = pytest.importorskip("mapie.risk_control")
    methods = pytest.importorskip("mapie.risk_control.methods")
    generator = np.random.default_rng(3)
    thresholds = np.linspace(1.0, 0.0, 41)
    score, luck = generator.random((2, 300, 1))
    losses = (score > thresholds) & (luck < 0.5 * (1 - score))
    losses = losses.astype("float64")
    for epsilon in (0.03, 0.1, 0.2):
        p_values = methods.compute_hoeffding_bentkus_p_value(
            losses.mean(axis=0), 300, epsilon, binary=True
        )[:, 0]
        rejected = control.control_fwer(p_values, 0.1, "fixed_sequence")
        chosen = control_risk(losses, thresholds, epsilon, method="ltt")
        assert chosen == thresholds[max(rejected)]
        upper = methods.get_r_hat_plus(
            losses, thresholds, "crc", None, None, None
        )[1]
        best = methods.find_best_predict_param(
            thresholds, upper, np.array([epsilon])
        )
        chosen = control_risk(losses, thresholds, epsilon, method="crc")
        assert chosen == best[0]

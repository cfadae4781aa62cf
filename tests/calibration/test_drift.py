"""The false-alarm rate, what is noticed and how soon, and what is refused.

Rates and delays are those of known distributions; the last tests watch a small
network on real images.
"""

import dataclasses

import keras
import numpy as np
import pytest
from scipy import stats

import keras_earlyexit as ee
from keras_earlyexit.calibration import (
    DriftMonitor,
    Observations,
    _sequential,
    observe,
)

pytestmark = pytest.mark.backends_long

EXITS = ("exit_0", "exit_1", "final")
THRESHOLDS = (0.8, 0.7)


def observations(scores):
    n = len(scores)
    return Observations(
        scores=scores,
        predictions=[np.zeros((n, 10), "float32")] * 3,
        labels=None,
        relative_costs=np.array([0.3, 0.6, 1.0]),
        exit_names=EXITS,
        head=ee.tasks.Head(10, "softmax", "classification"),
    )


def left_with(exits, scores):
    n = len(exits)
    return ee.ExitResult(
        np.zeros((n, 10), "float32"), exits, scores, np.ones(n)
    )


def routed(scores, thresholds=THRESHOLDS):
    exits = observations(scores).exit_index(thresholds)
    padded = np.column_stack([scores, np.full(len(scores), np.nan, "float32")])
    return left_with(exits, padded[np.arange(len(exits)), exits])


def draw(rng, n, shift=0.0, decimals=None):
    """Scores (n, 2) of two exits, the second surer; `shift` makes them less."""
    hidden = rng.normal(size=(n, 1)) - shift + [0.5, 1.0]
    scores = 1 / (1 + np.exp(-hidden - 0.3 * rng.normal(size=(n, 2))))
    if decimals is not None:
        scores = scores.round(decimals)
    return scores.astype("float32")


def part(result, rows):
    return left_with(result.exit_index[rows], result.score[rows])


@pytest.mark.parametrize(
    ("size", "decimals"), [(30, None), (300, None), (300, 1)]
)
def test_false_alarms_are_as_rare_as_stated(size, decimals):
    streams, alpha = 300, 0.2
    rng = np.random.default_rng(7)
    alarms = 0
    for seed in range(streams):
        reference = observations(draw(rng, size, decimals=decimals))
        monitor = DriftMonitor(reference, THRESHOLDS, alpha=alpha, seed=seed)
        stream = routed(draw(rng, 1000, decimals=decimals))
        alarms += monitor.update(stream).drifted
    spread = np.sqrt(alpha * (1 - alpha) / streams)
    assert 0 < alarms / streams <= alpha + 3 * spread


def test_thresholds_that_the_reference_flatters_do_no_harm():
    """Of 19 thresholds the one by whose luck most of the reference leave."""
    streams, alpha = 300, 0.2
    rng = np.random.default_rng(11)
    grid = np.linspace(0.05, 0.95, 19)
    expected = (draw(rng, 50_000)[:, :1] > grid).mean(axis=0)
    alarms = 0
    for seed in range(streams):
        scores = draw(rng, 300)
        luck = (scores[:, :1] > grid).mean(axis=0) - expected
        chosen = grid[luck.argmax()]
        monitor = DriftMonitor(
            observations(scores), chosen, alpha=alpha, seed=seed
        )
        alarms += monitor.update(routed(draw(rng, 1000), chosen)).drifted
    spread = np.sqrt(alpha * (1 - alpha) / streams)
    assert alarms / streams <= alpha + 3 * spread


@pytest.mark.parametrize(
    ("shift", "clean", "within"),
    [(1.0, 0, 60), (1.0, 3000, 120), (-1.0, 0, 120), (0.5, 300, 400)],
)
def test_shift_of_the_mean_is_found(shift, clean, within):
    rng = np.random.default_rng(1)
    delays = []
    for seed in range(20):
        monitor = DriftMonitor(
            observations(draw(rng, 500)), THRESHOLDS, seed=seed
        )
        monitor.update(routed(draw(rng, clean)))
        report = monitor.update(routed(draw(rng, 1000, shift)))
        assert report.drifted
        delays.append(report.since - clean)
    # One stream in a hundred may alarm too soon.
    assert sum(delay < 0 for delay in delays) <= 2
    assert np.median(delays) < within


def test_exits_alone_are_enough():
    rng = np.random.default_rng(2)

    def patient(shares, n):
        """All who leave have the same score, as with patience."""
        exits = rng.choice(3, size=n, p=shares)
        scores = np.zeros((n, 2), "float32")
        scores[exits == 0, 0] = scores[exits == 1, 1] = 1
        return scores

    usual = (0.6, 0.3, 0.1)
    for shares in ((0.3, 0.3, 0.4), (0.2, 0.7, 0.1), (0.9, 0.1, 0.0)):
        monitor = DriftMonitor(observations(patient(usual, 500)), 0.5)
        assert not monitor.update(routed(patient(usual, 500), 0.5)).drifted
        report = monitor.update(routed(patient(shares, 1000), 0.5))
        assert report.drifted and report.since < 800
        np.testing.assert_allclose(
            report.exit_shares_reference, usual, atol=0.08
        )
        # The last 1000 samples, not those before the drift.
        np.testing.assert_allclose(report.exit_shares_now, shares, atol=0.06)


def test_scores_alone_are_enough():
    rng = np.random.default_rng(3)
    exits = rng.choice(3, size=2000, p=(0.6, 0.3, 0.1))
    floor = np.array([*THRESHOLDS, np.nan], "float32")[exits]
    usual = floor + (0.01 + 0.19 * rng.random(2000)).astype("float32")
    scores = np.zeros((2000, 2), "float32")
    for k in range(2):
        scores[exits == k, k] = usual[exits == k]
    monitor = DriftMonitor(observations(scores[:500]), THRESHOLDS)
    stream = left_with(exits, usual)
    assert not monitor.update(part(stream, slice(500, 1000))).drifted
    lower = left_with(exits, floor + (usual - floor) / 3)
    report = monitor.update(part(lower, slice(1000, None)))
    assert report.drifted and 500 <= report.since < 650


def test_batches_make_no_difference_and_seeds_repeat():
    rng = np.random.default_rng(4)
    reference = observations(draw(rng, 200, decimals=1))
    stream = routed(draw(rng, 2500, 0.1, decimals=1))
    evidence = {}
    for name, sizes, seed in (
        ("whole", [2500], 5),
        ("batches", [0, 1, 1, 700, 0, 1298, 500], 5),
        ("other seed", [2500], 6),
    ):
        monitor = DriftMonitor(reference, THRESHOLDS, seed=seed)
        ends = np.cumsum(sizes)
        for size, end in zip(sizes, ends, strict=True):
            report = monitor.update(part(stream, slice(end - size, end)))
        assert report.n == 2500
        evidence[name] = report.evidence
        monitor.reset()
        assert monitor.update(stream).evidence == pytest.approx(report.evidence)
    assert evidence["batches"] == pytest.approx(evidence["whole"])
    assert abs(evidence["other seed"] - evidence["whole"]) > 1e-3


def test_alarm_stays_until_reset():
    rng = np.random.default_rng(5)
    monitor = DriftMonitor(observations(draw(rng, 300)), THRESHOLDS, alpha=0.05)
    nothing = part(routed(draw(rng, 1)), slice(0))
    report = monitor.update(nothing)
    assert (report.drifted, report.since, report.n) == (False, None, 0)
    assert report.evidence == 0 and not report.exit_shares_now.any()
    first = monitor.update(routed(draw(rng, 200, 2.0)))
    assert first.evidence >= np.log(1 / 0.05)
    assert first.since < 100 and "Drift found at sample" in first.message
    later = monitor.update(routed(draw(rng, 200)))
    assert later.drifted and later.since == first.since and later.n == 400
    monitor.reset()
    report = monitor.update(routed(draw(rng, 200)))
    assert not report.drifted and report.n == 200
    assert "No drift found in 200 samples" in report.message


def test_rounding_of_saturated_scores_is_no_drift():
    def saturated(value):
        return np.full((500, 2), value, "float32")

    monitor = DriftMonitor(observations(saturated(1.0)), 0.9)
    almost = np.nextafter(np.float32(1), np.float32(0))
    assert monitor.update(routed(saturated(almost), 0.9)).evidence < 2


def test_an_exit_that_the_reference_never_took():
    rng = np.random.default_rng(6)
    reference = observations(np.full((100, 2), 0.9, "float32"))
    monitor = DriftMonitor(reference, THRESHOLDS)
    report = monitor.update(routed(draw(rng, 300)))
    assert report.drifted and "exit_0 100.0% -> " in report.message


def test_ranks_are_those_of_the_definition():
    rng = np.random.default_rng(8)
    numbers, uniform = rng.integers(0, 40, 2500), rng.random(2500)
    expected = [
        ((numbers[:i] < s).sum() + v * (1 + (numbers[:i] == s).sum())) / (i + 1)
        for i, (s, v) in enumerate(zip(numbers, uniform, strict=True))
    ]
    counts = np.bincount(numbers[:50], minlength=40)
    for ranks, values in (
        (_sequential.CountedRanks(counts), numbers),
        (_sequential.SortedRanks(numbers[:50] + 0.0), numbers + 0.0),
    ):
        found = [
            ranks.ranks(values[start:end], uniform[start:end])
            for start, end in ((50, 51), (51, 2000), (2000, 2500))
        ]
        np.testing.assert_allclose(np.concatenate(found), expected[50:])
    assert stats.kstest(expected[50:], "uniform").pvalue > 0.001


def test_bets_are_the_mixture_of_the_definition():
    bets = _sequential.ChangeBets
    nodes, weights = np.polynomial.legendre.leggauss(8)
    nodes, weights = (nodes + 1) / 2, weights / 2

    def densities(u):
        u = np.asarray(u)[..., None]
        degree_2 = 1 - 6 * u * (1 - u)
        return 1 + bets._SIZES * np.where(bets._DEGREE_2, degree_2, 2 * u - 1)

    np.testing.assert_allclose(weights @ densities(nodes), 1)
    assert densities(np.linspace(0, 1, 101)).min() > 0

    numbers = np.random.default_rng(9).random(450) ** 2
    numbers[3] = np.nan
    factors = np.where(np.isnan(numbers)[:, None], 1, densities(numbers))
    idle = (1 - bets._FIRST) * (1 + np.arange(450) / 100) ** -0.25
    starts = np.concatenate([[bets._FIRST], -np.diff(idle)])
    expected = [
        idle[n]
        + sum(
            starts[t] * factors[t : n + 1].prod(axis=0).mean()
            for t in range(n + 1)
        )
        for n in range(450)
    ]
    watched = bets()
    found = [watched.bet(rows) for rows in np.split(numbers, [1, 1, 230])]
    np.testing.assert_allclose(np.concatenate(found), np.log(expected))


def test_endless_evidence_stays_finite():
    bets = _sequential.ChangeBets()
    assert np.isfinite(bets.bet(np.random.default_rng(0).random(100_000))).all()
    grown = bets.bet(np.ones(10_000))
    assert np.isfinite(grown).all() and grown[-1] > 5000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exit_index": np.zeros(5)}, "Expected integer `exit_index`"),
        ({"exit_index": np.zeros((5, 1), int)}, "Expected integer"),
        ({"score": np.ones(4, "float32")}, r"\(5,\) and \(4,\)"),
        ({"score": np.array(["a"] * 5)}, "float `score`"),
        ({"exit_index": np.full(5, 3)}, "from 0 to 2.*another model"),
        ({"exit_index": np.full(5, -1)}, "Received: -1 to -1"),
        ({"exit_index": np.full(5, 2)}, "5 at `final`"),
        ({"score": np.full(5, np.nan, "float32")}, "5 samples of 5"),
        ({"score": np.full(5, 0.75, "float32")}, "above the thresholds"),
    ],
)
def test_results_that_do_not_fit_are_refused(change, message):
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(observations(draw(rng, 50)), THRESHOLDS)
    good = left_with(np.zeros(5, int), np.full(5, 0.9, "float32"))
    with pytest.raises(ValueError, match=message):
        monitor.update(dataclasses.replace(good, **change))
    assert monitor.update(good).n == 5


def test_arguments_that_cannot_be_are_refused():
    seen = observations(draw(np.random.default_rng(0), 50))
    with pytest.raises(TypeError, match="to be Observations"):
        DriftMonitor(seen.scores, 0.5)
    with pytest.raises(ValueError, match="at least one sample"):
        DriftMonitor(seen.take(slice(0)), 0.5)
    with pytest.raises(ValueError, match="100 NaN scores"):
        DriftMonitor(observations(seen.scores * np.nan), 0.5)
    for thresholds in (np.nan, (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="Expected a number as threshold"):
            DriftMonitor(seen, thresholds)
    for alpha in (0, 1, "0.1", np.nan):
        with pytest.raises(ValueError, match="`alpha` must be a number"):
            DriftMonitor(seen, 0.5, alpha=alpha)
    with pytest.raises(TypeError, match="Expected an ExitResult"):
        DriftMonitor(seen, 0.5).update(seen.scores)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(64, activation="relu", name="middle")(x)
    x = keras.layers.Dense(64, activation="relu")(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    net = keras.Model(inputs, outputs)
    model = ee.add_exits(
        net, ["middle"], block="plain", policy="max_probability"
    )
    model.compile(keras.optimizers.Adam(5e-3), "eenet_v0")
    model.fit(*digits("train"), epochs=8, batch_size=50, verbose=0)
    return model


def digits(split):
    x, y = ee.datasets.load("digits", split)
    return ee.datasets.normalize("digits", x), y


def test_noise_on_real_images_is_found_and_calibration_mends_it(model):
    x, _ = digits("calibration")
    seen = observe(model, x)
    chosen = ee.calibrate(model, seen, epsilon=0.05)
    monitor = DriftMonitor(seen, chosen)
    x, _ = digits("test")
    assert not monitor.update(model.predict_exits(x)).drifted

    noise = np.random.default_rng(0).normal(0, 0.5, x.shape)
    noisy = (x + noise).astype("float32")
    report = monitor.update(model.predict_exits(noisy))
    assert report.drifted and 400 <= report.since < 650

    recent, later = noisy[:200], noisy[200:]
    seen = observe(model, recent)
    again = ee.calibrate(model, seen, epsilon=0.05)
    assert again.threshold > chosen.threshold
    monitor = DriftMonitor(seen, again)
    assert not monitor.update(model.predict_exits(later)).drifted

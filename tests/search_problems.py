"""Small search problems, and the plain way to solve them."""

import itertools

import numpy as np
from hypothesis import strategies as st

from keras_earlyexit.tuning.problem import Costing, Problem, evaluate


def problem(rng, samples=40, candidates=4, places=None, costings=1):
    """Scores that say a little of who is right; costs with blocks."""
    hard = rng.normal(size=(samples, 1))
    noise = rng.normal(size=(samples, candidates))
    # Rounded, so that scores tie.
    scores = np.round(noise - hard, 1).astype("float32")
    chance = 1 / (1 + np.exp(hard - np.linspace(0, 2, candidates + 1)))
    if places is None:
        places = np.arange(candidates)
    made = []
    for _ in range(costings):
        steps = np.append(0, rng.random(len(set(places))))
        prefix = np.cumsum(steps)[np.unique(places, return_inverse=True)[1]]
        made.append(
            Costing(
                prefix + 0.1,
                rng.random(candidates) / 10,
                float(prefix[-1] + 0.1 + rng.random()),
            )
        )
    return Problem(
        scores,
        (rng.random((samples, candidates + 1)) < chance).astype("float64"),
        np.asarray(places),
        tuple(made),
    )


_FEW, _ONE_OR_TWO = st.integers(1, 4), st.integers(1, 2)


@st.composite
def problems(draw, candidates=_FEW, costings=_ONE_OR_TWO):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num = draw(candidates)
    shared = draw(st.lists(st.booleans(), min_size=num - 1, max_size=num - 1))
    places = np.cumsum([0, *(not same for same in shared)])
    return problem(
        rng,
        draw(st.integers(1, 40)),
        num,
        places,
        draw(costings),
    )


def subsets(one, max_exits=None, costing=0):
    """All sets of candidates that may be chosen."""
    required = one.costings[costing].required
    for size in range(1, (max_exits or one.num_candidates) + 1):
        for chosen in itertools.combinations(range(one.num_candidates), size):
            places = one.places[list(chosen)]
            if len(set(places)) < len(places):
                continue
            if required is None or required in chosen:
                yield chosen


def all_shared(one, levels, max_exits=None):
    """Every configuration with one threshold, one after the other."""
    return [
        evaluate(one, chosen, [level] * len(chosen), costing)
        for costing in range(len(one.costings))
        for chosen in subsets(one, max_exits, costing)
        for level in levels
    ]


def all_own(one, levels, max_exits=None, costing=0):
    """Every configuration with a threshold for each exit."""
    return [
        evaluate(one, chosen, thresholds, costing)
        for chosen in subsets(one, max_exits, costing)
        for thresholds in itertools.product(*(levels[i] for i in chosen))
    ]

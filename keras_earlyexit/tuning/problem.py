"""What a search over exits runs on: numbers alone, neither Keras nor a model.

C candidates stand in the order in which a network reaches them, `final` behind
them. A configuration chooses some of them and gives each a threshold; a sample
leaves at the first that is chosen and whose score is above its threshold. With
i_1 < i_2 < ... chosen, a costing (b, d, b_final) and n_m samples that reach
i_m, the cost of all n samples is

    sum_m n_m (b_(i_m) - b_(i_(m-1)) + d_(i_m)) + n_final (b_final - b_last)

so that every exit block on the way counts, and those not chosen do not.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Costing:
    """What it costs to get to each candidate, to run its block, and to the end.

    Args:
        prefix: Array (C,), cost of the network up to each candidate, without
            exit blocks; it never falls.
        blocks: Array (C,), cost of each candidate's exit block.
        final: Cost of the network to its end, without exit blocks.
        required: Number of the candidate behind which the network is cut, so
            that it must be chosen; `None` for no such.
        label: What this way to run the network is called.
    """

    prefix: np.ndarray
    blocks: np.ndarray
    final: float
    required: int | None = None
    label: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Samples as every candidate scores and answers them.

    Args:
        scores: Float32 array (n, C).
        values: Float64 array (n, C + 1), how good each answer is, `final`
            last: 1 or 0 for right or wrong; more is better.
        places: Integer array (C,), rising; of the candidates at one place no
            more than one can be chosen.
        costings: The `Costing` of each way to run the network.
    """

    scores: np.ndarray
    values: np.ndarray
    places: np.ndarray
    costings: tuple

    @property
    def num_samples(self):
        return self.scores.shape[0]

    @property
    def num_candidates(self):
        return self.scores.shape[1]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Some candidates with their thresholds, and what they come to.

    Args:
        candidates: Numbers of the chosen candidates, rising.
        thresholds: A threshold for each of them.
        cost: Mean cost of a sample.
        value: Mean value, such as accuracy.
        costing: Number of the `Costing`.
    """

    candidates: tuple
    thresholds: tuple
    cost: float
    value: float
    costing: int = 0


def evaluate(problem, candidates, thresholds, costing=0):
    """One configuration, sample by sample as it says above.

    Returns:
        A `Configuration`.
    """
    chosen = problem.costings[costing]
    inside = np.ones(problem.num_samples, bool)
    reached, cost, value = 0.0, 0.0, 0.0
    for i, threshold in zip(candidates, thresholds, strict=True):
        cost += inside.sum() * (chosen.prefix[i] - reached + chosen.blocks[i])
        leaves = inside & (problem.scores[:, i] > np.float32(threshold))
        value += problem.values[leaves, i].sum()
        inside &= ~leaves
        reached = chosen.prefix[i]
    cost += inside.sum() * (chosen.final - reached)
    value += problem.values[inside, -1].sum()
    n = problem.num_samples
    return Configuration(
        tuple(int(i) for i in candidates),
        tuple(float(t) for t in thresholds),
        float(cost / n),
        float(value / n),
        costing,
    )


def shared_levels(scores, num):
    """Thresholds for all candidates together: -inf and quantiles, rising.

    At `-inf` everybody leaves at the first exit that is chosen.
    """
    found = np.quantile(scores, np.linspace(0, 1, num - 1), method="lower")
    return np.unique(np.append(found, -np.inf).astype("float32"))


def own_levels(scores, num):
    """As `shared_levels` for each candidate: a list of C arrays."""
    return [shared_levels(column, num) for column in scores.T]

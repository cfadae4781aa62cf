"""Searches number, places and thresholds of exits on what was observed once."""

import time

import numpy as np

from keras_earlyexit.calibration import Fingerprints, Observations, observe
from keras_earlyexit.cost.measured import amount, count, positive
from keras_earlyexit.tuning import candidates as candidates_module
from keras_earlyexit.tuning import costs as costs_module
from keras_earlyexit.tuning import free, shared
from keras_earlyexit.tuning.front import pareto_front
from keras_earlyexit.tuning.problem import (
    Configuration,
    Problem,
    own_levels,
    shared_levels,
)
from keras_earlyexit.tuning.progress import Bar
from keras_earlyexit.tuning.results import ExitSearch, Point, refuse_known
from keras_earlyexit.tuning.running_front import RunningFront
from keras_earlyexit.tuning.store import Store, key_of, weights_key
from keras_earlyexit.tuning.training import check_searchable, train_candidates

#: Subsets of more candidates than this take too much memory.
MOST_CANDIDATES = 20
_EXITS_OF_THEIR_OWN = 4
_SHARED_LEVELS, _OWN_LEVELS = 100, 24
_BUDGETS = 5


def search_exits(
    model,
    x,
    y=None,
    *,
    train=None,
    thresholds="shared",
    max_exits=None,
    cost="macs",
    max_cost=None,
    min_accuracy=None,
    levels=None,
    time_limit=10.0,
    directory=None,
    verbose="auto",
    **training,
):
    """Finds how many exits to have, where, and with which thresholds.

    All candidates answer the search samples once; everything else is
    arithmetic on what they said. With `thresholds="shared"` every subset of
    candidates is evaluated with every threshold, so that the front is exact.
    With `"own"` each exit has a threshold of its own, searched for by branch
    and bound: `gap` says how much better anything in the space can be.

    Thresholds are chosen on the search samples and look too good on them:
    `found.calibrate` sets them anew on other samples, with a guarantee, and
    `found.measure` says what points come to on test samples. Samples that had
    another use before are refused.

    Args:
        model: An `EarlyExitModel` with trained exits, the candidates (see
            `train_candidates`), at most 20; or a plain model, with `train`.
        x: Search samples that were not trained on, as in
            `ee.calibration.observe`.
        y: Labels, or `None` if `x` brings them.
        train: `(x, y)` or a dataset to train candidates on, for a plain model.
        thresholds: `"shared"`, one for all exits, or `"own"`.
        max_exits: How many exits to choose at most; `None`: any number, or 4
            if thresholds are their own.
        cost: What is counted: `"macs"`, relative to the plain model; a
            `DeviceProfile` of the model with all candidates, in milliseconds,
            or its `MeasuredCost`, also in joules; or an `ee.tuning.Split`,
            which searches the cut too, in seconds or bytes.
        max_cost: The mean cost that is allowed, in the unit of `cost`: the
            most accurate choice is searched for.
        min_accuracy: The accuracy that is asked for: the cheapest choice is
            searched for. Neither: the front only.
        levels: Thresholds that are tried, at most, quantiles of the scores;
            `None`: 100 if they are shared, else 24 for each exit.
        time_limit: Seconds for the search over thresholds of their own.
        directory: Folder that keeps trained candidates and what they answered,
            so that another call goes on where one was interrupted.
        verbose: 0 for silence, 1 for progress bars; `"auto"` shows those of
            what takes more than some seconds.
        **training: For a plain model, as in `train_candidates`: `candidates`,
            `block`, `epochs`, ...

    Returns:
        An `ExitSearch`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If no choice keeps to `max_cost` or `min_accuracy` (the
            message says what the best is), if samples were trained on, or if
            an option cannot be.

    Example:

    ```python
    found = ee.tuning.search_exits(
        plain, x_search, y_search, train=(x, y), max_cost=0.5
    )
    print(found)
    model, report = found.calibrate(x_calibration, epsilon=0.02)
    model.save("tuned.keras")
    ```
    """
    limits = _limits(max_cost, min_accuracy, thresholds, levels, max_exits)
    model = _trained(model, train, training, directory, verbose)
    check_searchable(model)
    costs = costs_module.read(model, cost)
    scores, values, hashes = _observed(model, x, y, directory, verbose)
    known = {"training": model.training_fingerprints}
    refuse_known(known, hashes, "search")
    known["search"] = Fingerprints(capacity=max(2**16, len(hashes)))
    known["search"].add_hashes(hashes)
    if scores.shape[1] > MOST_CANDIDATES:
        raise ValueError(
            f"Expected at most {MOST_CANDIDATES} candidates. Received: "
            f"{scores.shape[1]} exits. Give fewer `candidates`."
        )
    problem = Problem(
        scores, values, _places(model.exit_layers), costs.costings
    )
    start = time.monotonic()
    found = _search(problem, limits, float(time_limit), verbose)
    seconds = time.monotonic() - start
    kinds = candidates_module.kinds_of(model)

    def point(configuration):
        chosen = configuration.candidates
        return Point(
            exits=tuple(model.exit_layers[i] for i in chosen),
            candidates=chosen,
            thresholds=configuration.thresholds,
            cost=configuration.cost,
            accuracy=configuration.value,
            cut=costs.costings[configuration.costing].label,
            costing=configuration.costing,
            blocks=tuple(kinds[i] for i in chosen if len(set(kinds)) > 1),
        )

    result = ExitSearch(
        model=model,
        costs=costs,
        front=tuple(map(point, found.front)),
        best=found.best and point(found.best),
        gap=found.gap,
        plain=Point((), (), (), costs.plain, float(values[:, -1].mean())),
        evaluated=found.evaluated,
        pruned=found.pruned,
        seconds=seconds,
        problem=problem,
        known=known,
    )
    if result.best is None and (max_cost, min_accuracy) != (None, None):
        # Says what the best is that there is.
        result.choose(max_cost, min_accuracy)
    return result


class _Limits:
    """What is searched for, checked."""

    def __init__(self, max_cost, min_accuracy, own, levels, max_exits):
        self.max_cost, self.min_accuracy = max_cost, min_accuracy
        self.own, self.levels, self.max_exits = own, levels, max_exits

    @property
    def asked(self):
        return (self.max_cost, self.min_accuracy) != (None, None)


def _limits(max_cost, min_accuracy, thresholds, levels, max_exits):
    if thresholds not in ("shared", "own"):
        raise ValueError(
            "Expected `thresholds` to be 'shared' or 'own'. Received: "
            f"thresholds={thresholds!r} (of type {type(thresholds).__name__})."
        )
    if max_cost is not None and min_accuracy is not None:
        raise ValueError(
            "Expected `max_cost` or `min_accuracy`, and the other one is made "
            f"as good as can be. Received: max_cost={max_cost!r} and "
            f"min_accuracy={min_accuracy!r}. Search once, and look at `front`."
        )
    if max_cost is not None:
        max_cost = positive("max_cost", max_cost)
    if min_accuracy is not None:
        min_accuracy = amount("min_accuracy", min_accuracy)
    if max_exits is not None:
        max_exits = count("max_exits", max_exits)
    own = thresholds == "own"
    if levels is None:
        levels = _OWN_LEVELS if own else _SHARED_LEVELS
    levels = count("levels", levels, at_least=2)
    return _Limits(max_cost, min_accuracy, own, levels, max_exits)


def _trained(model, train, training, directory, verbose):
    if train is None:
        if training:
            raise TypeError(
                f"Expected {', '.join(training)} with `train=` only, to train "
                "a plain model's candidates. Received: train=None."
            )
        return model
    pair = isinstance(train, (list, tuple)) and len(train) == 2
    x, y = train if pair else (train, None)
    return train_candidates(
        model, x, y, directory=directory, verbose=verbose, **training
    )


def _observed(model, x, y, directory, verbose):
    """Scores, values and fingerprints of the search samples."""
    if model.training_fingerprints is None:
        # Without a record there is nothing to compare, but hashes are made.
        model.training_fingerprints = Fingerprints(capacity=2**16)

    def run():
        seen = x
        if not isinstance(x, Observations):
            seen = observe(model, x, y, verbose=verbose)
        if seen.fingerprints is None:
            raise ValueError(
                "Expected observations with fingerprints, by which samples "
                f"are told apart. Received: {seen!r}, made before the model "
                "had a record of its training. Pass the samples."
            )
        return {
            "scores": seen.scores,
            "values": seen.sample_metrics,
            "fingerprints": seen.fingerprints,
        }

    key = None
    if directory is not None and hasattr(x, "shape"):
        key = key_of(weights_key(model.net), repr(model.policy), x, np.array(y))
    found = Store(directory if key else None).arrays(key, run)
    return found["scores"], found["values"], found["fingerprints"]


def _places(layers):
    """A number for each place, since several candidates may share one."""
    order = {}
    return np.array([order.setdefault(name, len(order)) for name in layers])


class _Outcome:
    def __init__(self, front, best, gap, evaluated, pruned):
        self.front, self.best, self.gap = front, best, gap
        self.evaluated, self.pruned = evaluated, pruned


def _search(problem, limits, time_limit, verbose):
    # Where thresholds are their own, the start costs little.
    num = max(limits.levels, _SHARED_LEVELS) if limits.own else limits.levels
    grid = shared_levels(problem.scores, num)
    with Bar("subsets with a shared threshold", verbose) as bar:
        running, evaluated = shared.search(
            problem, grid, limits.max_exits, bar.update
        )
    points = [
        Configuration(
            shared.members(bits),
            (float(grid[level]),) * len(shared.members(bits)),
            float(cost),
            float(value),
            int(costing),
        )
        for cost, value, (costing, bits, level) in zip(
            running.costs, running.values, running.keys, strict=True
        )
    ]
    if not limits.own:
        best = _best(points, limits) if limits.asked else None
        return _Outcome(points, best, best and 0.0, evaluated, 0)
    return _with_own(problem, limits, points, evaluated, time_limit, verbose)


def _with_own(problem, limits, points, evaluated, time_limit, verbose):
    """Thresholds of their own, from the front of shared ones on."""
    levels = own_levels(problem.scores, limits.levels)
    width = 1 + 2 * problem.num_candidates
    running = RunningFront(width)
    goals = [_goal(points, limits.max_cost, limits.min_accuracy)]
    if not limits.asked:
        costs = np.linspace(points[0].cost, points[-1].cost, _BUDGETS + 2)
        goals = [_goal(points, float(cost), None) for cost in costs[1:-1]]
    tasks = [(goal, k) for goal in goals for k in range(len(problem.costings))]
    bound, pruned = -np.inf, 0
    best = _best(points, limits) if limits.asked else None
    with Bar("thresholds of their own", verbose) as bar:
        for done, (goal, costing) in enumerate(tasks):
            search = free.Search(
                problem,
                levels,
                goal,
                limits.max_exits or _EXITS_OF_THEIR_OWN,
                costing,
                running,
            )
            search.start_from(_best(points, goal) if best is None else best)
            found = search.run(
                time_limit / len(tasks),
                lambda share, done=done: bar.update(
                    (done + share) / len(tasks)
                ),
            )
            evaluated += found.evaluated
            pruned += found.pruned
            if limits.asked and found.best is not None:
                best = found.best
            # All ways to run the network count, each against the best of all.
            bound = max(bound, found.worth + found.gap)
    points += [
        free.configuration_of(problem, levels, key) for key in running.keys
    ]
    rows = pareto_front(
        [point.cost for point in points], [point.value for point in points]
    )
    front = [points[row] for row in rows]
    gap = None
    if best is not None:
        worth = float(goals[0].worth(best.cost, best.value))
        gap = max(0.0, bound - worth)
    return _Outcome(front, best, gap, evaluated, pruned)


def _best(points, limits):
    """The best point that keeps to limits, or `None`."""
    floor = getattr(limits, "min_accuracy", None)
    if isinstance(limits, free.Goal):
        floor = limits.min_value
    fitting = [
        point
        for point in points
        if (limits.max_cost is None or point.cost <= limits.max_cost + 1e-12)
        and (floor is None or point.value >= floor - 1e-12)
    ]
    if not fitting:
        return None
    return fitting[-1] if floor is None else fitting[0]


def _goal(points, max_cost, min_value):
    """A goal, with the rate at which the front trades value for cost there."""
    costs = np.array([point.cost for point in points])
    values = np.array([point.value for point in points])
    hull = _hull(costs, values)
    if max_cost is None:
        place = np.searchsorted(values[hull], min_value or 0.0)
    else:
        place = np.searchsorted(costs[hull], max_cost)
    place = int(np.clip(place, 1, max(1, len(hull) - 1)))
    rate = 0.0
    if len(hull) > 1:
        one, other = hull[place - 1], hull[place]
        rate = (values[other] - values[one]) / (costs[other] - costs[one])
    if max_cost is not None and max_cost >= costs[-1]:
        rate = 0.0
    if min_value is not None:
        # A cost is bounded only if it is worth something.
        rate = max(rate, 1e-6 / costs[-1])
    return free.Goal(max_cost, min_value, float(rate))


def _hull(costs, values):
    """Rows of the upper concave hull of a front."""
    kept = []
    for row in range(len(costs)):
        while len(kept) > 1:
            one, other = kept[-2:]
            slope = (values[row] - values[one]) * (costs[other] - costs[one])
            if slope < (values[other] - values[one]) * (
                costs[row] - costs[one]
            ):
                break
            kept.pop()
        kept.append(row)
    return kept

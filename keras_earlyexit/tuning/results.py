"""What a search found: points to choose from, and the model of one of them."""

import dataclasses
import warnings

import keras
import numpy as np

from keras_earlyexit import calibration, cost, exit_graph, policies
from keras_earlyexit.calibration import Fingerprints, observe
from keras_earlyexit.model import EarlyExitModel
from keras_earlyexit.tuning import problem as problem_module
from keras_earlyexit.tuning.costs import SearchCosts

#: Share of samples that may be known already: data sets have duplicates.
_DUPLICATES = 0.01


@dataclasses.dataclass(frozen=True)
class Point:
    """A choice of exits with their thresholds.

    Args:
        exits: Names of the layers that the exits hang on.
        candidates: Their numbers among the candidates.
        thresholds: The threshold of each exit.
        cost: Mean cost of the search samples, in the search's unit.
        accuracy: Accuracy of the routed answers on the search samples.
        cut: With an `ee.tuning.Split`: the layer that the network is cut
            behind, `"edge"` or `"cloud"` for none; else `""`.
        costing: Number of the way to run the network that `cut` names.
        blocks: Kind of each exit's block, `"custom"` for those of a callable;
            empty where there was but one kind to choose from.
    """

    exits: tuple
    candidates: tuple
    thresholds: tuple
    cost: float
    accuracy: float
    cut: str = ""
    costing: int = 0
    blocks: tuple = ()

    def __str__(self):
        kinds = [f" ({kind})" for kind in self.blocks] or [""] * len(self.exits)
        exits = ", ".join(
            f"{name}{kind} > {threshold:.4g}"
            for name, kind, threshold in zip(
                self.exits, kinds, self.thresholds, strict=True
            )
        )
        cut = f", cut: {self.cut}" if self.cut else ""
        return (
            f"cost {self.cost:.4g}, accuracy {self.accuracy:.4f}{cut}: {exits}"
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ExitSearch:
    """What `ee.tuning.search_exits` found.

    Args:
        model: The `EarlyExitModel` with all candidates.
        costs: The `SearchCosts` of all candidates.
        front: Tuple of `Point`: for every cost the most accurate one, cheap
            ones first.
        best: The `Point` that was asked for, or `None` if nothing was.
        gap: How much better than `best` anything within the search space can
            be, in accuracy, or in cost where an accuracy was asked for; 0 if
            it is proven to be the best. `None` where nothing was asked for or
            proven.
        plain: The plain model as a `Point` without exits.
        evaluated: How many configurations were evaluated, each of them with
            its exact cost and accuracy.
        pruned: How many beginnings of configurations were left out because
            a bound says that they cannot be better.
        seconds: How long the search itself took.
        problem: The `problem.Problem` that was searched.
        known: Dict by role (`"training"`, `"search"`, `"calibration"`) of
            `Fingerprints` of the samples used.
    """

    model: EarlyExitModel
    costs: SearchCosts
    front: tuple
    best: Point | None
    gap: float | None
    plain: Point
    evaluated: int
    pruned: int
    seconds: float
    problem: problem_module.Problem
    known: dict

    @property
    def unit(self):
        """Unit of cost: `"relative cost"`, `"milliseconds"`, `"joules"`, ..."""
        return self.costs.unit

    def __repr__(self):
        return (
            f"ExitSearch({len(self.front)} points from {self.evaluated:,} "
            f"configurations of {self.problem.num_candidates} candidates)"
        )

    def __str__(self):
        lines = [
            f"{self.evaluated:,} configurations evaluated in "
            f"{self.seconds:.2f} s, {self.pruned:,} beginnings pruned; cost is "
            f"{self.unit}.",
            f"plain model: cost {self.plain.cost:.4g}, accuracy "
            f"{self.plain.accuracy:.4f}",
        ]
        step = max(1, len(self.front) // 12)
        lines += [f"front: {point}" for point in self.front[::step]]
        if self.best is not None:
            proof = "not proven to be the best"
            if self.gap is not None:
                proof = "proven to be the best"
                if self.gap:
                    proof = f"at most {self.gap:.4g} from the best"
            lines.append(f"best ({proof}): {self.best}")
        return "\n".join(lines)

    def choose(self, max_cost=None, min_accuracy=None):
        """A point of the front.

        Args:
            max_cost: The mean cost that is allowed: the most accurate point
                within it.
            min_accuracy: The accuracy that is asked for: the cheapest point
                that has it.

        Returns:
            A `Point`.

        Raises:
            ValueError: If neither or both are given, or if no point keeps to
                it; the message says what the best is.
        """
        if (max_cost is None) == (min_accuracy is None):
            raise ValueError(
                "Expected either `max_cost` or `min_accuracy`. Received: "
                f"max_cost={max_cost!r} and min_accuracy={min_accuracy!r}."
            )
        if max_cost is not None:
            fitting = [p for p in self.front if p.cost <= max_cost + 1e-12]
            if not fitting:
                raise ValueError(
                    f"No choice of exits costs at most {max_cost:g} "
                    f"({self.unit}). The cheapest there is: {self.front[0]}."
                )
            return fitting[-1]
        fitting = [p for p in self.front if p.accuracy >= min_accuracy - 1e-12]
        if not fitting:
            raise ValueError(
                f"No choice of exits has an accuracy of {min_accuracy:g}. The "
                f"most accurate there is: {self.front[-1]}. The plain model "
                f"has {self.plain.accuracy:.4f} on the same samples."
            )
        return fitting[0]

    def build(self, point=None):
        """The model with the exits of a point alone, trained and set.

        Blocks keep their weights and share them with the candidates. It knows
        the samples of the training and of the search, so that `ee.calibrate`
        notices them.

        Args:
            point: A `Point`; `None` takes `best`.

        Returns:
            An `EarlyExitModel` that is not compiled. With a `Split`, cut it at
            the exit that hangs on `point.cut`.
        """
        point = self._point(point)
        exits = self.model.exit_graph
        outputs = {}
        for k, i in enumerate(point.candidates):
            name = exit_graph.exit_name(k)
            prediction, confidence = exits.heads[i]
            outputs[name] = prediction
            outputs[exit_graph.confidence_name(name)] = confidence
        graph = exits.graph
        outputs[exit_graph.FINAL] = graph.outputs[exit_graph.FINAL]
        last = exit_graph.FINAL_CONFIDENCE
        outputs[last] = graph.outputs[last]
        policy = policies.get(
            keras.saving.serialize_keras_object(self.model.policy)
        )
        policy.threshold = _shortest(point.thresholds)
        model = EarlyExitModel(
            keras.Model(graph.inputs, outputs, name=self.model.name),
            self.model.head,
            policy=policy,
            cost=self.model.cost,
            name=self.model.name,
        )
        if self.unit in ("milliseconds", "joules"):
            model.use_cost(self._measured(point))
        # The same samples may calibrate several points.
        model.training_fingerprints = _together(
            self.known["training"], self.known["search"]
        )
        return model

    def calibrate(self, x, y=None, point=None, **options):
        """The model of a point, its thresholds set anew with a guarantee.

        Thresholds that were searched for are too good on the samples of the
        search. Here `ee.calibrate` chooses them on other samples: one threshold
        for all exits, or, where each has its own, one of a sequence from those
        of the point to nobody leaving early.

        Args:
            x: Samples that were used neither for training nor for the search.
            y: Labels, for `risk="performance_gap"`.
            point: A `Point`; `None` takes `best`.
            **options: As in `ee.calibrate`: `risk`, `epsilon`, `delta`,
                `method`, ...

        Returns:
            `(model, report)`: an `EarlyExitModel` and a `RiskReport`.

        Raises:
            ValueError: If samples were used before, and as in `ee.calibrate`.
        """
        point = self._point(point)
        model = self.build(point)
        seen = observe(model, x, y)
        self._refuse_known(seen.fingerprints, "calibration")
        if "thresholds" not in options and len(set(point.thresholds)) > 1:
            # From the samples of the search, so that it is fixed beforehand.
            options["thresholds"] = _towards_never(
                self.problem.scores[:, point.candidates], point.thresholds
            )
        report = calibration.calibrate(model, seen, **options)
        own = self.known.setdefault("calibration", Fingerprints())
        own.add_hashes(seen.fingerprints)
        return model, report

    def measure(self, x, y, points=None):
        """What points come to on test samples, which must be new.

        Args:
            x: Samples that were used neither for training, nor for the search
                or a calibration.
            y: Labels, or `None` if `x` brings them.
            points: A sequence of `Point`; `None` takes the front.

        Returns:
            A list of `Point` with cost and accuracy on these samples.

        Raises:
            ValueError: If samples were used before.
        """
        seen = observe(self.model, x, y)
        self._refuse_known(seen.fingerprints, "test")
        on_test = dataclasses.replace(
            self.problem,
            scores=seen.scores,
            values=seen.sample_metrics,
        )
        found = []
        for point in self.front if points is None else points:
            there = problem_module.evaluate(
                on_test, point.candidates, point.thresholds, point.costing
            )
            found.append(
                dataclasses.replace(
                    point, cost=there.cost, accuracy=there.value
                )
            )
        return found

    def plot(self, path=None, test=None):
        """Draws the front, `best` and the plain model.

        Args:
            path: Where to save the picture (`.png`, `.svg`, `.pdf`), or
                `None`.
            test: What `measure` returned, drawn beside the front, or `None`.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_earlyexit.tuning import picture

        return picture.draw(self, test, path)

    def _point(self, point):
        point = self.best if point is None else point
        if not isinstance(point, Point) or not point.candidates:
            raise ValueError(
                "Expected a point of the front, such as "
                "`found.choose(max_cost=0.5)`. Received: "
                f"{point!r} (of type {type(point).__name__})."
            )
        return point

    def _measured(self, point):
        chosen = self.problem.costings[point.costing]
        costs, blocks = [], 0.0
        for i in point.candidates:
            blocks += chosen.blocks[i]
            costs.append(chosen.prefix[i] + blocks)
        costs.append(chosen.final + blocks)
        return cost.MeasuredCost(
            self.unit, self.costs.batch_size, tuple(costs), self.plain.cost
        )

    def _refuse_known(self, hashes, role):
        refuse_known(self.known, hashes, role)


def refuse_known(known, hashes, role):
    """Refuses samples that had another role already.

    Args:
        known: Dict of `Fingerprints` by role.
        hashes: Fingerprints of samples.
        role: What they are for.

    Raises:
        ValueError: If more than a hundredth of them are known; a warning tells
            of fewer, which may be duplicates in the data.
    """
    for other, record in known.items():
        if other == role:
            continue
        share = record.overlap_of(hashes)
        if not share:
            continue
        found = (
            f"{round(share * len(hashes))} of the {len(hashes)} {role} samples "
            f"were used for the {other}"
        )
        if share > _DUPLICATES:
            raise ValueError(
                f"Expected {role} samples that had no other use before. "
                f"Received: {found}. What is chosen on samples looks too good "
                "on them. Pass another split."
            )
        warnings.warn(
            f"{found}. They may be duplicates in the data; leave them out.",
            stacklevel=4,
        )


def _together(*records):
    found = Fingerprints(capacity=2**16)
    for record in records:
        found.add_hashes(record.hashes)
    return found


def _shortest(thresholds):
    """One number where all are the same."""
    if len(set(thresholds)) == 1:
        return thresholds[0]
    return thresholds


def _towards_never(scores, thresholds, num=50):
    """Rows of thresholds from nobody leaving to those given.

    Each exit lets a growing share of the samples out that it would let out at
    its own threshold, those with the highest scores first.
    """
    rows = []
    for k, threshold in enumerate(thresholds):
        own = scores[:, k]
        leaving = np.sort(own[own > np.float32(threshold)])[::-1]
        if not len(leaving):
            rows.append(np.full(num, np.inf))
            continue
        ranks = np.linspace(0, len(leaving) - 1, num - 1).round().astype(int)
        rows.append(
            np.concatenate([[np.inf], leaving[ranks[:-1]], [threshold]])
        )
    return np.stack(rows, axis=1).astype("float64")

"""One trial from its choices to its record, whoever drew the choices."""

import contextlib
import dataclasses
import time

import keras
import numpy as np

from keras_earlyexit import placement, policies
from keras_earlyexit.building import add_exits
from keras_earlyexit.calibration.observations import observe
from keras_earlyexit.inputs import is_arrays
from keras_earlyexit.model import EarlyExitModel
from keras_earlyexit.tuning.judging import judge
from keras_earlyexit.tuning.pruning import DominatedTrials
from keras_earlyexit.tuning.records import MODEL, write_record


@dataclasses.dataclass(frozen=True)
class TrialPlan:
    """How trials are built, trained and judged.

    Args:
        space: `SearchSpace`.
        budget: Mean relative cost, or `None`, see `judging.judge`.
        calibration: `(x, y)` or a dataset to choose thresholds from, or
            `None`: every other sample of the validation data.
        pruning: `Pruning`, or `None`.
        optimizer: Name of a Keras optimizer.
        cost: Cost convention, as in `add_exits`.
    """

    space: object
    budget: float | None = None
    calibration: object = None
    pruning: object = None
    optimizer: str = "adam"
    cost: str = "macs"

    def check(self, plain):
        """Raises a `ValueError` if no trial of a network can be built."""
        ends = block_ends(plain, self.cost)
        self.space.check_room([end.name for end in ends])
        if self.budget is None:
            return
        costs = {}
        for name, block in self.space.block_options.items():
            # Another trial may be able to do what one block cannot.
            with contextlib.suppress(TypeError, ValueError):
                model = add_exits(
                    plain, [ends[0].name], block=block, cost=self.cost
                )
                costs[name] = float(model.relative_costs[0])
        if costs and self.budget < min(costs.values()):
            name = min(costs, key=costs.get)
            raise ValueError(
                f"Expected a budget that some exit can keep to. Received: "
                f"budget={self.budget:g}. The cheapest exit, behind "
                f"'{ends[0].name}' with the block '{name}', costs "
                f"{costs[name]:.4g} of the network: that is the least."
            )

    def build(self, plain, hp, copy):
        """Draws a trial, and builds and compiles its model.

        Args:
            plain: The network without exits.
            hp: What draws, see `SearchSpace.draw`.
            copy: Whether `plain` must stay as it is.

        Returns:
            A compiled `EarlyExitModel`.

        Raises:
            TypeError, ValueError: If such a model cannot be built, or spends
                more than the budget whatever its thresholds are.
        """
        ends = block_ends(plain, self.cost)
        choices = self.space.draw(
            hp, [end.name for end in ends], self._num_affordable(ends)
        )
        _check_policy(choices)
        model = add_exits(
            plain,
            choices.exits,
            placement=(
                "pareto"
                if isinstance(choices.exits, list)
                else choices.placement
            ),
            block=choices.block,
            policy=choices.policy,
            cost=self.cost,
            copy=copy,
        )
        optimizer = keras.optimizers.get(
            {
                "class_name": self.optimizer,
                "config": {"learning_rate": choices.learning_rate},
            }
        )
        model.compile(optimizer, objective=choices.objective)
        cheapest = model.relative_costs[0]
        if self.budget is not None and self.budget < cheapest:
            raise ValueError(
                f"Expected exits that a budget of {self.budget:g} can pay. "
                f"Received: a cheapest exit, behind '{model.exit_layers[0]}', "
                f"at a relative cost of {cheapest:.4g}. Exits further in front "
                "cost less, and so do other exit blocks."
            )
        return model

    def _num_affordable(self, ends):
        """How many block ends the budget can pay the way to; at least one."""
        if self.budget is None:
            return len(ends)
        return max(1, sum(end.fraction < self.budget for end in ends))

    def run(self, model, record, directory, x, y, validation_data, **fitting):
        """Trains, judges and saves a trial's model.

        Args:
            model: As `build` made it.
            record: `TrialRecord` with the id, the values and a folder.
            directory: Folder of the search.
            x: As in `fit`.
            y: As in `fit`.
            validation_data: `(x, y)` or a dataset to judge by.
            **fitting: Further arguments of `fit`.

        Returns:
            The finished `TrialRecord`.
        """
        calibration, validation = self._splits(validation_data)
        started = time.monotonic()
        record = dataclasses.replace(
            record,
            status="running",
            exit_layers=tuple(model.exit_layers),
            relative_costs=tuple(map(float, model.relative_costs)),
        )
        write_record(record)
        callbacks = list(fitting.pop("callbacks", None) or ())
        watch = None
        if self.pruning is not None:
            watch = DominatedTrials(
                self.pruning,
                calibration,
                directory,
                lambda epochs: write_record(
                    dataclasses.replace(record, epochs=epochs)
                ),
                record.epochs,
            )
            callbacks.append(watch)
        model.fit(
            x,
            y,
            validation_data=validation if is_pair(validation) else None,
            callbacks=callbacks,
            **fitting,
        )
        seen = [
            observe(model, *data, verbose=0)
            for data in (calibration, validation)
        ]
        judgement = judge(model, *seen, budget=self.budget)
        model.save(record.folder / MODEL)
        record = dataclasses.replace(
            record,
            status="pruned" if watch and watch.stopped_by else "completed",
            message=(
                f"stopped early: trial {watch.stopped_by} was better"
                if watch and watch.stopped_by
                else None
            ),
            metric_name=seen[1].metric_name,
            metric=judgement.metric,
            mean_cost=judgement.mean_cost,
            final_metric=judgement.final_metric,
            thresholds=judgement.thresholds,
            curve=judgement.curve,
            score=judgement.score,
            epochs=watch.epochs if watch else {},
            seconds=time.monotonic() - started,
        )
        write_record(record)
        return record

    def _splits(self, validation_data):
        """The calibration and the validation split, as arguments."""
        if validation_data is None:
            raise ValueError(
                "Expected data to judge trials by, which they are not trained "
                "on. Received: validation_data=None. Pass "
                "`search(x, y, validation_data=(x_val, y_val))`."
            )
        if self.calibration is not None:
            return _as_pair(self.calibration), _as_pair(validation_data)
        if not is_pair(validation_data) or not is_arrays(validation_data[0]):
            raise ValueError(
                "Expected `calibration=(x, y)` beside validation data that is "
                "no pair of arrays, which alone can be divided. Received: "
                "calibration=None and validation_data of type "
                f"{type(validation_data).__name__}."
            )
        pair = validation_data[:2]
        return _every_other(pair, 0), _every_other(pair, 1)


def _check_policy(choices):
    """Refuses a policy that would leave to chance who leaves."""
    if choices.policy is None or choices.objective.trains_confidence:
        return
    if policies.get(choices.policy).uses_confidence:
        raise ValueError(
            "Expected a policy that reads what the objective trains. Received: "
            f"policy {choices.policy!r}, which reads the confidence branches, "
            f"and objective {choices.objective.name!r}, which does not train "
            "them."
        )


def _every_other(pair, start):
    return keras.tree.map_structure(
        lambda part: np.asarray(part)[start::2], pair
    )


def block_ends(plain, cost="macs"):
    """The places that exits may hang on, a list of `placement.Place`."""
    if isinstance(plain, EarlyExitModel) or not isinstance(plain, keras.Model):
        raise TypeError(
            "Expected a Keras model without exits to put exits on. Received: "
            f"{plain!r} (of type {type(plain).__name__})."
        )
    places = placement.candidates(plain, cost)
    return [place for place in places if place.is_block_end]


def is_pair(data):
    """Whether data is (x, y) rather than something that yields it."""
    return isinstance(data, (tuple, list))


def _as_pair(data):
    return data[:2] if is_pair(data) else (data,)

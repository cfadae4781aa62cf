"""What relative costs of an early-exit model are: counted, or measured."""

import numpy as np

from keras_earlyexit.cost import exit_costs
from keras_earlyexit.cost.measured import MeasuredCost
from keras_earlyexit.cost.profiles import DeviceProfile


class ExitCosting:
    """The costs of `EarlyExitModel`, mixed into it."""

    _measured_cost = None

    @property
    def relative_costs(self):
        """Cost of leaving at each exit over the plain model's: (E + 1,)."""
        return self._relative_costs.copy()

    @property
    def plain_macs(self):
        """Multiply-adds of the model without exits, an integer."""
        return self._plain_macs

    @property
    def measured_cost(self):
        """The `MeasuredCost` that costs are; `None` if they are counted."""
        return self._measured_cost

    def use_cost(self, cost, unit="milliseconds", batch_size=1):
        """Says what relative costs are: counted, or measured on a device.

        A measured one is the time, or the energy, to answer at an exit over
        that of the plain model. Answers, `ee.calibrate`, budgets, metrics and
        the objective follow, from the next call on; thresholds that are set
        already stay. What is used is saved with the model.

        Some objectives add layers at the exits, which take time: profile a
        model after `compile`.

        Args:
            cost: `"macs"` or `"eenets"`, a `DeviceProfile` of this model, or
                a `MeasuredCost`.
            unit: What of a profile, `"milliseconds"` or `"joules"`.
            batch_size: Samples in a batch, to read a profile at.

        Raises:
            TypeError: If `cost` is of another kind.
            ValueError: If the convention is unknown, or if the profile is of
                another model, has not what is asked for, or has an exit that
                does not cost more than the one before.

        Example:

        ```python
        profile = ee.cost.profile(model, batch_sizes=(1, 32))
        model.use_cost(profile, "milliseconds", batch_size=32)
        print(model.relative_costs)
        model.use_cost("macs")
        ```
        """
        if isinstance(cost, str):
            # Refuses what it does not know before anything changes.
            exit_costs.relative_costs(self.exit_graph, cost)
            self.cost, self._measured_cost = cost, None
        else:
            if isinstance(cost, DeviceProfile):
                self._check_profile(cost)
                cost = cost.cost_of_exits(unit, batch_size)
            self._check_measured(cost)
            self._measured_cost = cost
        self.set_costs()
        if self._exit_metrics is not None:
            routing = self._exit_metrics.routing
            routing.relative_costs = self._relative_costs.astype("float32")
            # Compiled steps hold the costs from before.
            self._training_steps = {}
            self.train_function = None
            self.forget_test_function()

    def set_costs(self):
        """Finds the costs of the present network."""
        self._relative_costs, self._plain_macs = exit_costs.relative_costs(
            self.exit_graph, self.cost
        )
        if self._measured_cost is not None:
            self._relative_costs = np.array(self._measured_cost.relative_costs)

    def _check_profile(self, profile):
        macs = [stage.macs for stage in profile.stages]
        plain = profile.plain.macs if profile.plain is not None else None
        if profile.stage_names != self.exit_names:
            self._refuse(profile, f"stages {', '.join(profile.stage_names)}")
        if plain is None or None in macs:
            return
        counted, plain_macs = exit_costs.relative_costs(self.exit_graph, "macs")
        found = np.cumsum(macs) / plain
        if plain != plain_macs or not np.allclose(found, counted, rtol=1e-9):
            self._refuse(profile, f"stages of {macs} MACs")

    def _refuse(self, profile, received):
        raise ValueError(
            f"Expected a profile of '{self.name}' as it is now, with the "
            f"exits {', '.join(self.exit_names)}. Received: a profile of "
            f"{profile.name!r} with {received}. Measure this model, after "
            "`compile`: `ee.cost.profile(model)`."
        )

    def _check_measured(self, cost):
        if not isinstance(cost, MeasuredCost):
            raise TypeError(
                "Expected `cost` to be 'macs', 'eenets', a DeviceProfile or "
                f"a MeasuredCost. Received: {cost!r} (of type "
                f"{type(cost).__name__}). Measure with "
                "`ee.cost.profile(model)`."
            )
        if len(cost.exits) != len(self.exit_names):
            raise ValueError(
                f"Expected a cost for each of {', '.join(self.exit_names)}. "
                f"Received: {len(cost.exits)} costs."
            )

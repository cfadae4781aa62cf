"""One optimizer that runs several, each on its own group of variables."""

import dataclasses

import keras
from keras import ops


@dataclasses.dataclass
class _Parts:
    """Keeps variables of the model from becoming the optimizer's own."""

    given: object
    groups: dict
    by_group: dict
    ratios: dict = dataclasses.field(default_factory=dict)


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class CompositeOptimizer(keras.optimizers.Optimizer):
    """Several optimizers as one, each for its own group of variables.

    A group that is off is not touched: neither its variables nor the state of
    its optimizer move by one bit. Masking a loss does not do that, since
    momentum and weight decay move a weight whose gradient is zero. Variables
    in no group stay as they are.

    Args:
        optimizer: One optimizer, copied for each group, or a dict of them by
            the name of a group; the name of several numbered groups
            (`exit_0`, `exit_1`, ...) may be given once, as `exit`.
        name: Name of this optimizer.

    Raises:
        ValueError: If a group gets no optimizer, or an optimizer no group.

    Example:

    ```python
    model.compile(
        {"gates": "adam", "exit": "sgd", "final": "sgd", "backbone": "sgd"},
        objective="jei",
        regime="joint",
    )
    ```
    """

    def __init__(self, optimizer="rmsprop", name="composite"):
        super().__init__(learning_rate=0.0, name=name)
        self._parts = _Parts(_get(optimizer), {}, {})
        self.active = frozenset()
        self.frozen = frozenset()

    def bind(self, groups, rates=None):
        """Says which variables each group has; turns all groups on.

        Args:
            groups: Dict of lists of variables by name; no variable twice.
            rates: Dict of factors of the learning rate by the name of a group,
                for an optimizer that is copied for all groups.
        """
        groups = {name: list(found) for name, found in groups.items()}
        given = self._parts.given
        self.active, self.frozen = frozenset(groups), frozenset()
        # Of a model that is compiled again, the groups are others.
        self.built = False
        self._parts = _Parts(
            given,
            groups,
            {
                name: self._for_group(name, (rates or {}).get(name, 1.0))
                for name in groups
                if groups[name]
            },
        )
        if isinstance(given, dict):
            names = {_family(name) for name in groups} | set(groups)
            unknown = sorted(set(given) - names)
            if unknown:
                raise ValueError(
                    "Expected one optimizer for each group of variables, "
                    f"{', '.join(groups)}. Received: one for {unknown}."
                )

    def _for_group(self, name, rate):
        found = self._parts.given
        if isinstance(found, dict):
            found = found.get(name, found.get(_family(name)))
        if found is None:
            raise ValueError(
                f"Expected an optimizer for the variables of {name!r}. "
                f"Received: optimizers for {sorted(self._parts.given)}. Add "
                "one, or pass one optimizer for all groups."
            )
        config = found.get_config()
        if found is self._parts.given and rate != 1.0:
            config["learning_rate"] = _scaled(config["learning_rate"], rate)
        return type(found).from_config(config)

    @property
    def groups(self):
        """Dict of lists of variables by the name of their group."""
        return self._parts.groups

    @property
    def by_group(self):
        """Dict of optimizers by the name of their group."""
        # Not `optimizers`: Keras' callbacks would set the learning rate of
        # each of them, and all to the same.
        return self._parts.by_group

    def is_on(self, name):
        """Whether a group takes part in the next step."""
        return name in self.active and name not in self.frozen

    def build(self, variables):
        if self.built:
            return
        own = {id(variable) for variable in variables}
        for name, optimizer in self.by_group.items():
            optimizer.build([v for v in self.groups[name] if id(v) in own])
        super().build(variables)

    @property
    def variables(self):
        found = list(self._variables)
        for optimizer in self.by_group.values():
            found += optimizer.variables
        return found

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        gradient_of = {
            id(variable): gradient
            for variable, gradient in zip(
                trainable_variables, grads, strict=True
            )
            if gradient is not None
        }
        for name, optimizer in self.by_group.items():
            moving = [v for v in self.groups[name] if id(v) in gradient_of]
            if moving and self.is_on(name):
                optimizer.apply([gradient_of[id(v)] for v in moving], moving)
        self._iterations.assign_add(1)

    @property
    def learning_rate(self):
        """That of the first group. Setting it scales all groups alike."""
        if not self.by_group:
            return self._get_current_learning_rate()
        return next(iter(self.by_group.values())).learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        parts = self._parts
        rates = {
            name: float(ops.convert_to_numpy(optimizer.learning_rate))
            for name, optimizer in parts.by_group.items()
        }
        first = next(iter(rates.values()))
        if first:
            # Kept for later: a rate of 0 says nothing about ratios.
            parts.ratios = {name: rate / first for name, rate in rates.items()}
        if not parts.ratios:
            raise ValueError(
                "Expected a learning rate above 0 in the first group, "
                f"{next(iter(rates))!r}, by which the others are scaled. "
                f"Received: {rates}. Set `optimizer.by_group[name]."
                "learning_rate` of each group instead."
            )
        for name, optimizer in parts.by_group.items():
            optimizer.learning_rate = float(value) * parts.ratios[name]

    def finalize_variable_values(self, var_list):
        for name, optimizer in self.by_group.items():
            # Averages of a group that was never on are all zero.
            if int(ops.convert_to_numpy(optimizer.iterations)):
                optimizer.finalize_variable_values(self.groups[name])

    def get_config(self):
        given = self._parts.given
        if isinstance(given, dict):
            given = {
                name: keras.optimizers.serialize(optimizer)
                for name, optimizer in given.items()
            }
        else:
            given = keras.optimizers.serialize(given)
        return {"name": self.name, "optimizer": given}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def composite(optimizer):
    """The composite optimizer inside an optimizer, or `None`."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return inner if isinstance(inner, CompositeOptimizer) else None


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class ScaledRate(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule, times a factor.

    Args:
        schedule: A `LearningRateSchedule`.
        factor: A number.
    """

    def __init__(self, schedule, factor):
        super().__init__()
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step):
        return self.factor * self.schedule(step)

    def get_config(self):
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.optimizers.schedules.deserialize(schedule)
        return cls(schedule, config["factor"])


def _scaled(rate, factor):
    """A learning rate as a config holds it, times a factor."""
    if not isinstance(rate, dict):
        return rate * factor
    schedule = keras.optimizers.schedules.deserialize(rate)
    return keras.optimizers.schedules.serialize(ScaledRate(schedule, factor))


def _get(optimizer):
    if isinstance(optimizer, dict) and "class_name" not in optimizer:
        return {name: _get(found) for name, found in optimizer.items()}
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer
    return keras.optimizers.get(optimizer)


def _family(name):
    stem, _, number = name.rpartition("_")
    return stem if number.isdigit() else name

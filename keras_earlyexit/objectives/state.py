"""Numbers that change while an objective trains."""

import keras
from keras import ops


class State(keras.metrics.Metric):
    """Variables that travel with the training step, by name.

    Why a metric: its variables belong to the compiled step on every backend,
    without becoming weights of the model.

    Args:
        name: Name of the state.
        **values: First value of each variable, numbers or arrays.
    """

    def __init__(self, name, **values):
        super().__init__(name=name, dtype="float32")
        for key, value in values.items():
            setattr(self, key, self._variable(key, value))

    def _variable(self, key, value):
        value = ops.convert_to_tensor(value)
        return self.add_variable(
            shape=tuple(value.shape),
            initializer=lambda shape, dtype: ops.cast(value, dtype),
            dtype=keras.backend.standardize_dtype(value.dtype),
            name=key,
        )

    def update_state(self):
        """The objective and its callback change the variables."""

    def reset_state(self):
        """They outlive an epoch."""

    def result(self):
        return {}

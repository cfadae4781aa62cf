"""Samples weighted at every exit by a network that learns to do so."""

import keras
from keras import layers, ops

from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.l2w_meta import MetaLearning
from keras_earlyexit.objectives.state import State


@register
class L2W(Objective):
    """sum_i mean(w_i CE_i), with weights that a small network learns.

    w = 1 + epsilon (w~ - mean w~), where w~ = tanh(B relu(A l + a) + b) is
    computed from the E + 1 losses l of a sample, and its mean is taken over
    batch and exits. No gradient flows through w. All weights are 1 until the
    network has learned something.

    It learns by looking ahead. Every `meta_every` batches two batches are
    drawn from the training data. On one of them a step of gradient descent on
    the loss above is taken for trial. The other is judged by the network that
    this leads to: the samples are shared out among the exits as when they
    leave, the surest first, and L is the sum over exits of the mean loss of
    those that leave there. The weight network follows the gradient of L with

        dL / dw_ij = -rate / n (grad L . grad l_ij)

    for loss l_ij of sample i of n at exit j, by central differences of l along
    grad L. Then everything is put back as it was. What it has learned lasts as
    long as the model is compiled; it is not saved.

    Args:
        epsilon: How far weights may go from 1, half of the largest distance.
        meta_every: Number of batches between two steps of the weight network.
        share_ratio: p; exit k, counted from 1, gets a share p^k of the samples
            (over the sum of all).
        hidden_units: Units of the hidden layer.
        meta_learning_rate: Learning rate of the weight network, for Adam.
        meta_samples: Samples drawn from arrays for one of its steps, half of
            them for each batch. A dataset's own batches are cut in two.
        **options: As in `Objective`.

    Raises:
        ValueError: If an option is out of range; in `compile` for a model that
            gives no probabilities; in `fit` for a generator, which cannot be
            drawn from without taking samples away from training.

    Example:

    ```python
    objective = ee.objectives.get("l2w", meta_every=20)
    model.compile(keras.optimizers.SGD(0.1), objective)
    model.fit(x, y, epochs=10)
    ```

    Reference:
        Han et al., Learning to Weight Samples for Dynamic Early-exiting
        Networks, ECCV 2022, arXiv 2209.08310.
    """

    name = "l2w"
    counts_cost = False
    part_names = ("prediction_loss",)

    def __init__(
        self,
        cost_weight=1.0,
        epsilon=0.3,
        meta_every=100,
        share_ratio=0.75,
        hidden_units=500,
        meta_learning_rate=1e-4,
        meta_samples=256,
        **options,
    ):
        super().__init__(cost_weight, **options)
        _check(epsilon=(epsilon, 0.0, 1.0), share_ratio=(share_ratio, 1e-6))
        _check(meta_every=(meta_every, 1), hidden_units=(hidden_units, 1))
        _check(meta_learning_rate=(meta_learning_rate, 0.0))
        _check(meta_samples=(meta_samples, 2))
        self.epsilon = epsilon
        self.meta_every = meta_every
        self.share_ratio = share_ratio
        self.hidden_units = hidden_units
        self.meta_learning_rate = meta_learning_rate
        self.meta_samples = meta_samples
        self.network = None
        self.state = None

    @property
    def states(self):
        return [] if self.state is None else [self.state]

    def attach(self, model):
        if model.head.task == "regression":
            raise ValueError(
                "Expected a classifier for objective 'l2w', which shares "
                "samples out by their largest probability. Received: a model "
                f"that answers with {model.head.units} values."
            )
        exits = len(model.exit_names)
        self.network = keras.Sequential(
            [
                keras.Input((exits,), dtype="float32"),
                layers.Dense(
                    self.hidden_units, activation="relu", dtype="float32"
                ),
                # Weights of 1 until it has learned better.
                layers.Dense(
                    exits,
                    activation="tanh",
                    kernel_initializer="zeros",
                    dtype="float32",
                ),
            ],
            name="l2w_weights",
        )
        # Its gradient is that of L: the slopes dL/dw are given, as `y_true`.
        self.network.compile(
            keras.optimizers.Adam(self.meta_learning_rate),
            loss=lambda slopes, raw: ops.sum(slopes * self._spread(raw)),
            auto_scale_loss=False,
        )
        names = ("hidden_kernel", "hidden_bias", "kernel", "bias")
        values = zip(names, self.network.get_weights(), strict=True)
        # The training step reads these: on JAX it knows no other variables
        # than those of its own model and metrics.
        self.state = State("l2w", **dict(values))

    def callbacks(self, model):
        return [MetaLearning(self, model)]

    def weights(self, losses):
        """The weights w.

        Args:
            losses: Tensor (batch, E + 1), the losses of all exits.

        Returns:
            Tensor (batch, E + 1), whose mean is 1.
        """
        losses = ops.stop_gradient(ops.cast(losses, "float32"))
        if self.state is None:
            return ops.ones_like(losses)
        values = [ops.convert_to_tensor(v) for v in self.state.variables]
        raw, _ = self.network.stateless_call(values, [], losses)
        return self._spread(raw)

    def learn(self, losses, slopes):
        """One step of the weight network.

        Args:
            losses: Array (n, E + 1), the losses of all exits.
            slopes: Array (n, E + 1), the derivatives dL/dw.
        """
        self.network.train_on_batch(losses, slopes)
        for variable, value in zip(
            self.state.variables, self.network.get_weights(), strict=True
        ):
            variable.assign(value)

    def _spread(self, raw):
        return 1.0 + self.epsilon * (raw - ops.mean(raw))

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = ops.stack(self.losses(y, predictions), axis=-1)
        weights = ops.stop_gradient(self.weights(losses))
        weighted = ops.cast(weights, losses.dtype) * losses
        return {"prediction_loss": mean(ops.sum(weighted, axis=-1), weight)}

    def get_config(self):
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "meta_every": self.meta_every,
            "share_ratio": self.share_ratio,
            "hidden_units": self.hidden_units,
            "meta_learning_rate": self.meta_learning_rate,
            "meta_samples": self.meta_samples,
        }


def _check(**ranges):
    """Refuses options outside of [least, most], given as (value, *range)."""
    for name, (value, least, *most) in ranges.items():
        if not least <= value <= (most or [float("inf")])[0]:
            upper = f" and at most {most[0]}" if most else ""
            raise ValueError(
                f"Expected `{name}` to be at least {least}{upper}. Received: "
                f"{name}={value!r} (of type {type(value).__name__})."
            )

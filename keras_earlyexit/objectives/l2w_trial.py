"""A training step taken for trial: what `l2w` learns its weights from."""

import keras
import numpy as np
from keras import ops

from keras_earlyexit import policies

# How far to both sides of the network's weights its losses are looked at: the
# length of the step in all weights together.
_DISTANCE = 0.01


class Trial(keras.Model):
    """A model that looks where a step would lead to, and goes back.

    Args:
        model: An `EarlyExitModel` that is compiled with objective `l2w`.
    """

    def __init__(self, model):
        super().__init__(name="l2w_trial")
        self.net = model.net
        self.training_network = model.training_network
        self.head = model.head
        self.exit_names = model.exit_names
        self.objective = model.objective
        self.built = True
        self.compile(
            _Gradients(), run_eagerly=model.run_eagerly, auto_scale_loss=False
        )
        self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=None):
        # Looks at losses as they are in training, batch statistics and all.
        outputs = self.training_network(inputs, training=True)
        return [outputs[name] for name in self.exit_names]

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        weights = ops.convert_to_tensor(sample_weight)
        return ops.sum(weights * self._of_exits(y, y_pred))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {}

    def _of_exits(self, y, predictions):
        predictions = [ops.cast(p, "float32") for p in predictions]
        y = ops.convert_to_tensor(y)
        y = self.objective.terms.labels(y, predictions[-1])
        return ops.stack(self.objective.losses(y, predictions), axis=-1)

    def slopes(self, batch, judges, rate):
        """How the loss after a step changes with the weights of the samples.

        Args:
            batch: Tuple (x, y) of n samples that the step is taken on.
            judges: Tuple (x, y) that the network is judged by afterwards.
            rate: Learning rate of the step.

        Returns:
            Two arrays (n, E + 1): the losses of all exits on `batch`, and
            dL/dw as in `l2w.L2W`.
        """
        here = [_copied(variable) for variable in self.trainable_variables]
        fixed = [
            (variable, _copied(variable))
            for variable in self.net.variables
            if not variable.trainable
        ]

        def go(distance=0.0, direction=here):
            # Batch statistics and seeds go back too: the same dropout always.
            for variable, value in fixed:
                variable.assign(value)
            for variable, value, way in zip(
                self.trainable_variables, here, direction, strict=True
            ):
                variable.assign(value + distance * way if distance else value)

        try:
            losses = self._losses_on(*batch)
            weights = ops.convert_to_numpy(self.objective.weights(losses))
            go()
            step = self._gradient(*batch, weights / len(losses))
            go(-rate, step)
            counts = self._counts(judges[0])
            go(-rate, step)
            way = self._gradient(*judges, counts)
            length = np.sqrt(sum(np.sum(np.square(part)) for part in way))
            distance = _DISTANCE / max(length, 1e-12)
            go(distance, way)
            more = self._losses_on(*batch)
            go(-distance, way)
            less = self._losses_on(*batch)
        finally:
            go()
        along = (more - less) / (2.0 * distance)
        return losses, -rate / len(losses) * along

    def _losses_on(self, x, y):
        return ops.convert_to_numpy(self._of_exits(y, self.predict_on_batch(x)))

    def _gradient(self, x, y, weights):
        """The gradient of the weighted sum of losses, one array a variable."""
        self.train_on_batch(x, y, sample_weight=weights.astype("float32"))
        return [_copied(gradient) for gradient in self.optimizer.gradients]

    def _counts(self, x):
        """What each loss counts in L, (n, E + 1): 1 / n_j at the exit taken."""
        policy = policies.get("max_probability")
        scores = []
        for i, prediction in enumerate(self.predict_on_batch(x)[:-1]):
            prediction = ops.convert_to_tensor(prediction)
            score, _ = policies.score_of(
                policy, self.head, prediction, None, None, i
            )
            scores.append(ops.convert_to_numpy(score))
        taken = share_out(np.stack(scores, axis=-1), self.objective.share_ratio)
        taken = np.eye(len(self.exit_names))[taken]
        return taken / np.maximum(taken.sum(axis=0), 1.0)


class _Gradients(keras.optimizers.Optimizer):
    """Keeps the gradients of a step in place of taking it."""

    def __init__(self):
        super().__init__(learning_rate=0.0)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.gradients = self.add_optimizer_variables(variables, "gradient")

    def apply(self, grads, trainable_variables=None):
        for kept, gradient in zip(self.gradients, grads, strict=True):
            if gradient is None:  # The loss does not depend on it.
                gradient = ops.zeros(kept.shape)
            kept.assign(ops.cast(ops.convert_to_tensor(gradient), kept.dtype))
        self._iterations.assign_add(1)


def share_out(scores, ratio):
    """The exits at which samples leave, the surest first.

    Args:
        scores: Array (n, E).
        ratio: p; exit k, counted from 1, gets floor(n p^k / sum_j p^j) of the
            samples that are left, `final` the rest.

    Returns:
        Integer array (n,) of the exits' indexes.
    """
    n, early = scores.shape
    shares = ratio ** np.arange(1.0, early + 2.0)
    # Rounding must not take a sample away from a share that is whole.
    counts = np.floor(n * shares / shares.sum() + 1e-9).astype(int)
    taken = np.full(n, early)
    for i in range(early):
        surest = np.argsort(-scores[:, i], kind="stable")
        taken[surest[taken[surest] == early][: counts[i]]] = i
    return taken


def _copied(variable):
    # What a backend gives out may be a view of a buffer that it uses again.
    return ops.convert_to_numpy(variable).copy()

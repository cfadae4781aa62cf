"""When the weight network of `l2w` learns, and from which samples."""

import keras
import numpy as np
from keras import ops

from keras_earlyexit.objectives.l2w_trial import Trial


class MetaLearning(keras.callbacks.Callback):
    """Lets the weight network learn, every so many batches.

    Args:
        objective: The `l2w.L2W` that is trained.
        model: The `EarlyExitModel` that is trained.
    """

    def __init__(self, objective, model):
        super().__init__()
        self.objective = objective
        self.set_model(model)
        self._pairs = None
        self._trial = None
        self._waited = 0
        self._last = -1

    def draw_from(self, x, y, validation_split=0.0):
        """Says where to draw samples from.

        Args:
            x: The training data as `fit` got it.
            y: Its labels, or `None` for a dataset.
            validation_split: The share of arrays, at their end, that is kept
                for validation.

        Raises:
            ValueError: If there are too few samples, or if batches come only
                once.
        """
        generator = np.random.default_rng(np.random.randint(2**31 - 1))
        if y is not None:
            rows = int(len(y) * (1.0 - validation_split))
            samples = min(self.objective.meta_samples, rows)
            _check_pair(samples, "training samples")
            self._pairs = _pairs_of_rows(x, y, rows, samples // 2, generator)
        else:
            _check_again(x)
            self._pairs = _pairs_of_batches(x, generator)

    def on_epoch_begin(self, epoch, logs=None):
        self._last = -1

    def on_train_batch_end(self, batch, logs=None):
        self._waited += batch - self._last
        self._last = batch
        if self._waited >= self.objective.meta_every:
            self._waited = 0
            if not self.model.regime.final_only:
                self._learn()

    def _learn(self):
        model = self.model
        if hasattr(model, "jax_state_sync"):
            # Inside an epoch the present weights are not in the model.
            model.jax_state_sync()
        if self._trial is None:
            self._trial = Trial(model)
        rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
        batch, judges = next(self._pairs)
        self.objective.learn(*self._trial.slopes(batch, judges, rate))


def _pairs_of_rows(x, y, rows, half, generator):
    data = keras.tree.map_structure(np.asarray, (x, y))
    while True:
        drawn = generator.choice(rows, 2 * half, replace=False)
        yield tuple(_part(data, part) for part in (drawn[:half], drawn[half:]))


def _pairs_of_batches(batches, generator):
    """Halves of batches, since a dataset's next batch may be much like it."""
    while True:
        for x, y, *_ in _in_turn(batches, generator):
            half = len(y) // 2
            _check_pair(len(y), "samples in a batch")
            parts = slice(half), slice(half, 2 * half)
            yield tuple(_part((x, y), part) for part in parts)


def _in_turn(batches, generator):
    if isinstance(batches, keras.utils.PyDataset):
        return (batches[i] for i in generator.permutation(batches.num_batches))
    return batches


def _part(data, part):
    return keras.tree.map_structure(lambda array: array[part], data)


def _check_pair(samples, what):
    if samples < 2:
        raise ValueError(
            f"Expected at least 2 {what} for objective 'l2w', which learns "
            f"from pairs of batches. Received: {samples}."
        )


def _check_again(batches):
    """Refuses what would take away from training what is drawn from it."""
    is_dataset = isinstance(batches, keras.utils.PyDataset)
    if not is_dataset and (
        hasattr(batches, "__next__") or not hasattr(batches, "__iter__")
    ):
        raise ValueError(
            "Objective 'l2w' draws batches of its own from the training data. "
            "Expected arrays, a tf.data.Dataset, a PyDataset or another "
            f"iterable. Received: a {type(batches).__name__}, whose batches "
            "come only once. Put its samples into arrays or a dataset."
        )

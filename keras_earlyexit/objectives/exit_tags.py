"""Exit tags: which exit each training sample is trained at (`eenet_v4`).

A sample's tag is found by its index. Arrays get their index from `fit`; a
`tf.data.Dataset` brings it along.
"""

import keras
import numpy as np
from keras import ops

from keras_earlyexit.objectives.state import State

LABEL, INDEX = "label", "index"


class ExitTags(keras.callbacks.Callback):
    """Draws the tags at random, then refreshes them after every epoch.

    Args:
        objective: The objective whose `best_exits` gives the tags.
        model: The `EarlyExitModel` that is trained.
    """

    def __init__(self, objective, model):
        super().__init__()
        self.objective = objective
        self.set_model(model)
        self.table = None
        self._batches = None

    def prepare(self, x, y):
        """Adds each sample's index to the labels.

        Args:
            x: The training data as `fit` got it.
            y: Its labels, or `None` for a dataset.

        Returns:
            `(x, y)` for Keras, with labels `{"label": ..., "index": ...}`.

        Raises:
            ValueError: If samples cannot be told apart by an index.
        """
        if y is not None:
            count = len(y)
            indexed = {LABEL: np.asarray(y), INDEX: np.arange(count)}
            self._batches = lambda: _array_batches(x, indexed)
        else:
            x = _indexed_dataset(x)
            count = _count(x)
            indexed = None
            self._batches = lambda: _dataset_batches(x)
        generator = np.random.default_rng(_seed())
        tags = generator.integers(0, len(self.model.exit_names), count)
        self.table = State("exit_tags", tags=tags.astype("int32"))
        return x, indexed

    def on_train_begin(self, logs=None):
        if int(self.model.optimizer.iterations.numpy()) > 0:
            self._refresh()

    def on_epoch_end(self, epoch, logs=None):
        self._refresh()

    def _refresh(self):
        model = self.model
        tags = ops.convert_to_numpy(self.table.tags).copy()
        for x, y in self._batches():
            outputs = model.net.predict_on_batch(x)
            predictions = [outputs[name] for name in model.exit_names]
            best = self.objective.best_exits(
                y[LABEL], predictions, model.relative_costs
            )
            tags[np.asarray(y[INDEX])] = ops.convert_to_numpy(best)
        self.table.tags.assign(tags)


def _seed():
    return int(np.random.randint(2**31 - 1))


def _array_batches(x, y, size=256):
    for start in range(0, len(y[INDEX]), size):
        part = slice(start, start + size)
        yield (
            keras.tree.map_structure(lambda array, p=part: array[p], x),
            {key: array[part] for key, array in y.items()},
        )


def _dataset_batches(dataset):
    for element in dataset:
        x, y = element[:2]
        yield x, keras.tree.map_structure(np.asarray, y)


def _indexed_dataset(dataset):
    """A dataset of (x, {"label": ..., "index": ...}), from one of two forms."""
    spec = getattr(dataset, "element_spec", None)
    if isinstance(spec, tuple) and len(spec) >= 2:
        if isinstance(spec[1], dict) and set(spec[1]) == {LABEL, INDEX}:
            return dataset
        if isinstance(spec[1], tuple) and _is_index(spec[0]):

            def bring(index, sample):
                x, y, *rest = sample
                return (x, {LABEL: y, INDEX: index}, *rest)

            return dataset.map(bring)
    raise ValueError(
        "Objective 'eenet_v4' remembers an exit tag for every training "
        "sample and needs to know which sample is which. Expected arrays, or "
        "a tf.data.Dataset that is enumerated before it is shuffled and "
        "batched (`dataset.enumerate().shuffle(...).batch(...)`), or one that "
        "yields (x, {'label': y, 'index': i}). Received: "
        f"{type(dataset).__name__} with elements {spec}."
    )


def _is_index(spec):
    dtype = getattr(spec, "dtype", None)
    return dtype is not None and dtype.is_integer and len(spec.shape) <= 1


def _count(dataset):
    """One more than the largest index of a dataset."""
    if int(dataset.cardinality()) == -1:
        raise ValueError(
            "Objective 'eenet_v4' needs a dataset that ends, to remember a "
            "tag for each of its samples. Received: an infinite dataset. "
            "Remove `repeat()`."
        )
    largest = -1
    for element in dataset.map(lambda x, y, *rest: y[INDEX]):
        largest = max(largest, int(np.max(element)))
    return largest + 1

"""The edge's data as batches that come again in the same order.

After a crash training goes on in the middle of a pass. So what a batch holds
depends on the seed, the pass and its place in it, and on nothing else.
"""

import math

import numpy as np

_SHUFFLE, _AUGMENT = 0, 1


class Batches:
    """Arrays as shuffled batches.

    Args:
        x: Array (samples, ...).
        y: Array of labels (samples, ...).
        sample_weight: Array (samples,) or `None`.
        batch_size: Samples in a batch; the last one may be smaller.
        shuffle: Whether each pass has an order of its own.
        augment: A function of a batch of `x` and a NumPy `Generator` that
            returns another one, or `None`.
        seed: Integer that orders and augmentations follow from.

    Raises:
        ValueError: If there are no samples, or not equally many of each.
    """

    def __init__(
        self,
        x,
        y,
        sample_weight=None,
        batch_size=32,
        shuffle=True,
        augment=None,
        seed=0,
    ):
        self._arrays = [np.asarray(x), np.asarray(y)]
        if sample_weight is not None:
            self._arrays.append(np.asarray(sample_weight, "float32"))
        counts = [len(array) for array in self._arrays]
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(
                "Expected samples and equally many labels and weights. "
                f"Received: {counts} of them. Pass arrays of one length."
            )
        self._batch_size, self._shuffle = batch_size, shuffle
        self._augment, self._seed = augment, seed

    def __len__(self):
        return math.ceil(len(self._arrays[0]) / self._batch_size)

    def of_pass(self, number, start=0):
        """The batches of one pass over the data.

        Args:
            number: Which pass, from 0 on.
            start: How many batches to leave out.

        Yields:
            `(x, y, sample_weight)`, the last one `None` without weights.
        """
        count = len(self._arrays[0])
        order = np.arange(count)
        if self._shuffle:
            order = _rng(self._seed, number, _SHUFFLE).permutation(count)
        for index in range(start, len(self)):
            first = index * self._batch_size
            rows = order[first : first + self._batch_size]
            x, y, *weight = (array[rows] for array in self._arrays)
            yield (
                augmented(self._augment, x, self._seed, number, index),
                y,
                weight[0] if weight else None,
            )


class Iterated:
    """A dataset that is iterated anew for each pass, such as `tf.data`.

    It has to give the same batches in each pass with the same number, so it
    must not shuffle with a random seed.

    Args:
        dataset: An iterable of `(x, y)` or `(x, y, sample_weight)`, or a
            function of the number of the pass that returns one.
        augment: As in `Batches`.
        seed: As in `Batches`.
    """

    def __init__(self, dataset, augment=None, seed=0):
        self._dataset = dataset
        self._augment, self._seed = augment, seed
        self._length = None

    def __len__(self):
        """Batches in a pass; 0 while that is not known."""
        if self._length is None and hasattr(self._dataset, "__len__"):
            return len(self._dataset)
        return self._length or 0

    def of_pass(self, number, start=0):
        """As `Batches.of_pass`."""
        dataset = self._dataset
        if callable(dataset):
            dataset = dataset(number)
        index = -1
        for index, batch in enumerate(dataset):
            if index >= start:
                x, y, *weight = (np.asarray(part) for part in batch)
                yield (
                    augmented(self._augment, x, self._seed, number, index),
                    y,
                    weight[0] if weight else None,
                )
        self._length = index + 1


def augmented(augment, x, seed, number, index):
    """A batch, changed in the way that belongs to its place."""
    if augment is None:
        return x
    return augment(x, _rng(seed, number, _AUGMENT, index))


def labels_of(y, head):
    """Labels in the form that crosses the wire.

    Args:
        y: Array of labels of a batch.
        head: The segment's `tasks.Head`.

    Returns:
        Array (batch, positions...) of int32 for classes, else float32 (batch,
        positions..., units).

    Raises:
        ValueError: If one-hot labels are not exactly that.
    """
    y, rank = np.asarray(y), 1 + len(head.positions)
    if head.task != "classification":
        y = y.astype("float32")
        return y[..., None] if y.ndim == rank else y
    if y.ndim > rank and y.shape[-1] == 1:
        y = y[..., 0]
    if y.ndim > rank:
        if not np.array_equal(np.sort(y, axis=-1)[..., :-1], 0 * y[..., :-1]):
            raise ValueError(
                "Expected class numbers or one-hot labels. Received: labels "
                f"of shape {y.shape} that mix classes. Soft labels cannot "
                "cross to the cloud worker."
            )
        y = y.argmax(axis=-1)
    return y.astype("int32")


def _rng(*key):
    return np.random.default_rng(key)

"""Recognises samples that a model was trained on.

Why hashes of the inputs: thresholds that are chosen on training samples meet
scores that are too good, and nothing else shows it. Eight bytes per sample are
enough to notice, and travel with the model.

Why multiply-shift: with random multipliers two different rows of equal length
share a fingerprint with probability 2^-62 at most, whatever they hold, and a
row costs two passes of integer multiply-adds, an order of magnitude less than
a cryptographic hash. It is no protection against somebody who wants a
collision.
"""

import functools
import hashlib

import numpy as np

from keras_earlyexit.calibration import _checks

# Never change it: fingerprints are stored with models.
_SEED = 20240501
# Words that are worked on at a time: they fit the cache.
_BLOCK = 2**17


class Fingerprints:
    """The samples that a model was trained on, as 64-bit hashes.

    Of more than `capacity` different samples those with the smallest hashes
    are kept: a uniform sample of them, by which `overlap` is estimated.

    Samples are compared bit by bit, in the form that the network gets them:
    an image that augmentation has changed is another one.

    Args:
        hashes: Array (m,) of uint64, as the attribute of this name; none by
            default.
        capacity: How many hashes to keep at most, 8 bytes each.

    Raises:
        ValueError: If `hashes` is no such array, or `capacity` is below 1.

    Example:

    ```python
    trained_on = Fingerprints()
    trained_on.add(x_train)
    trained_on.overlap(x_calibration)  # 0.0, or something is wrong
    ```
    """

    def __init__(self, hashes=None, capacity=1_000_000):
        self.capacity = _checks.count(
            "capacity", capacity, "It is how many samples are remembered."
        )
        self._hashes = np.zeros(0, "uint64")
        self._pending, self._num_pending = [], 0
        if hashes is not None:
            self._keep(_check_hashes(hashes))

    def __len__(self):
        return len(self.hashes)

    def __repr__(self):
        return f"Fingerprints({len(self)} hashes, capacity={self.capacity})"

    @property
    def hashes(self):
        """What is kept: uint64 array (m,), rising, m <= `capacity`."""
        self._merge()
        return self._hashes

    def add(self, batch):
        """Remembers the samples of a batch.

        Args:
            batch: The network's inputs: an array or tensor (n, ...) or a
                structure of them, in the types that the network takes.
        """
        self._keep(fingerprints_of(batch))

    def add_hashes(self, hashes):
        """As `add`, for what `fingerprints_of` returned: array (n,)."""
        self._keep(_check_hashes(hashes))

    def overlap(self, batch):
        """Share of a batch's samples that were added before, in [0, 1].

        Exact as long as no more than `capacity` samples were added. Beyond
        it only samples with small hashes can be looked up; if there is none
        of these the answer is 0.

        Args:
            batch: As in `add`.
        """
        return self.overlap_of(fingerprints_of(batch))

    def overlap_of(self, hashes):
        """As `overlap`, for what `fingerprints_of` returned: array (n,)."""
        hashes, known = _check_hashes(hashes), self.hashes
        if len(known) == self.capacity:
            hashes = hashes[hashes <= known[-1]]
        if not len(hashes) or not len(known):
            return 0.0
        place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return float(np.mean(known[place] == hashes))

    def get_config(self):
        """What `Fingerprints` needs besides `hashes` to be made again."""
        return {"capacity": self.capacity}

    def _keep(self, hashes):
        if len(self._hashes) == self.capacity:
            hashes = hashes[hashes < self._hashes[-1]]
        self._pending.append(hashes)
        self._num_pending += len(hashes)
        # Batches are small, and each merge sorts everything.
        if self._num_pending > max(self.capacity // 4, 4096):
            self._merge()

    def _merge(self):
        if self._pending:
            found = np.unique(np.concatenate([self._hashes, *self._pending]))
            self._hashes = found[: self.capacity]
            self._pending, self._num_pending = [], 0


def fingerprints_of(batch):
    """A 64-bit hash of every sample of a batch.

    Two different samples of a batch have the same hash with probability 2^-62.
    Zeros at the end of a sample do not count, so that a sequence is the same
    whatever it is padded to.

    Args:
        batch: An array or tensor (n, ...), or a structure of them (several
            inputs), numbers or strings, in the types that the network takes.

    Returns:
        A uint64 array (n,), the same on every machine of the same byte order.

    Raises:
        ValueError: If there is no array, or if their lengths differ.
    """
    import keras

    arrays = [
        np.asarray(keras.ops.convert_to_numpy(part))
        if keras.ops.is_tensor(part)
        else np.asarray(part)
        for part in keras.tree.flatten(batch)
    ]
    if not arrays or any(
        not array.ndim or len(array) != len(arrays[0]) for array in arrays
    ):
        raise ValueError(
            "Expected an array (n, ...) of samples, or several of the same "
            f"length. Received shapes {[array.shape for array in arrays]} "
            f"({type(batch).__name__})."
        )
    halves = np.zeros((2, len(arrays[0])), "uint64")
    start = 0
    for array in arrays:
        words = _words(array)
        end = start + words.shape[1]
        # In steps of powers of two: a new length rarely makes new numbers.
        factors = _multipliers(max(end - 1, 1).bit_length())[:, start:end]
        step = max(1, _BLOCK // max(words.shape[1], 1))
        for row in range(0, len(words), step):
            block = words[row : row + step].astype("uint64")
            for half, numbers in zip(halves, factors, strict=True):
                half[row : row + step] += np.einsum("ij,j->i", block, numbers)
        start = end
    # The upper halves of the sums are the ones that are uniform.
    high, low = halves >> np.uint64(32)
    return _scramble((high << np.uint64(32)) | low)


def _words(array):
    """Each row's bytes as 32-bit words (n, words), with zeros at the end."""
    if array.dtype.kind in "OSU":
        array = _digests(array)
    width = int(np.prod(array.shape[1:]))
    rows = np.ascontiguousarray(array).reshape(len(array), width).view("uint8")
    rest = -rows.shape[1] % 4
    if rest:
        rows = np.pad(rows, ((0, 0), (0, rest)))
    return rows.view("uint32")


def _digests(array):
    """A hash of every string: uint64, of the shape of the array."""
    found = []
    for item in array.reshape(-1):
        text = item if isinstance(item, bytes) else str(item).encode()
        found.append(hashlib.blake2b(text, digest_size=8).digest())
    return np.frombuffer(b"".join(found), "uint64").reshape(array.shape)


@functools.lru_cache(maxsize=4)
def _multipliers(log_size):
    """Random odd and even numbers for the two halves: uint64 (2, 2^k)."""
    # Raw numbers of this generator are the same in every version of NumPy;
    # those for longer rows begin with those for shorter ones.
    size = 2**log_size
    return np.stack(
        [np.random.PCG64(_SEED + half).random_raw(size) for half in range(2)]
    )


def _scramble(hashes):
    """Spreads the bits, one to one, so that small hashes are a fair sample."""
    for shift, factor in (
        (30, 0xBF58476D1CE4E5B9),
        (27, 0x94D049BB133111EB),
    ):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def _check_hashes(hashes):
    array = np.asarray(hashes)
    if array.ndim != 1 or array.dtype != np.uint64:
        raise ValueError(
            "`hashes` must be a uint64 array (n,), from `fingerprints_of`. "
            f"Received shape {array.shape} of dtype {array.dtype} "
            f"({type(hashes).__name__})."
        )
    return array

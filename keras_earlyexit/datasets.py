"""Real data: scikit-learn's digits without a network, TFDS by name.

`load` gives what is stored, as arrays; `pipeline` gives batches that are ready
for training, normalised and augmented as in the EENets papers; `normalize`
does the same to an array. `spec` tells shapes and sizes without reading.
"""

import dataclasses
import math
import numbers
import re

import numpy as np

from keras_earlyexit import _tfds, slices

_DIGITS_SPLITS = {"train": 1000, "calibration": 397, "test": 400}


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Shapes and sizes of a data set, known before it is read.

    Attributes:
        input_shape: Shape of one input, without the batch; `()` for text.
        num_classes: Number of classes.
        split_sizes: Number of examples by split; empty for a data set that is
            not prepared yet.
    """

    input_shape: tuple
    num_classes: int
    split_sizes: dict


@dataclasses.dataclass(frozen=True)
class _Recipe:
    mean: tuple = (0.0,)
    std: tuple = (1.0,)
    maximum: int = 255
    crop_padding: int = 0
    flip: bool = False


# The EENets authors' settings; fashion_mnist and digits are not theirs.
_RECIPES = {
    "cifar10": _Recipe(
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        crop_padding=4,
        flip=True,
    ),
    "digits": _Recipe(maximum=16),
    "fashion_mnist": _Recipe((0.2860,), (0.3530,)),
    "mnist": _Recipe((0.1307,), (0.3081,)),
    "svhn_cropped": _Recipe((0.5,) * 3, (0.5,) * 3),
    "tiny_imagenet": _Recipe((0.5,) * 3, (0.5,) * 3, flip=True),
}


def load(name, split, data_dir=None, *, download=True):
    """Loads one split of a data set into memory, as it is stored.

    `digits` are the 1797 images of handwritten digits that come with
    scikit-learn, 8x8 pixels of 0 to 16. They are divided once and for all into
    `train` (1000), `calibration` (397) and `test` (400), stratified by class;
    every class has the same share of each, within one example.

    Any other name goes to TFDS, which downloads and prepares what is not there
    yet. Splits may be sliced, for instance to hold out a calibration split:
    `"train[:90%]"` and `"train[90%:]"` have no example in common. This works
    for `digits` too, sums such as `"train+calibration"` included.

    Examples come in the order of the files. TFDS shuffles them while it
    prepares a data set, and `digits` are shuffled; for files from elsewhere,
    check that a slice is as random as a calibration split must be.

    Args:
        name: `"digits"`, or a name that TFDS knows, such as `"mnist"`,
            `"cifar10"`, `"svhn_cropped"` or `"glue/sst2"`.
        split: Name of a split, with an optional slice.
        data_dir: Folder of the prepared data sets. `None` takes the
            environment variable `TFDS_DATA_DIR`, else TFDS' own default.
        download: Whether TFDS may download what is not there.

    Returns:
        `(x, y)`: images as they are stored, uint8
        `(num_examples, height, width, channels)`, or an object array of `str`
        `(num_examples,)`; and labels, int64 `(num_examples,)`. A test split
        without labels has -1 where TFDS stores it so.

    Raises:
        ValueError: If the name or the split is not known, or the data set is
            not one input of fixed size with one integer label.
        FileNotFoundError: If the data set is neither there nor can be had.
        ImportError: If the packages of the extra `data` are missing.

    Example:

    >>> from keras_earlyexit import datasets
    >>> x, y = datasets.load("digits", "train")
    >>> x.shape, x.dtype, y.shape
    ((1000, 8, 8, 1), dtype('uint8'), (1000,))
    """
    for argument, value in (("name", name), ("split", split)):
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"`{argument}` must be a string that is not empty. "
                f"Received {argument}={value!r} ({type(value).__name__}). "
                "Use for instance load('digits', 'train')."
            )
    if name == "digits":
        return _load_digits(split)
    return _tfds.read(_tfds.find_builder(name, data_dir, download), name, split)


def spec(name, data_dir=None):
    """Tells the shapes and sizes of a data set without reading or download.

    Args:
        name: As in `load`.
        data_dir: As in `load`.

    Returns:
        A `DatasetSpec`.

    Raises:
        ValueError: If the name is not known, or the data set is not one input
            with one integer label.
        ImportError: If the packages of the extra `data` are missing.

    Example:

    >>> from keras_earlyexit import datasets
    >>> datasets.spec("digits").input_shape
    (8, 8, 1)
    """
    if name == "digits":
        return DatasetSpec((8, 8, 1), 10, dict(_DIGITS_SPLITS))
    builder = _tfds.find_builder(name, data_dir, download=None)
    input_key, label_key = _tfds.input_and_label(builder.info, name)
    features = builder.info.features
    return DatasetSpec(
        tuple(features[input_key].shape),
        features[label_key].num_classes,
        {key: split.num_examples for key, split in builder.info.splits.items()},
    )


def normalize(name, x):
    """Scales stored images as the data set's recipe says.

    `(x / maximum - mean) / std` for each channel, with the EENets authors'
    mean and standard deviation for `mnist`, `cifar10`, `svhn_cropped` and
    names that begin with `tiny_imagenet`. `fashion_mnist` has the usual ones,
    0.2860 and 0.3530, which are not the authors'. `digits` are divided by 16.
    Images of any other data set are scaled to [0, 1].

    Args:
        name: Name of the data set.
        x: Unsigned integer images `(..., height, width, channels)`, as `load`
            gives them.

    Returns:
        A new float32 array of the same shape.

    Raises:
        ValueError: If `x` is not as described, or its channels do not fit.

    Example:

    >>> from keras_earlyexit import datasets
    >>> x, y = datasets.load("digits", "test")
    >>> float(datasets.normalize("digits", x).max())
    1.0

    Reference:

    - [Demir and Akbas, 2024](https://arxiv.org/abs/2409.05336)
    """
    x = np.asarray(x)
    scale, offset = _scale_and_offset(x, name)
    # A line of an image at a time: NumPy is slow over the three channels alone.
    lines = x.reshape(*x.shape[:-2], math.prod(x.shape[-2:]))
    scale, offset = (
        np.broadcast_to(value, x.shape[-2:]).ravel()
        for value in (scale, offset)
    )
    # In place, so that a large data set needs no second float copy.
    scaled = np.multiply(lines, scale, dtype="float32")
    scaled += offset
    return scaled.reshape(x.shape)


def pipeline(
    data,
    split=None,
    batch_size=128,
    *,
    training=False,
    recipe=None,
    seed=0,
    data_dir=None,
):
    """Makes a `tf.data.Dataset` of normalised and augmented batches.

    Images are normalised as `normalize` does. With `training=True` examples
    are shuffled anew in each epoch and augmented as the EENets authors do:
    `cifar10` by a random crop after padding with 4 black pixels on each side
    and a random horizontal flip, `tiny_imagenet*` by the flip, the others not
    at all. The same seed gives the same epochs. Text is passed on unchanged.

    The split is held in memory as it is stored; only batches become floats.

    Args:
        data: Name of a data set as in `load`, or a pair of arrays `(x, y)`.
        split: Split to load; only with a name.
        batch_size: Integer. The last batch may be smaller.
        training: Whether to shuffle and augment.
        recipe: Name of the data set whose normalisation and augmentation to
            use. `None` takes those of `data`. In arrays without a recipe,
            unsigned integers are images and scaled to [0, 1], floats are taken
            to be normalised, and anything else is passed on unchanged.
        seed: Integer, of the shuffling and the augmentation.
        data_dir: As in `load`.

    Returns:
        A `tf.data.Dataset` of `(x, y)`: float32
        `(batch, height, width, channels)`, or strings `(batch,)`, and the
        labels as they are, int64 `(batch,)` from a name.

    Raises:
        ValueError: If the arguments do not fit together, and as `load` does.

    Example:

    >>> from keras_earlyexit import datasets
    >>> batches = datasets.pipeline("digits", "train", 100, training=True)
    >>> [tuple(part.shape) for part in next(iter(batches))]
    [(100, 8, 8, 1), (100,)]

    Reference:

    - [Demir and Akbas, 2024](https://arxiv.org/abs/2409.05336)
    """
    import tensorflow as tf

    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ValueError(
            "`batch_size` must be an integer, at least 1. Received "
            f"batch_size={batch_size!r} ({type(batch_size).__name__}). "
            "Use for instance 128."
        )
    x, y, name = _arrays(data, split, data_dir)
    is_image = x.dtype.kind == "u" or recipe is not None
    name = recipe or name
    if is_image:
        scale, offset = _scale_and_offset(x, name)
    with tf.device("CPU"):
        inputs, labels = tf.constant(x), tf.constant(y)

    def batch(indices, seed_pair):
        x = tf.gather(inputs, indices)
        if is_image and training:
            x = _augment(x, _recipe(name), seed_pair)
        if is_image:
            x = tf.cast(x, "float32") * scale + offset
        elif x.dtype.is_floating:
            x = tf.cast(x, "float32")
        return x, tf.gather(labels, indices)

    # Shuffling numbers instead of examples is complete and takes no memory.
    indices = tf.data.Dataset.range(len(x))
    if training:
        indices = indices.shuffle(max(len(x), 1), seed=seed)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    batches = tf.data.Dataset.zip(indices.batch(batch_size), seeds.batch(2))
    batches = batches.map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def _load_digits(split):
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The data set 'digits' needs scikit-learn, which could not be "
            f"imported ({error}). Install it with "
            "`pip install keras-earlyexit[data]`."
        ) from error

    digits = load_digits()
    # Each class is laid out evenly over the whole order, so that every stretch
    # of it is stratified. RandomState's stream never changes.
    shuffled = np.random.RandomState(0).permutation(len(digits.target))
    classes = digits.target[shuffled]
    position = np.empty(len(classes))
    for label in range(10):
        members = classes == label
        position[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    order = shuffled[np.argsort(position, kind="stable")]
    rows = order[_digits_rows(split)]
    x = digits.images[rows].astype("uint8")[..., np.newaxis]
    return x, digits.target[rows].astype("int64")


def _digits_rows(split):
    starts, start = {}, 0
    for name, size in _DIGITS_SPLITS.items():
        starts[name], start = start, start + size

    ranges = slices.ranges(split, _DIGITS_SPLITS)
    if ranges is None:
        raise _tfds.split_error("digits", split, _DIGITS_SPLITS)
    return [
        row
        for name, first, stop in ranges
        for row in range(starts[name] + first, starts[name] + stop)
    ]


def _arrays(data, split, data_dir):
    if isinstance(data, str) and split is not None:
        return *load(data, split, data_dir), data
    if (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and len(data[0]) == len(data[1])
        and split is None
    ):
        return np.asarray(data[0]), np.asarray(data[1]), None
    received = " ".join(repr(data).split())
    raise ValueError(
        "`data` must be the name of a data set, with a `split`, or a pair "
        "(x, y) of arrays of the same length, without one. "
        f"Received data={received:.40} ({type(data).__name__}), "
        f"split={split!r} ({type(split).__name__}). "
        "Use for instance pipeline('digits', 'train') or pipeline((x, y))."
    )


def _recipe(name):
    # Configurations and versions, as in "name/config:1.0.0", share a recipe.
    family = re.split("[/:]", name or "")[0]
    if family.startswith("tiny_imagenet"):
        family = "tiny_imagenet"
    return _RECIPES.get(family)


def _scale_and_offset(x, name):
    """What stored images are multiplied by and what is added then."""
    if x.dtype.kind != "u" or x.ndim < 3:
        raise ValueError(
            "Images must be unsigned integers (..., height, width, channels), "
            f"as they are stored. Received an array of shape {x.shape} and "
            f"dtype {x.dtype}, to be normalised as name={name!r} "
            f"({type(name).__name__}). Give what `load` returned; images that "
            "are normalised already need no recipe."
        )
    recipe = _recipe(name) or _Recipe(maximum=np.iinfo(x.dtype).max)
    if len(recipe.mean) not in (1, x.shape[-1]):
        raise ValueError(
            f"Images of {name!r} must have {len(recipe.mean)} channels. "
            f"Received an array of shape {x.shape} and dtype {x.dtype}. "
            "Put the channels last, or use another recipe."
        )
    mean = np.asarray(recipe.mean, "float32")
    std = np.asarray(recipe.std, "float32")
    return 1 / (recipe.maximum * std), -mean / std


def _augment(x, recipe, seed_pair):
    """Crops and flips a batch of stored images, each in its own way."""
    import tensorflow as tf

    if recipe is None:
        return x
    uniform = tf.random.stateless_uniform((tf.shape(x)[0], 3), seed_pair)
    if recipe.crop_padding:
        padding = recipe.crop_padding
        _, height, width, _ = x.shape
        x = tf.pad(x, [[0, 0], [padding] * 2, [padding] * 2, [0, 0]])
        corner = tf.cast(uniform[:, :2] * (2 * padding + 1), "int32")
        rows = corner[:, :1] + tf.range(height)
        columns = corner[:, 1:] + tf.range(width)
        x = tf.gather(x, rows, axis=1, batch_dims=1)
        x = tf.gather(x, columns, axis=2, batch_dims=1)
    if recipe.flip:
        is_flipped = uniform[:, 2, None, None, None] < 0.5
        x = tf.where(is_flipped, tf.reverse(x, [2]), x)
    return x

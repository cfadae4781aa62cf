"""Data sets of TFDS, read from their record files into arrays.

Records are decoded a batch at a time, which is two to four times faster than
one example at a time for small images.
"""

import os

import numpy as np

_READ_BATCH_SIZE = 512


def find_builder(name, data_dir, download):
    """Finds the TFDS builder; prepares its data unless `download` is None."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"The data set {name!r} needs tensorflow-datasets, which could "
            f"not be imported ({error}). Install it with "
            "`pip install keras-earlyexit[data]`, or use 'digits'."
        ) from error

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:
        raise ValueError(
            "`name` must be 'digits', a data set that TFDS knows, or one that "
            f"is prepared in {data_dir or 'its default folder'}. "
            f"Received name={name!r} ({type(name).__name__}). Mind the "
            "spelling, or set `data_dir` or the environment variable "
            "TFDS_DATA_DIR to the folder in which the data set is prepared."
        ) from error

    if download is None or builder.is_prepared():
        return builder
    reason, cause = "downloads are not allowed (download=False)", None
    if download:
        try:
            builder.download_and_prepare()
            return builder
        # Preparing runs the code of hundreds of data sets: anything can come.
        except Exception as error:
            reason, cause = f"the download failed ({error!r:.200})", error
    raise FileNotFoundError(
        f"Data set {name!r} must be prepared or be downloaded. Looked for "
        f"{builder.data_path}, which is not there, and {reason}. Where there "
        f"is a network, run `tfds build {name} --data_dir FOLDER`; then set "
        "`data_dir` or the environment variable TFDS_DATA_DIR to FOLDER."
    ) from cause


def input_and_label(info, name):
    """Names of the one input and the one label."""
    import tensorflow_datasets as tfds

    features = info.features
    if info.supervised_keys is not None:
        keys = info.supervised_keys[:2]
    else:
        texts = [
            key
            for key, feature in features.items()
            if isinstance(feature, tfds.features.Text)
        ]
        others = [key for key in features if key != "label"]
        images = [key for key in others if key == "image"]
        groups = (images, texts, others)
        inputs = next((group for group in groups if len(group) == 1), [])
        keys = (*inputs, "label")
    if (
        len(keys) == 2
        and all(isinstance(key, str) and key in features for key in keys)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
        and None not in features[keys[0]].shape
    ):
        return keys
    raise ValueError(
        "A data set must have one input of fixed size and one class label. "
        f"Received name={name!r} ({type(name).__name__}), with {features}. "
        "Read it with tensorflow_datasets itself, and give the arrays to "
        "`pipeline`."
    )


def read(builder, name, split):
    from tqdm import tqdm

    input_key, label_key = input_and_label(builder.info, name)
    feature = builder.info.features[input_key]
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise split_error(name, split, builder.info.splits) from error

    is_text = feature.np_dtype == np.object_
    x = np.empty((num_examples, *feature.shape), feature.np_dtype)
    y = np.empty(num_examples, "int64")
    start = 0
    # No bar where nobody watches: disable=None asks for a terminal.
    with tqdm(
        desc=f"Reading {name} {split}", total=num_examples, disable=None
    ) as bar:
        for inputs, labels in _batches(builder, split, input_key, label_key):
            stop = start + len(labels)
            if is_text:
                inputs = [text.decode("utf-8") for text in inputs]
            x[start:stop], y[start:stop] = inputs, labels
            bar.update(stop - start)
            start = stop
    return x, y


def _batches(builder, split, input_key, label_key):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    info = builder.info
    feature = info.features[input_key]
    is_image = isinstance(feature, tfds.features.Image)
    instructions = info.splits[split].file_instructions
    if not instructions:
        return []

    def decode(records):
        parsed = tf.io.parse_example(
            records,
            {
                input_key: tf.io.FixedLenFeature((), "string"),
                label_key: tf.io.FixedLenFeature((), "int64"),
            },
        )
        inputs = parsed[input_key]
        if is_image:
            inputs = tf.map_fn(
                feature.decode_example,
                inputs,
                fn_output_signature=tf.as_dtype(feature.np_dtype),
            )
        return inputs, parsed[label_key]

    is_simple = is_image or isinstance(feature, tfds.features.Text)
    if is_simple and info.file_format == tfds.core.FileFormat.TFRECORD:
        parts = tf.data.Dataset.from_tensor_slices(
            {
                "filename": [str(part.filename) for part in instructions],
                "skip": [part.skip for part in instructions],
                "take": [part.take for part in instructions],
            }
        )
        records = parts.flat_map(
            lambda part: (
                tf.data.TFRecordDataset(part["filename"])
                .skip(tf.cast(part["skip"], "int64"))
                .take(tf.cast(part["take"], "int64"))
            )
        )
        batches = records.batch(_READ_BATCH_SIZE)
        dataset = batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    else:
        examples = builder.as_dataset(
            split=split, read_config=tfds.ReadConfig(try_autocache=False)
        )
        dataset = examples.map(
            lambda example: (example[input_key], example[label_key])
        ).batch(_READ_BATCH_SIZE)
    return dataset.prefetch(1).as_numpy_iterator()


class UnknownSplit(ValueError):
    """A split that a data set has not."""


def split_error(name, split, names):
    return UnknownSplit(
        f"`split` must be a split of {name!r}, with a slice within it at "
        f"most. Received split={split!r} ({type(split).__name__}). Use "
        f"{', '.join(names)}, or for instance "
        f"'{next(iter(names), 'train')}[:90%]'."
    )

"""Exits on a frozen network that runs over the data once, for `jei.py`."""

import keras
import numpy as np
from keras import layers

import keras_earlyexit as ee

FIELDS = 4


class Exits:
    """What the exits of a frozen network read, and models of them alone.

    An exit hangs behind every block but the last: means over 4x4 fields of
    the feature, layer normalisation, one linear layer.

    Args:
        data: Name of the data set.
        splits: Of training, calibration and test.
        epochs: What the network is trained for, unless it is given.
        folder: Where the network and what exits read are kept.
        plain: A trained ResNet as `.keras`, or `None`.

    Attributes:
        train, calibration, test: Pairs of vectors and labels.
        costs: Relative costs of the whole network with its exits.
    """

    def __init__(self, data, splits, epochs, folder, plain=None):
        self._data, self._splits, self._folder = data, splits, folder
        self._epochs = epochs
        plain = self._plain(plain)
        self._names = [
            layer.name for layer in plain.layers if layer.name.endswith("_out")
        ][:-1]
        features = [plain.get_layer(name).output for name in self._names]
        vectors = [*map(fields, features), plain.layers[-1].input]
        self._sizes = [vector.shape[-1] for vector in vectors]
        self._head = plain.layers[-1].get_weights()
        whole = ee.add_exits(plain, self._names, block=exit_of_feature)
        self.costs = whole.relative_costs.tolist()
        self.train, self.calibration, self.test = self._read(
            keras.Model(plain.input, layers.Concatenate()(vectors))
        )

    def _plain(self, given):
        path = given or self._folder / "plain.keras"
        if given is None and not path.exists():
            keras.utils.set_random_seed(0)
            batches = ee.datasets.pipeline(
                self._data, self._splits[0], training=True
            )
            shape = batches.element_spec[0].shape[1:]
            plain = ee.backbones.resnet_cifar(20, tuple(shape), 10)
            plain.compile("adam", "sparse_categorical_crossentropy")
            plain.fit(batches, epochs=self._epochs, verbose=2, shuffle=False)
            plain.save(path)
        return keras.models.load_model(path)

    def _read(self, reader):
        """Vectors and labels of the three splits, read once and kept."""
        path = self._folder / "vectors.npz"
        if not path.exists():
            arrays = {}
            for k, split in enumerate(self._splits):
                batches = ee.datasets.pipeline(
                    self._data, split, 256, training=k == 0
                )
                parts = [
                    (reader.predict_on_batch(x).astype("float16"), y)
                    for x, y in batches
                ]
                columns = zip(*parts, strict=True)
                for name, part in zip("xy", columns, strict=True):
                    arrays[f"{name}{k}"] = np.concatenate(part)
            np.savez(path, **arrays)
        with np.load(path, allow_pickle=False) as found:
            return [
                (found[f"x{k}"].astype("float32"), found[f"y{k}"])
                for k in range(3)
            ]

    def model(self):
        """The exits without the network: each reads its part of a vector."""
        x = inputs = keras.Input((sum(self._sizes),))
        for name in self._names:
            x = layers.Identity(name=name)(x)
        head = layers.Dense(len(self._head[1]), activation="softmax")
        chain = keras.Model(inputs, head(x[:, -self._sizes[-1] :]))
        head.set_weights(self._head)
        ends = np.cumsum(self._sizes)
        parts = iter(zip(ends - self._sizes, ends, strict=True))

        def block(feature):
            start, end = map(int, next(parts))
            return layers.LayerNormalization()(feature[:, start:end])

        model = ee.add_exits(
            chain, self._names, block=block, policy="max_probability"
        )
        # As if measured: that way a model takes any costs.
        model.use_cost(
            ee.cost.MeasuredCost("milliseconds", 1, tuple(self.costs), 1.0)
        )
        return model


def fields(feature):
    """Means over 4x4 fields, as a vector."""
    side = -(-feature.shape[1] // FIELDS)
    pooled = layers.AveragePooling2D(side, padding="same")(feature)
    return layers.Flatten()(pooled)


def exit_of_feature(feature):
    return layers.LayerNormalization()(fields(feature))

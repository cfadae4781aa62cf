"""What codecs do to the answers of a trained model, and to the bytes."""

import keras
import numpy as np
import pytest

import keras_earlyexit as ee
from edge_worker import EdgeWorker

#: Bytes per sample over those of float32, and the least agreement.
BARS = {
    "float32": (1.01, 1.0),
    "float16": (0.51, 0.999),
    "bfloat16": (0.51, 0.995),
    "uint8": (0.26, 0.995),
    "uint8_channel+zstd": (0.26, 0.995),
    "uint8+zstd": (0.26, 0.995),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Bundles of a trained model, its test split, and its own answers."""
    keras.utils.set_random_seed(0)
    x, y = ee.datasets.load("digits", "train")
    x = x.astype("float32").reshape(len(x), 8, 8, 1) / 16
    image = keras.Input((8, 8, 1))
    z = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(image)
    z = keras.layers.Conv2D(32, 3, activation="relu", name="conv_1")(z)
    z = keras.layers.Flatten()(z)
    outputs = keras.layers.Dense(10, activation="softmax")(z)
    model = ee.add_exits(keras.Model(image, outputs), ["conv"])
    model.compile("adam", objective="branchynet")
    model.fit(x, y, batch_size=32, epochs=4, verbose=0)
    model.policy.threshold = 0.9
    folder = tmp_path_factory.mktemp("digits") / "cut"
    ee.export(model, folder, cut="exit_0")
    test_x, test_y = ee.datasets.load("digits", "test")
    test_x = test_x.astype("float32").reshape(len(test_x), 8, 8, 1) / 16
    return folder, test_x, test_y, model.predict_exits(test_x)


def test_codecs_on_a_trained_model(digits, start_cloud):
    folder, x, y, wanted = digits
    right = np.argmax(wanted.predictions, -1)
    assert (right == y.ravel()).mean() > 0.9
    found = {}
    with start_cloud(folder / "segment_1", "--insecure") as cloud:
        for codec in BARS:
            with EdgeWorker(
                folder / "segment_0",
                cloud.address,
                insecure=True,
                codec=codec,
            ) as worker:
                found[codec] = worker.predict(x)
    whole = found["float32"]
    sent = whole.counts["cloud"]
    assert sent > 30
    assert whole.bytes_up / (sent * 6 * 6 * 16 * 4) < 1.02
    for codec, (most_bytes, least_agreement) in BARS.items():
        result = found[codec]
        assert result.counts == whole.counts
        agreement = (np.argmax(result.predictions, -1) == right).mean()
        assert agreement >= least_agreement, codec
        assert result.bytes_up <= most_bytes * whole.bytes_up, codec

"""MNIST with this library: `eenet_v2` and its learned confidence."""

import sys

import keras
import numpy as np

import keras_earlyexit as ee

EPOCHS, BATCH, RATE = 2, 64, 1e-3


def network():
    plain = ee.backbones.resnet_cifar(20, (28, 28, 1), 10)
    return ee.add_exits(plain, ["block3_out", "block6_out"])


def train(model, x, y):
    model.compile(keras.optimizers.Adam(RATE), "eenet_v2")
    falls = keras.callbacks.LearningRateScheduler(
        lambda epoch: RATE * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
    )
    model.fit(
        x, y, batch_size=BATCH, epochs=EPOCHS, callbacks=[falls], verbose=2
    )


def choose(model, x, y, budget):
    ee.calibration.calibrate_budget(model, x, budget=budget)


def answer(model, x):
    result = model.predict_exits(x)
    return result.predictions.argmax(axis=-1), result.exit_index


def main():
    data = np.load(sys.argv[1])
    model = network()
    train(model, data["x_train"], data["y_train"])
    choose(model, data["x_held_out"], data["y_held_out"], budget=0.6)
    classes, exits = answer(model, data["x_test"])
    print("right:", np.mean(classes == data["y_test"]))
    print("left at:", np.bincount(exits, minlength=3))


if __name__ == "__main__":
    main()

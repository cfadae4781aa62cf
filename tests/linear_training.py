"""A trainer small enough for thousands of histories: it has no Keras."""

import numpy as np

#: What its trainer says that it trains.
AGREEMENT = {
    "origin": {"name": "linear", "weights_sha256": "0" * 64, "policy": {}},
    "head": {"task": "regression", "units": 1},
    "first_stage": 1,
    "feature": ["feature", [None, 3], "float32"],
    "labels": ["labels", [None], "float32"],
}


class LinearStepper:
    """Fits one weight by gradient descent, with momentum and noise."""

    def __init__(self):
        self.restore([np.zeros(3), np.zeros(3), np.array(0, "int64")])

    def step(self, arrays, labels, weight=None):
        (x,) = arrays
        difference = x @ self.weights - labels
        noise = np.random.default_rng(int(self.seed)).normal(size=3)
        gradient = x.T @ difference / len(x) + 0.01 * noise
        self.momentum = 0.9 * self.momentum + gradient
        self.weights = self.weights - 0.1 * self.momentum
        self.seed = self.seed + 1
        return {"loss": float((difference**2).mean()), "accuracy": 0.0}

    def state(self):
        return [self.weights, self.momentum, self.seed]

    def restore(self, arrays):
        self.weights, self.momentum, self.seed = (np.array(x) for x in arrays)


def batch(edge, sequence):
    """What an edge has for a number, always the same."""
    rng = np.random.default_rng([edge, sequence])
    x, y = rng.normal(size=(4, 3)), rng.normal(size=4)
    return (x.astype("float32"),), y.astype("float32")


def replay(order):
    """The stepper after batches (edge, sequence) in some order."""
    stepper = LinearStepper()
    for edge, sequence in order:
        stepper.step(*batch(edge, sequence))
    return stepper


def bytes_of(stepper):
    return [array.tobytes() for array in stepper.state()]

"""What the choice of samples that go up does to the last exit.

One edge, and several later segments for each choice, which begin with weights
of their own; all of it in one process. Single runs of a short training differ
by points, so figures are means over these and over several tests in an epoch.
"""

import numpy as np
from _shared import write_report

import keras_earlyexit as ee
from edge_worker.training.batches import Batches, labels_of
from protos import training
from protos.feeding.forwarding import Forwarding
from protos.tensors import decode, encode

CUT, BASE, BATCH = "exit_1", "branchynet", 64
#: Name -> which samples, whether with their weights, and the codec.
WAYS = {
    "all": ("all", True, "float32"),
    "all, 4 bits": ("all", True, "uint4+zstd"),
    "non_exited": ("non_exited", True, "float32"),
    "non_exited, 4 bits": ("non_exited", True, "uint4+zstd"),
    "non_exited, no weights": ("non_exited", False, "float32"),
    "a third": (0.33, True, "float32"),
}
_UNDIVIDED, _TESTS = "undivided", 3
_ROUND = 3


def run(options):
    """Trains all of them side by side; prints and notes a row for each."""
    x, y = _images(f"train[:{options.images}]")
    batches = Batches(x, y, batch_size=BATCH, seed=1)
    rivals = _Rivals(options.repeats, _images("test[:3000]"))
    rows, every = [], len(batches) // _TESTS
    for epoch in range(options.epochs):
        for index, (xs, ys, _) in enumerate(batches.of_pass(epoch)):
            rivals.step(xs, ys, epoch, epoch * len(batches) + index)
            # In the first epoch all go up.
            if epoch and index % every == every - 1:
                rivals.test()
        for row in rivals.figures():
            rows.append({"epoch": epoch + 1, **row})
            print(rows[-1], flush=True)
    write_report(options.output, rows, images=options.images)


class _Rivals:
    """The edge, all later segments, and the network in one piece."""

    def __init__(self, repeats, test):
        import keras

        self._x, self._y = test
        self._whole = _network()
        self._whole.compile(keras.optimizers.Adam(2e-3), BASE)
        self._edge = _segments()[0]
        self._later = {
            name: [_segments(repeat)[1] for repeat in range(repeats)]
            for name in WAYS
        }
        self._spec = training.spec_of(self._edge.agreement(1)["feature"])
        self._choices = {name: Forwarding(WAYS[name][0]) for name in WAYS}
        self._reset()

    def _reset(self):
        self._samples, self._sent = 0, dict.fromkeys(WAYS, 0)
        self._found = {name: [] for name in (*WAYS, _UNDIVIDED)}

    def step(self, x, y, epoch, sequence):
        self._whole.train_on_batch(x, y)
        outputs = self._edge.learn(x, y).outputs
        labels = labels_of(y, self._edge.head)
        self._samples += len(labels)
        for name, (_, is_weighted, codec) in WAYS.items():
            rows, weight = self._choices[name].choose(
                self._edge, outputs, None, epoch, sequence
            )
            self._sent[name] += len(rows)
            rng = np.random.default_rng((0, epoch, _ROUND, sequence))
            message = encode(outputs["feature"][rows], codec, rng)
            feature = decode(message, self._spec, len(rows))
            for segment in self._later[name]:
                segment.learn(
                    feature, labels[rows], weight if is_weighted else None
                )

    def test(self):
        """Accuracies of the last exit: of all, and of those who stay."""
        outputs = self._edge.net.predict(self._x, batch_size=500, verbose=0)
        stays = ~self._edge.leaving(outputs)

        def note(name, answers):
            right = np.asarray(answers["final"]).argmax(-1) == self._y
            self._found[name].append((right.mean(), right[stays].mean()))

        note(_UNDIVIDED, self._whole.net(self._x))
        for name, segments in self._later.items():
            for segment in segments:
                note(name, segment.net(outputs["feature"]))

    def figures(self):
        """A dict for each way, of the tests since it was last asked."""
        for name, found in self._found.items():
            if found:
                final, stay = np.array(found).T
                share = self._sent.get(name, self._samples) / self._samples
                yield {
                    "way": name,
                    "final": round(float(final.mean()), 4),
                    "error": round(float(final.std() / len(final) ** 0.5), 4),
                    "of those who stay": round(float(stay.mean()), 4),
                    "share": round(share, 3),
                }
        self._reset()


def _segments(seed=0):
    """The two segments, compiled; the later one begins as the seed says."""
    import keras

    found = ee.split(_network(), CUT, BASE)
    if seed:
        for i, value in enumerate(found[1].net.trainable_variables):
            if len(value.shape) > 1:
                start = keras.initializers.GlorotUniform(1000 * seed + i)
                value.assign(start(value.shape))
    for segment in found:
        segment.compile(keras.optimizers.Adam(2e-3))
    return found


def _network():
    """As in `examples/split_training.py`."""
    import keras

    keras.utils.set_random_seed(0)
    image = x = keras.Input((28, 28, 1))
    options = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    for i, filters in enumerate((16, 32, 32), start=1):
        x = keras.layers.Conv2D(filters, **options)(x)
        x = keras.layers.MaxPooling2D(name=f"block{i}")(x)
    for _ in range(2):
        x = keras.layers.Conv2D(96, **options)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    return ee.add_exits(
        keras.Model(image, outputs),
        ["block2", "block3"],
        block="plain",
        policy="max_probability",
    )


def _images(split):
    x, y = ee.datasets.load("mnist", split)
    return ee.datasets.normalize("mnist", x), y

"""How good the last exit becomes, trained apart and undivided.

One edge feeds several later segments, each with its own choice of what goes up
and in which codec. That is possible because nothing comes back: the edge is
the same for all of them. Everything is the workers' own (batches, choice,
codec, steps), in one process, without a network in between; that a network
changes no bit of it is what the tests of the workers are about.

Stopped at any moment and started again, it goes on after the last epoch.
"""

import dataclasses
import json
import time

import numpy as np

from _hierarchical import setting
from edge_worker.training.batches import Batches, labels_of
from keras_earlyexit import snapshots
from protos import training
from protos.feeding.forwarding import Forwarding
from protos.tensors import decode, encode

UNDIVIDED = "undivided"
_ROUND = 3


class Undivided:
    """The network in one piece; all exits learn together."""

    def __init__(self, steps, start):
        self.model = start.model()
        self.model.compile(setting.optimizer(steps), setting.BASE)
        self.learned = [self.model]

    def step(self, x, y, epoch, sequence):
        self.model.train_on_batch(x, y)

    def figures(self, x, y):
        found = self.model.net.predict(x, batch_size=256, verbose=0)
        return {
            UNDIVIDED: {
                name: _accuracy(found[name], y)
                for name in self.model.exit_names
            }
        }


class Divided:
    """An edge and several later segments, one for each of `ways`.

    Each of them says which samples go up, and in which codec.
    """

    def __init__(self, steps, start, ways):
        self._ways = [way.split() for way in ways]
        self.edge = start.segments(steps)[0]
        self.clouds = [start.segments(steps)[1] for _ in ways]
        self.learned = [self.edge, *self.clouds]
        self._spec = training.spec_of(self.edge.agreement(1)["feature"])
        self._seed = start.seed
        self._choices = [Forwarding(way, start.seed) for way, _ in self._ways]
        self._reset()

    def _reset(self):
        self.samples = 0
        self.sent = [0] * len(self._ways)
        self.bytes_up = [0] * len(self._ways)

    def step(self, x, y, epoch, sequence):
        outputs = self.edge.learn(x, y).outputs
        labels = labels_of(y, self.edge.head)
        self.samples += len(labels)
        for i, (_, codec) in enumerate(self._ways):
            rows, weight = self._choices[i].choose(
                self.edge, outputs, None, epoch, sequence
            )
            key = self._seed, epoch, _ROUND, sequence
            message = encode(
                outputs["feature"][rows], codec, np.random.default_rng(key)
            )
            feature = decode(message, self._spec, len(rows))
            self.clouds[i].learn(feature, labels[rows], weight)
            self.sent[i] += len(rows)
            # Labels, and weights where they are not all one.
            self.bytes_up[i] += message.ByteSize()
            self.bytes_up[i] += (4 if weight is None else 8) * len(rows)

    def figures(self, x, y):
        """Accuracies, and what went up since they were last asked for."""
        edge = self.edge.net.predict(x, batch_size=256, verbose=0)
        rows = {}
        for i, (forward, codec) in enumerate(self._ways):
            found = self.clouds[i].net.predict(
                edge["feature"], batch_size=256, verbose=0
            )
            rows[f"{forward}, {codec}"] = {
                setting.CUT: _accuracy(edge[setting.CUT], y),
                "final": _accuracy(found["final"], y),
                "share": self.sent[i] / max(self.samples, 1),
                "bytes_per_image": self.bytes_up[i] / max(self.samples, 1),
            }
        self._reset()
        return rows


def run(options):
    """Trains one of both ways; prints and notes the figures."""
    start = setting.Start(
        options.network,
        options.layer,
        options.block,
        threshold=options.threshold,
        seed=options.seed,
    )
    start.check()
    x, y = setting.images(f"train[:{options.images}]")
    test = setting.images("test")
    test = setting.normal(test[0]), test[1]
    batches = Batches(
        x, y, None, setting.BATCH, True, setting.augment, start.seed
    )
    steps = options.epochs * len(batches)
    if options.way == UNDIVIDED:
        made = Undivided(steps, start)
    else:
        made = Divided(steps, start, options.ways)
    folder = options.folder / "accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / options.way
    settings = {
        **dataclasses.asdict(start),
        "images": options.images,
        "epochs": options.epochs,
        "ways": None if options.way == UNDIVIDED else list(options.ways),
    }
    epoch, rows = _restore(path, made.learned, settings)
    while epoch < options.epochs:
        begun = time.process_time()
        for index, (xs, ys, _) in enumerate(batches.of_pass(epoch)):
            made.step(xs, ys, epoch, epoch * len(batches) + index)
        epoch += 1
        row = {"epoch": epoch, "cpu_seconds": time.process_time() - begun}
        if epoch % options.every == 0 or epoch == options.epochs:
            row["figures"] = made.figures(*test)
        rows.append(row)
        print(json.dumps(row), flush=True)
        _save(path, made.learned, settings, epoch, rows)
    return rows


def _save(path, learned, settings, epoch, rows):
    arrays = [a for model in learned for a in snapshots.state_of(model)]
    facts = {"settings": settings, "epoch": epoch, "rows": rows}
    snapshots.write(path, arrays, facts)


def _restore(path, learned, settings):
    try:
        arrays, facts = snapshots.read(path)
    except FileNotFoundError:
        return 0, []
    if facts.get("settings") != settings:
        raise SystemExit(
            f"Expected {path} to be of a run with {settings}. Received: one "
            f"with {facts.get('settings')}. Give another --folder."
        )
    for model in learned:
        count = len(snapshots.variables_of(model))
        snapshots.restore(model, arrays[:count])
        arrays = arrays[count:]
    return facts["epoch"], facts["rows"]


def _accuracy(predictions, y):
    return float(np.mean(predictions.argmax(-1) == y))

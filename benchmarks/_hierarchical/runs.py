"""What the edge's process does: some batches, in each of the ways."""

import os
import time

import keras

import keras_earlyexit as ee
from _hierarchical import pace, setting
from _hierarchical.baselines import Edge
from edge_worker import EdgeTrainer
from edge_worker.training.batches import Batches
from protos.security import ClientSecurity

WHOLE, SPLIT = "whole", "split"
#: Hierarchical training: which samples go up, and their codec.
WAYS = {
    f"{forward} {codec}": (forward, codec)
    for forward, codec in (
        ("all", "uint8+zstd"),
        ("all", "uint4+zstd"),
        ("non_exited", "uint8+zstd"),
        ("non_exited", "uint4+zstd"),
    )
}
#: Images that no figure of accuracy was trained on.
_SPLIT = "train[20048:]"
_WARM_UP = 4


class Runs:
    """Everything the edge needs for its runs; images come once each.

    Args:
        folder: Where it keeps its state.
        start: A `setting.Start`.
        product: `"host:port"` of the trainer.
        baselines: `"host:port"` of the baselines' service.
        is_paced: Whether steps are paced, see `pace.Paced`.
    """

    def __init__(self, folder, start, product, baselines, is_paced):
        self._segment = ee.split(start.model(), setting.CUT, setting.BASE)[0]
        self._segment.compile(setting.optimizer())
        self._baseline = Edge(start.model(), baselines)
        self._folder, self._target = folder, product
        self._trainers, self._passes = {}, {}
        batches = Batches(*setting.images(_SPLIT), batch_size=setting.BATCH)
        self._stream = self._endless(batches)
        #: The edge's `DeviceProfile`, if steps are paced.
        self.profile = None
        if is_paced:
            self.profile = pace.edge(
                start.model(), self._baseline, self._segment
            )

    def run(self, way, steps):
        """Trains on the next batches of the stream.

        Args:
            way: `"whole"`, `"split"` or one of `WAYS`.
            steps: How many batches.

        Returns:
            Seconds and what went over the link, a dict.
        """
        cpu = time.process_time()
        if way in WAYS:
            found = self._hierarchical(way, steps)
        else:
            found = self._compared(way, steps)
        return {
            "way": way,
            "steps": steps,
            "edge_cpu_seconds": time.process_time() - cpu,
            **found,
        }

    def close(self):
        for trainer in self._trainers.values():
            trainer.close()

    def _endless(self, batches):
        number = 0
        while True:
            for x, y, _ in batches.of_pass(number):
                yield x, y
            number += 1

    def _next(self, steps):
        for _ in range(steps):
            yield next(self._stream)

    def _normal(self, steps):
        for x, y in self._next(steps):
            yield setting.normal(x), y

    def _compared(self, way, steps):
        start = time.monotonic()
        if way == WHOLE:
            up, down = self._baseline.train_whole(self._next(steps))
        else:
            up, down = self._baseline.train_split(self._normal(steps))
        return {
            "seconds": time.monotonic() - start,
            "bytes_up": up,
            "bytes_down": down,
        }

    def _hierarchical(self, way, steps):
        trainer = self._trainers.get(way)
        if trainer is None:
            trainer = self._start(way)
            # In its first pass all go up; and steps are compiled.
            self._fit(way, trainer, _WARM_UP)
        return self._fit(way, trainer, steps)

    def _start(self, way):
        forward, codec = WAYS[way]
        trainer = EdgeTrainer(
            self._segment,
            None,
            self._target,
            os.path.join(self._folder, way.replace(" ", "_")),
            security=ClientSecurity(insecure=True),
            edge_id=f"edge-{len(self._trainers)}",
            forward=forward,
            codec=codec,
        )
        self._trainers[way], self._passes[way] = trainer, 0
        return trainer

    def _fit(self, way, trainer, steps):
        self._passes[way] += 1
        before = trainer.cloud.bytes_up, trainer.cloud.bytes_down
        waited, edge = trainer.journal.waited_s, _EdgeDone()
        start = time.monotonic()
        history = trainer.fit(
            lambda _: self._normal(steps),
            epochs=self._passes[way],
            callbacks=[edge],
            verbose=0,
        )
        seconds = time.monotonic() - start
        drained = seconds - (edge.at - start)
        idle = trainer.journal.waited_s - waited + drained
        return {
            "seconds": seconds,
            "drained_seconds": drained,
            "edge_idle": idle / seconds,
            "share": history.history["forwarded"][-1],
            "bytes_up": trainer.cloud.bytes_up - before[0],
            "bytes_down": trainer.cloud.bytes_down - before[1],
        }


class _EdgeDone(keras.callbacks.Callback):
    """When the edge's own steps were done."""

    at = None

    def on_epoch_end(self, epoch, logs=None):
        self.at = time.monotonic()

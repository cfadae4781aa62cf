"""Makes the rows of a plan: every cut, and what it is compared with."""

import dataclasses
import math

from keras_earlyexit.cost.measured import Link
from keras_earlyexit.planning import formulas
from keras_earlyexit.planning.device_times import Device
from keras_earlyexit.planning.model_facts import ModelFacts
from keras_earlyexit.planning.plans import (
    CLOUD,
    CUT,
    EDGE,
    SPLIT_LEARNING,
    PlanRow,
)

#: Bytes of a label: a class as an integer.
LABEL_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Planner:
    """Makes the rows of a plan.

    Args:
        facts: The model, a `model_facts.ModelFacts`.
        edge: A `device_times.Device`.
        cloud: A `device_times.Device`.
        link: A `measured.Link`.
        batch_size: Samples in a batch.
        reached: Share of the samples that reaches each stage.
        feature_bytes: Bytes that cross each cut for a sample.
        input_bytes: Bytes of a raw sample.
    """

    facts: ModelFacts
    edge: Device
    cloud: Device
    link: Link
    batch_size: int
    reached: list
    feature_bytes: list
    input_bytes: float

    def infer(self):
        """Rows for answering, means for one sample."""
        rows = [
            self._answering(CUT, k, up)
            for k, up in enumerate(self.feature_bytes)
        ]
        rows.append(self._answering(EDGE, len(self.facts.cuts), 0.0))
        rows.append(self._answering(CLOUD, -1, self.input_bytes))
        return rows

    def _answering(self, way, cut, up):
        times = formulas.answering(
            self.edge,
            self.cloud,
            self.link,
            self.batch_size,
            self.reached,
            cut,
            up,
            self.facts.answer_bytes,
        )
        segment = self._at_edge(way, cut)
        times = formulas.Times(
            *(value / self.batch_size for value in dataclasses.astuple(times))
        )
        used = (0, 0, 0)
        if segment is not None:
            widest = segment.widest_bytes * self.batch_size
            used = segment.parameter_bytes, 0, widest
        share = 0.0 if way == EDGE else self.reached[cut + 1]
        total = times.edge + times.link + times.cloud
        return self._row(way, cut, total, times, used, share, None)

    def train(self, shares, slots, pipelined, steps):
        """Rows for training, means for one batch."""
        last = len(self.facts.cuts)
        ways = [
            (CUT, k, share, up)
            for k, (share, up) in enumerate(
                zip(shares, self.feature_bytes, strict=True)
            )
        ]
        ways += [(EDGE, last, 0.0, 0.0), (CLOUD, -1, 1.0, self.input_bytes)]
        rows = []
        for way, k, share, up in ways:
            period, alone, times = formulas.hierarchical(
                self.edge,
                self.cloud,
                self.link,
                self.batch_size,
                share,
                k,
                up + LABEL_BYTES,
                pipelined,
            )
            epoch = None if steps is None else alone + (steps - 1) * period
            used = self._training_bytes(way, k, slots)
            rows.append(self._row(way, k, period, times, used, share, epoch))
        for k, up in enumerate(self.feature_bytes):
            seconds, times = formulas.split_learning(
                self.edge,
                self.cloud,
                self.link,
                self.batch_size,
                k,
                up + LABEL_BYTES,
                up,
            )
            epoch = None if steps is None else steps * seconds
            used = self._training_bytes(SPLIT_LEARNING, k, slots)
            rows.append(
                self._row(SPLIT_LEARNING, k, seconds, times, used, 1.0, epoch)
            )
        return rows

    def _training_bytes(self, way, cut, slots):
        segment = self._at_edge(way, cut)
        if segment is None:
            return 0, 0, 0
        return (
            segment.parameter_bytes,
            math.ceil(slots * segment.trainable_bytes),
            segment.activation_bytes * self.batch_size,
        )

    def _at_edge(self, way, cut):
        """The `Segment` at the edge, or `None`."""
        if way == CLOUD:
            return None
        return self.facts.whole if way == EDGE else self.facts.cuts[cut].edge

    def _row(self, way, cut, seconds, times, used, share, epoch):
        uncut = way in (EDGE, CLOUD)
        return PlanRow(
            way=way,
            name=way if uncut else self.facts.cuts[cut].name,
            layer="" if uncut else self.facts.cuts[cut].layer,
            seconds=seconds,
            edge_seconds=times.edge,
            link_seconds=times.link,
            cloud_seconds=times.cloud,
            bytes_up=times.bytes_up,
            bytes_down=times.bytes_down,
            parameter_bytes=used[0],
            optimizer_bytes=used[1],
            activation_bytes=used[2],
            share=share,
            epoch_seconds=epoch,
        )

"""How long a model takes on a device, as a value to keep, send and ask.

`profiling.profile` measures it. Neither Keras nor a backend is needed here, so
that a profile from one machine can be read on any other.
"""

import dataclasses
import numbers

import numpy as np

from keras_earlyexit import json_values
from keras_earlyexit.cost import profile_text
from keras_earlyexit.cost.measured import (
    Machine,
    MeasuredCost,
    Timing,
    check_unit,
    count,
    count_from_0,
    instance,
    positive,
    put,
    put_all,
    text,
)


@dataclasses.dataclass(frozen=True)
class DeviceProfile(json_values.InFile):
    """How long a model takes on a device; see `ee.cost.profile`.

    Sizes between those measured are interpolated. Below the smallest a batch
    takes as long as that one; beyond the largest, time grows in proportion.

    Args:
        name: Name of the model.
        batch_sizes: The batch sizes measured, rising: (B,).
        stages: A `Timing` for each stage by itself, named after its exit.
        exits: A `Timing` for each exit: to answer a batch of which all
            samples leave there. Empty where only stages were measured.
        plain: `Timing` of the model without exits, or `None`.
        peak_bytes: The most main memory that the whole process held while
            batches of a size ran, the smaller sizes first: (B,) integers.
            `None` where the system does not tell.
        machine: The `Machine`, or `None`.
        training: A `Timing` of a training step for each segment that was
            measured, named as `segment_name` says.

    Raises:
        TypeError, ValueError: If a value is of another form or not finite, or
            if there are too many or too few.

    Example:

    ```python
    profile = ee.cost.profile(model, batch_sizes=(1, 32))
    print(profile)
    profile.save("laptop.json")
    profile = ee.cost.DeviceProfile.load("laptop.json")
    print(profile.seconds("exit_0", 8), profile.macs_per_second)
    ```
    """

    name: str
    batch_sizes: tuple
    stages: tuple
    exits: tuple = ()
    plain: Timing | None = None
    peak_bytes: tuple | None = None
    machine: Machine | None = None
    training: tuple = ()

    def __post_init__(self):
        put(self, "name", text)
        put_all(self, "batch_sizes", count)
        put_all(self, "stages", instance(Timing))
        put_all(self, "exits", instance(Timing))
        put_all(self, "training", instance(Timing))
        rising = sorted(set(self.batch_sizes))
        if not rising or list(self.batch_sizes) != rising or not self.stages:
            raise ValueError(
                "Expected at least one stage, and batch sizes that rise. "
                f"Received: {len(self.stages)} stages and "
                f"batch_sizes={self.batch_sizes!r}."
            )
        if self.plain is not None:
            put(self, "plain", instance(Timing))
        if self.peak_bytes is not None:
            put_all(self, "peak_bytes", count_from_0)
            self._check_length("peak_bytes", self.peak_bytes)
        if self.machine is not None:
            put(self, "machine", instance(Machine))
        for timing in (*self.exits, *self.training, *self._parts()):
            for field in ("seconds", "p95_seconds", "joules"):
                values = getattr(timing, field)
                if values is not None:
                    self._check_length(f"{field} of {timing.name}", values)

    def _check_length(self, name, values):
        if len(values) != len(self.batch_sizes):
            raise ValueError(
                f"Expected `{name}` to have a value for each of the "
                f"{len(self.batch_sizes)} batch sizes. Received: "
                f"{len(values)} values."
            )

    def _parts(self):
        """What ran without routing: the stages, and the plain model."""
        return (*self.stages, *([] if self.plain is None else [self.plain]))

    @property
    def stage_names(self):
        """Names of the exits that the stages end with."""
        return tuple(stage.name for stage in self.stages)

    @property
    def macs_per_second(self):
        """Multiply-adds per second of all stages, in the largest batches.

        `None` if the stages' MACs are not known.
        """
        macs = [stage.macs for stage in self.stages]
        if None in macs:
            return None
        seconds = sum(stage.seconds[-1] for stage in self.stages)
        return sum(macs) * self.batch_sizes[-1] / seconds

    def seconds(self, stage, batch_size=1):
        """Seconds that a stage takes by itself.

        Args:
            stage: Its number, or the name of its exit.
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A float.

        Raises:
            TypeError, ValueError: If there is no such stage or batch size.
        """
        return self.at(_find(self.stages, stage).seconds, batch_size)

    def exit_seconds(self, exit, batch_size=1):
        """Seconds to answer a batch of which all samples leave at an exit.

        As it is answered, or, where only stages were measured, their sum.

        Args:
            exit: Number or name of the exit.
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A float.

        Raises:
            TypeError, ValueError: If there is no such exit or batch size.
        """
        if self.exits:
            return self.at(_find(self.exits, exit).seconds, batch_size)
        last = self.stages.index(_find(self.stages, exit))
        return sum(self.seconds(k, batch_size) for k in range(last + 1))

    def routing_seconds(self, batch_size=1):
        """Seconds that routing itself takes when all samples stay to the end.

        The time to `final` minus the sum of all stages. Below 0 where one call
        for all stages costs less than one for each.

        Args:
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A float.

        Raises:
            TypeError, ValueError: If only stages were measured, or if
                `batch_size` cannot be.
        """
        if not self.exits:
            raise ValueError(
                "Expected a profile with the time to each exit. Received: one "
                f"of {self.name!r}, which has the time of stages only. Profile "
                "the model with exits itself."
            )
        stages = sum(self.at(x.seconds, batch_size) for x in self.stages)
        return self.exit_seconds(-1, batch_size) - stages

    def training_seconds(self, first, last, batch_size=1):
        """Seconds that a training step of some stages takes.

        Args:
            first: Name of the exit of the first of them.
            last: Name of the exit of the last of them.
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A float; `None` if that was not measured.

        Raises:
            TypeError, ValueError: If `batch_size` cannot be.
        """
        wanted = segment_name(first, last)
        for timing in self.training:
            if timing.name == wanted:
                return self.at(timing.seconds, batch_size)
        return None

    def predicted_seconds(self, macs, batch_size=1):
        """Seconds that other stages would take here, by their MACs.

        For each batch size a line a + b macs, with a and b at least 0, is laid
        through what was measured, the stages and the plain model, so that the
        relative squared error is least. An estimate: layers differ in how
        well they use a processor, by a factor of two and more.

        Args:
            macs: Multiply-adds of a stage for one sample: a number, or an
                array of them.
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A float, or an array like `macs`.

        Raises:
            TypeError, ValueError: If MACs, those measured or those asked for,
                are not known, or if `batch_size` cannot be.
        """
        parts = self._parts()
        known = [part.macs for part in parts]
        if None in known or not any(known):
            raise ValueError(
                "Expected a profile of stages whose MACs are known. Received: "
                f"one of {self.name!r}, with {known}. Profile a Keras model "
                "that `ee.cost.count` can count."
            )
        macs = np.asarray(macs, "float64")
        if not (np.isfinite(macs).all() and (macs >= 0).all()):
            raise ValueError(
                "Expected `macs` to be finite and at least 0. Received: "
                f"macs={macs.tolist()!r}."
            )
        lines = [
            _line(np.array(known, "float64"), np.array(seconds))
            for seconds in zip(*(part.seconds for part in parts), strict=True)
        ]
        overhead, per_mac = (
            self.at(values, batch_size) for values in zip(*lines, strict=True)
        )
        found = overhead + per_mac * macs
        return found if found.ndim else float(found)

    def cost_of_exits(self, unit="milliseconds", batch_size=1):
        """What it costs to leave at each exit, and the plain model.

        Args:
            unit: `"milliseconds"` or `"joules"`, for a batch.
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A `measured.MeasuredCost`.

        Raises:
            TypeError, ValueError: If that was not measured, or if a later exit
                does not cost more than the one before.
        """
        check_unit(unit)
        field = "joules" if unit == "joules" else "seconds"
        timings = (*self.exits, self.plain)
        found = [getattr(timing, field, None) for timing in timings]
        if not self.exits or None in found:
            raise ValueError(
                f"Expected a profile with the {field} to each exit and of the "
                f"plain model. Received: one of {self.name!r} without. "
                "Profile the model with exits itself, and for joules on a "
                "machine that shows its energy counters to you."
            )
        *costs, plain = (self.at(values, batch_size) for values in found)
        if unit == "milliseconds":
            costs, plain = [1000 * cost for cost in costs], 1000 * plain
        return MeasuredCost(unit, batch_size, costs, plain)

    def at(self, values, batch_size):
        """Brings a value for each batch size measured to another size.

        Args:
            values: Sequence (B,), such as `profile.plain.seconds`.
            batch_size: Samples in the batch, a number above 0.

        Returns:
            A float.

        Raises:
            TypeError, ValueError: If `batch_size` cannot be.
        """
        batch_size = positive("batch_size", batch_size)
        largest = self.batch_sizes[-1]
        if batch_size > largest:
            return float(values[-1] * batch_size / largest)
        return float(np.interp(batch_size, self.batch_sizes, values))

    def to_json(self):
        """The profile as JSON text, which `from_json` reads."""
        return profile_text.render(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, content):
        """Reads a profile from JSON; nothing in it is trusted.

        Args:
            content: Text or bytes that `to_json` made.

        Returns:
            A `DeviceProfile`.

        Raises:
            TypeError, ValueError: If it is too large, no such JSON, of
                another version, or says something that cannot be.
        """
        return cls(**profile_text.parse(content))

    def __str__(self):
        return profile_text.table(self)


def segment_name(first, last):
    """Name of a segment in a profile, from those of its outer exits."""
    return f"{first}..{last}"


def _find(timings, wanted):
    """One of some timings, by its name or number."""
    names = [timing.name for timing in timings]
    if isinstance(wanted, str) and wanted in names:
        return timings[names.index(wanted)]
    integral = isinstance(wanted, numbers.Integral)
    if integral and -len(names) <= wanted < len(names):
        return timings[wanted]
    raise ValueError(
        f"Expected one of {', '.join(names)}, or its number. Received: "
        f"{wanted!r} (of type {type(wanted).__name__})."
    )


def _line(macs, seconds):
    """a and b of the line a + b macs that is nearest to some seconds."""
    largest = macs.max()
    weighted = np.stack([1 / seconds, macs / largest / seconds], axis=1)
    if len(set(macs.tolist())) > 1:
        target = np.ones(len(seconds))
        overhead, slope = np.linalg.lstsq(weighted, target, rcond=None)[0]
        if overhead >= 0 and slope > 0:
            return float(overhead), float(slope / largest)
    # One size says nothing of the overhead, nor do those that contradict it.
    slope = weighted[:, 1].sum() / (weighted[:, 1] ** 2).sum()
    return 0.0, float(slope / largest)

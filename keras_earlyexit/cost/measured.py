"""Values that were measured on a machine, and a link between two.

They are checked when they are made, since they also come from files that were
written elsewhere.
"""

import dataclasses
import math
import numbers

#: The most stages, batch sizes or versions that a profile can have.
MAX_LENGTH = 10_000
UNITS = ("milliseconds", "joules")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where something was measured.

    Args:
        platform: System and processor architecture.
        processor: Name of the processor.
        cpu_count: Number of processors that the process may use.
        device: What the model ran on, such as `"cpu:0"`.
        backend: What ran it: a Keras backend, or the format of a bundle.
        versions: Names and versions of the software, a tuple of texts.

    Raises:
        TypeError, ValueError: If a value is of another form.
    """

    platform: str
    processor: str
    cpu_count: int
    device: str
    backend: str
    versions: tuple = ()

    def __post_init__(self):
        for name in ("platform", "processor", "device", "backend"):
            put(self, name, text)
        put(self, "cpu_count", count)
        put_all(self, "versions", text)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What it took to run something once, for each of B batch sizes.

    Args:
        name: Name of the exit at its end; `"plain"` for the plain model.
        seconds: Median seconds for a batch, above 0: (B,).
        p95_seconds: 95 % of the runs took at most so long: (B,), or `None`.
        joules: Energy for a batch: (B,), or `None` where it is not known.
        macs: Multiply-adds for one sample, or `None`.

    Raises:
        TypeError, ValueError: If a value is of another form, or not finite.
    """

    name: str
    seconds: tuple
    p95_seconds: tuple | None = None
    joules: tuple | None = None
    macs: int | None = None

    def __post_init__(self):
        put(self, "name", text)
        put_all(self, "seconds", positive)
        if self.p95_seconds is not None:
            put_all(self, "p95_seconds", positive)
        if self.joules is not None:
            put_all(self, "joules", amount)
        if self.macs is not None:
            put(self, "macs", count_from_0)


@dataclasses.dataclass(frozen=True)
class MeasuredCost:
    """What it costs to leave at each exit, as measured.

    Args:
        unit: `"milliseconds"` or `"joules"`, for a batch.
        batch_size: Samples in the batch.
        exits: Cost of leaving at each exit, `final` last: (E + 1,).
        plain: Cost of the model without exits.

    Raises:
        TypeError, ValueError: If a value is of another form, or if an exit
            does not cost more than the one before.
    """

    unit: str
    batch_size: float
    exits: tuple
    plain: float

    def __post_init__(self):
        check_unit(self.unit)
        put(self, "batch_size", positive)
        put_all(self, "exits", positive)
        put(self, "plain", positive)
        if any(
            later <= earlier
            for earlier, later in zip(self.exits, self.exits[1:], strict=False)
        ):
            raise ValueError(
                "Expected every exit to cost more than the one before. "
                f"Received: {[float(f'{x:.4g}') for x in self.exits]} "
                f"{self.unit} for a batch of {self.batch_size:g}. Measure "
                "again with more `repeats` or a larger batch; exits so close "
                "to each other may be worth leaving out."
            )

    @property
    def relative_costs(self):
        """Cost of each exit over the plain model's, a list of floats."""
        return [cost / self.plain for cost in self.exits]


@dataclasses.dataclass(frozen=True)
class Link:
    """A connection between two machines.

    Args:
        bits_per_second: How much it carries, above 0.
        round_trip_seconds: Time until a small message is answered, without
            any work on it.

    Raises:
        TypeError, ValueError: If a value is no number, or cannot be.

    Example:

    ```python
    link = ee.cost.Link(bits_per_second=20e6, round_trip_seconds=0.03)
    print(link.seconds(16 * 16 * 32 * 4))  # a feature in float32
    ```
    """

    bits_per_second: float
    round_trip_seconds: float

    def __post_init__(self):
        put(self, "bits_per_second", positive)
        put(self, "round_trip_seconds", amount)

    def seconds(self, num_bytes):
        """Seconds to send bytes and get a small answer.

        One round trip, and 8 bits a byte at the link's rate.

        Args:
            num_bytes: How much is sent, in bytes.

        Returns:
            A float.

        Raises:
            TypeError, ValueError: If `num_bytes` is no number, or below 0.
        """
        num_bytes = amount("num_bytes", num_bytes)
        return self.round_trip_seconds + 8 * num_bytes / self.bits_per_second


def put(owner, name, check):
    """Brings a field of a frozen dataclass into its form, or refuses it."""
    object.__setattr__(owner, name, check(name, getattr(owner, name)))


def put_all(owner, name, check):
    """The same for a field with many values, as a tuple."""
    values = getattr(owner, name)
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise _wrong(TypeError, name, "a sequence of values", values)
    if len(values) > MAX_LENGTH:
        raise ValueError(
            f"Expected `{name}` to have at most {MAX_LENGTH} values. "
            f"Received: {len(values)}."
        )
    object.__setattr__(
        owner, name, tuple(check(name, value) for value in values)
    )


def text(name, value):
    if not isinstance(value, str):
        raise _wrong(TypeError, name, "text", value)
    return value


def count(name, value, at_least=1):
    """A whole number of at least 1, as an integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _wrong(TypeError, name, "an integer", value)
    if not at_least <= value < 2**63:
        raise _wrong(ValueError, name, f"at least {at_least}", value)
    return int(value)


def count_from_0(name, value):
    """A whole number of at least 0, as an integer."""
    return count(name, value, at_least=0)


def amount(name, value):
    """A finite number of at least 0, as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong(TypeError, name, "a number", value)
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value >= 0):
        raise _wrong(ValueError, name, "finite and at least 0", value)
    return value


def positive(name, value):
    """A finite number above 0, as a float."""
    value = amount(name, value)
    if not value:
        raise _wrong(ValueError, name, "above 0", value)
    return value


def check_unit(unit):
    if not isinstance(unit, str) or unit not in UNITS:
        raise _wrong(ValueError, "unit", " or ".join(map(repr, UNITS)), unit)


def instance(kind):
    """A check that a value is of a class."""

    def check(name, value):
        if not isinstance(value, kind):
            raise _wrong(TypeError, name, f"a `{kind.__name__}`", value)
        return value

    return check


def _wrong(error, name, expected, value):
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return error(
        f"Expected `{name}` to be {expected}. Received: {shown} (of type "
        f"{type(value).__name__})."
    )

"""Where to cut a model, as a value to keep, draw and ask.

`plan.plan_cut` makes it. Neither Keras nor a backend is needed here.
"""

import dataclasses

from keras_earlyexit import json_values
from keras_earlyexit.cost.measured import (
    Link,
    amount,
    count,
    count_from_0,
    instance,
    positive,
    put,
    put_all,
    text,
)
from keras_earlyexit.planning import wording

#: Ways to run a model: cut, as it answers or as both parts train at the same
#: time; cut with gradients that come back; all in one place.
CUT, SPLIT_LEARNING, EDGE, CLOUD = "cut", "split_learning", "edge", "cloud"
WAYS = (CUT, SPLIT_LEARNING, EDGE, CLOUD)
MODES = ("infer", "train")
OBJECTIVES = ("seconds", "bytes")


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """What is predicted for one way to run a model.

    Seconds and bytes are means, for one sample where the plan is to answer and
    for one batch where it is to train.

    Args:
        way: `"cut"`, `"split_learning"`, `"edge"` or `"cloud"`.
        name: Name of the cut; `way` again where nothing is cut.
        layer: Name of the operation that the cut is behind, or `""`.
        seconds: From its start to its end; where the parts work at the same
            time, from one batch to the next.
        edge_seconds: Work at the edge.
        link_seconds: Time on the link.
        cloud_seconds: Work in the cloud.
        bytes_up: From the edge to the cloud.
        bytes_down: Back.
        parameter_bytes: At the edge, for weights.
        optimizer_bytes: At the edge, for what the optimizer keeps.
        activation_bytes: At the edge, for activations of a batch.
        share: Share of the samples that is sent.
        epoch_seconds: Seconds for an epoch, or `None`.

    Raises:
        TypeError, ValueError: If a value is of another form.
    """

    way: str
    name: str
    layer: str
    seconds: float
    edge_seconds: float
    link_seconds: float
    cloud_seconds: float
    bytes_up: float
    bytes_down: float
    parameter_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    share: float
    epoch_seconds: float | None = None

    def __post_init__(self):
        put(self, "way", one_of(WAYS))
        for name in ("name", "layer"):
            put(self, name, text)
        for name in (
            *("seconds", "edge_seconds", "link_seconds", "cloud_seconds"),
            *("bytes_up", "bytes_down", "share"),
        ):
            put(self, name, amount)
        for name in ("parameter_bytes", "optimizer_bytes", "activation_bytes"):
            put(self, name, count_from_0)
        if self.epoch_seconds is not None:
            put(self, "epoch_seconds", amount)

    @property
    def num_bytes(self):
        """Bytes over the link, both ways."""
        return self.bytes_up + self.bytes_down

    @property
    def edge_bytes(self):
        """Memory at the edge: weights, optimizer and activations."""
        return (
            self.parameter_bytes + self.optimizer_bytes + self.activation_bytes
        )

    @property
    def bottleneck(self):
        """What takes the most time: `"edge"`, `"link"` or `"cloud"`."""
        parts = {
            "edge": self.edge_seconds,
            "link": self.link_seconds,
            "cloud": self.cloud_seconds,
        }
        return max(parts, key=parts.get)


@dataclasses.dataclass(frozen=True)
class Plan(json_values.InFile):
    """Where to cut a model; see `ee.plan_cut`.

    Args:
        model: Name of the model.
        mode: `"infer"` or `"train"`.
        objective: `"seconds"` or `"bytes"`.
        batch_size: Samples in a batch.
        link: The `Link`.
        rows: A `PlanRow` for each cut, then for each reference.
        memory_limit: Bytes that the edge has, or `None`.
        exit_rates: Share of the samples that leaves at each exit, or `None`.
        notes: What figures rest on, as sentences.

    Raises:
        TypeError, ValueError: If a value is of another form.

    Example:

    ```python
    plan = ee.plan_cut(model, edge, cloud, link, exit_rates=(0.6, 0.2, 0.2))
    print(plan)
    print(plan.best.name, plan.advice)
    plan.save("plan.json")
    plan.plot("plan.png")
    ```
    """

    model: str
    mode: str
    objective: str
    batch_size: int
    link: Link
    rows: tuple
    memory_limit: float | None = None
    exit_rates: tuple | None = None
    notes: tuple = ()

    def __post_init__(self):
        put(self, "model", text)
        put(self, "mode", one_of(MODES))
        put(self, "objective", one_of(OBJECTIVES))
        put(self, "batch_size", count)
        put(self, "link", instance(Link))
        put_all(self, "rows", instance(PlanRow))
        put_all(self, "notes", text)
        if self.memory_limit is not None:
            put(self, "memory_limit", positive)
        if self.exit_rates is not None:
            put_all(self, "exit_rates", amount)
        if not self.rows:
            raise ValueError("Expected at least one row. Received: none.")

    @property
    def cuts(self):
        """The rows of the cuts, in the order in which they run."""
        return tuple(row for row in self.rows if row.way == CUT)

    @property
    def references(self):
        """The other rows: not cut, or with gradients that come back."""
        return tuple(row for row in self.rows if row.way != CUT)

    @property
    def best(self):
        """The row of the best cut; `None` if no cut fits the memory."""
        return self._least(self.cuts)

    @property
    def choice(self):
        """The best row of all, cut or not; `None` if none fits."""
        return self._least(self.rows)

    def _least(self, rows):
        rows = [row for row in rows if self.fits(row)]
        return min(rows, key=self.worth) if rows else None

    def worth(self, row):
        """What is to be least: a tuple, the objective first."""
        if self.objective == "bytes":
            return row.num_bytes, row.seconds
        return row.seconds, row.num_bytes

    def fits(self, row):
        """Whether a row keeps to the memory of the edge."""
        return self.memory_limit is None or row.edge_bytes <= self.memory_limit

    def row(self, name, way=None):
        """The row of a cut, or of a reference.

        Args:
            name: Name of the cut, or `"edge"` or `"cloud"`.
            way: `"split_learning"` for that at a cut, or `None`.

        Returns:
            A `PlanRow`.

        Raises:
            ValueError: If there is none.
        """
        for row in self.rows:
            if row.name == name and way in (None, row.way):
                return row
        names = ", ".join(dict.fromkeys(row.name for row in self.rows))
        raise ValueError(
            f"Expected one of {names}. Received: {json_values.shown(name)} "
            f"with way={way!r}."
        )

    def why(self, row):
        """Why a row is or is not the best cut, as text.

        Args:
            row: One of `rows`.

        Returns:
            Text.
        """
        return wording.why(self, row)

    @property
    def advice(self):
        """What to do, as one sentence."""
        return wording.advice(self)

    def plot(self, path=None):
        """Draws time, bytes and memory of every cut.

        Args:
            path: Where to save the picture (`.png`, `.svg`, `.pdf`), or
                `None`.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_earlyexit.planning import picture

        return picture.draw(self, path)

    def to_json(self):
        """The plan as JSON text, which `from_json` reads."""
        return wording.render(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, content):
        """Reads a plan from JSON; nothing in it is trusted.

        Args:
            content: Text or bytes that `to_json` made.

        Returns:
            A `Plan`.

        Raises:
            TypeError, ValueError: If it is too large, no such JSON, of
                another version, or says something that cannot be.
        """
        return cls(**wording.parse(content, cls, PlanRow))

    def __str__(self):
        return wording.table(self)


def one_of(values):
    """A check that a text is one of some."""

    def check(name, value):
        if not isinstance(value, str) or value not in values:
            raise ValueError(
                f"Expected `{name}` to be {' or '.join(map(repr, values))}. "
                f"Received: {json_values.shown(value)}."
            )
        return value

    return check

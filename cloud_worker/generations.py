"""What is served: bundles, each of which can be entered at its stages.

A generation is a bundle that was loaded. Requests name what they need by the
weights, the policy and the stage that they enter, so that a newer generation
can come while edges still work with an older one: those go on until nobody has
used them for a while.
"""

import collections
import contextlib
import dataclasses
import time

from cloud_worker.batching import Queue
from keras_earlyexit.bundle.answering import Bundle
from protos.identity import Identity, difference, differences, mismatch
from protos.limits import Limits


@dataclasses.dataclass(eq=False)
class Entrance:
    """A generation, entered at one of its stages.

    Args:
        identity: What an edge has to have to enter here.
        bundle: The `Bundle` that starts with this stage.
        limits: How much one request may hold.
        queue: The requests that wait.
        generation: The `Generation` that this belongs to.
    """

    identity: Identity
    bundle: Bundle
    limits: Limits
    queue: Queue
    generation: "Generation"


class Generation:
    """A loaded bundle with its entrances.

    Args:
        source: Where it was loaded from.
        bundle: A `Bundle`.
    """

    def __init__(self, source, bundle):
        self.source = source
        self.bundle = bundle
        self.entrances = {}
        self.in_flight = 0
        self.last_used = 0.0
        self.is_current = True

    @property
    def name(self):
        """Which weights and policy these are, without a stage."""
        identity = next(iter(self.entrances.values())).identity
        return identity.generation.rpartition(".")[0]


def build(source, bundle, *, max_message_bytes, max_batch, queue, raw_input):
    """A generation of a bundle, with an entrance for each stage.

    Args:
        source: Where it was loaded from.
        bundle: A `Bundle`.
        max_message_bytes: Bytes of the largest message; requests are allowed
            fewer rows where it would be larger. `None` sets no bound.
        max_batch: Rows of the largest request.
        queue: Makes an empty `Queue`.
        raw_input: Whether there is an entrance for the model's own input.

    Returns:
        A `Generation`.

    Raises:
        ValueError: If nothing of it can be entered.
    """
    generation = Generation(source, bundle)
    for entry in bundle.manifest.stages:
        if entry.index == 0 and not raw_input:
            continue
        if any(spec.dtype == "string" for spec in entry.inputs):
            continue
        generation.entrances[entry.index] = Entrance(
            identity=Identity.of(bundle.manifest, entry.index),
            bundle=bundle.from_stage(entry.index),
            limits=_limits(entry.inputs, max_batch, max_message_bytes),
            queue=queue(),
            generation=generation,
        )
    if not generation.entrances:
        raise ValueError(
            "Expected a bundle with a stage that takes features. Received: "
            f"{str(source)!r}, which only has the first stage, and takes raw "
            "input there. Give a later segment or an uncut bundle, or pass "
            "--allow-raw-input."
        )
    return generation


def _limits(specs, max_batch, max_message_bytes):
    for rows in range(max_batch, 0, -1):
        limits = Limits.for_specs(specs, rows)
        if (
            max_message_bytes is None
            or limits.max_message_bytes <= max_message_bytes
        ):
            return limits
    raise ValueError(
        f"Expected features of which one row fits a message of "
        f"{max_message_bytes} bytes. Received: "
        f"{[(spec.name, spec.shape, spec.dtype) for spec in specs]}. Start "
        "the worker again, so that it sets its limits anew."
    )


class Registry:
    """All generations that are served. To be used from one thread.

    Args:
        drain_s: Seconds without a request after which a generation that is
            no longer current is dropped.
        max_generations: How many of one source are kept at most.
        clock: Returns seconds that never go back.
    """

    def __init__(self, drain_s=60.0, max_generations=3, clock=time.monotonic):
        self._drain_s, self._max = drain_s, max_generations
        self._clock = clock
        # Of each source the newest generation is the last.
        self._by_source = collections.defaultdict(list)
        self._entrances = {}

    @property
    def generations(self):
        """All `Generation`s, of each source the oldest first."""
        return tuple(x for group in self._by_source.values() for x in group)

    @property
    def names(self):
        """What requests can name."""
        return tuple(self._entrances)

    def add(self, generation):
        """Makes a generation the current one of its source.

        Args:
            generation: A `Generation`.

        Returns:
            The generations that had to go.
        """
        group = self._by_source[generation.source]
        for older in group:
            older.is_current = False
        generation.last_used = self._clock()
        group.append(generation)
        gone = [group.pop(0) for _ in range(len(group) - self._max)]
        self._index()
        return gone

    def expire(self):
        """Drops the generations that nobody has used for `drain_s`.

        Returns:
            Those generations.
        """
        latest = self._clock() - self._drain_s
        gone = [
            x
            for x in self.generations
            if not x.is_current and not x.in_flight and x.last_used <= latest
        ]
        for generation in gone:
            self._by_source[generation.source].remove(generation)
        if gone:
            self._index()
        return gone

    def find(self, name):
        """What a request names.

        Args:
            name: The `generation` of an `Identity`.

        Returns:
            An `Entrance`.

        Raises:
            VersionMismatch: If it is not served, or not any more.
        """
        entrance = self._entrances.get(name)
        if entrance is None:
            served = ", ".join(self._entrances)
            raise mismatch([difference("generation", name[:256], served)])
        return entrance

    def match(self, identity):
        """What an edge can enter, or why it cannot.

        Args:
            identity: The `Identity` that the edge needs.

        Returns:
            `(entrance, differences)`: an `Entrance` and none, or `None` and
            what differs from the one that is closest.
        """
        entrance = self._entrances.get(identity.generation)
        candidates = [entrance] if entrance else self._entrances.values()
        found = [(differences(identity, x.identity), x) for x in candidates]
        # Of equally close ones, the newest.
        least, entrance = min(reversed(found), key=lambda pair: len(pair[0]))
        return (None, least) if least else (entrance, ())

    @contextlib.contextmanager
    def using(self, entrance):
        """Keeps a generation from being dropped while a request is at it."""
        generation = entrance.generation
        generation.in_flight += 1
        try:
            yield
        finally:
            generation.in_flight -= 1
            generation.last_used = self._clock()

    def _index(self):
        self._entrances = {
            entrance.identity.generation: entrance
            for current in (False, True)
            for generation in self.generations
            if generation.is_current is current
            for entrance in generation.entrances.values()
        }

"""Rounds in which the weights of several edges become their average.

No connection: vectors go in, and out comes what is for good. An offer counts
in the round that is open when it comes, once, whatever is sent again. A round
ends when everybody who is there has offered, or when its time is over: an
edge that is slow or gone holds nobody up for longer than that.
"""

import os
import time
from typing import NamedTuple

import numpy as np

from keras_earlyexit import snapshots
from protos.errors import Overloaded

NAME = "average"
_MAX_OPEN_BYTES = 2 << 30


class Offer(NamedTuple):
    """What an edge offers.

    Args:
        number: How many it has offered, this one included.
        samples: Samples that it has learned from since the last one.
        vector: Its weights, an array of float32.
    """

    number: int
    samples: int
    vector: np.ndarray


class Average(NamedTuple):
    """What came out of the last round.

    Args:
        round: Its number, from 1 on.
        vector: Array of float32, or `None` where too few took part.
        edges: How many took part.
        samples: Samples of all of them.
    """

    round: int
    vector: np.ndarray | None
    edges: int
    samples: int


class Rounds:
    """Gathers offers and averages them, weighted by their samples.

    Args:
        folder: Where the last average is kept.
        form: SHA-256 of the form of the weights; that of a file that is there
            has to be the same.
        quorum: Edges without which a round has no average.
        wait_s: Seconds after the first offer at which a round ends.
        clock: Returns seconds that never go back.

    Raises:
        DamagedSnapshot: If the file is not as it was written.
        ValueError: If it is of other weights.
    """

    def __init__(
        self, folder, form, quorum=1, wait_s=60.0, clock=time.monotonic
    ):
        self._path = os.path.join(folder, NAME)
        self._form, self._quorum = form, quorum
        self._wait_s, self._clock = wait_s, clock
        self._open, self._opened_at = {}, None
        #: Of each edge the last offer that counted.
        self._counted = {}
        self.last = Average(0, None, 0, 0)
        #: The last average that there was, for who joins; `None` without one.
        self.newest = None
        os.makedirs(folder, exist_ok=True)
        snapshots.remove_left_behind(self._path)
        if os.path.exists(self._path):
            self._read()

    def add(self, edge_id, offer):
        """Takes an offer.

        Args:
            edge_id: Whose it is.
            offer: An `Offer`.

        Returns:
            Whether to wait for the round that is open; not, if it has counted
            already.

        Raises:
            Overloaded: If there is no room for it in this round.
        """
        if offer.number <= self._counted.get(edge_id, 0):
            return False
        others = len(self._open.keys() - {edge_id})
        if (others + 1) * offer.vector.nbytes > _MAX_OPEN_BYTES:
            raise Overloaded(
                f"Expected at most {_MAX_OPEN_BYTES} bytes of weights in a "
                "round. Received: more edges. Start fewer, or average less "
                "often.",
                self._wait_s,
            )
        if self._opened_at is None:
            self._opened_at = self._clock()
        self._open[edge_id] = offer
        return True

    @property
    def ends_in_s(self):
        """Seconds until the time of the open round is over."""
        if self._opened_at is None:
            return self._wait_s
        return max(0.0, self._opened_at + self._wait_s - self._clock())

    def is_due(self, members):
        """Whether the round that is open ends now.

        Args:
            members: Ids of the edges that are there.
        """
        if not self._open:
            return False
        is_full = len(self._open) >= self._quorum
        return self.ends_in_s == 0 or (is_full and members <= set(self._open))

    def end(self):
        """Ends the round: its average is for good before anybody has it.

        Raises:
            OSError: If it cannot be written; the round is open then.
        """
        # By name, so that the sum does not hang on who came first.
        offers = [self._open[name] for name in sorted(self._open)]
        vector = None
        if len(offers) >= self._quorum:
            vector = _mean(offers)
        found = Average(
            self.last.round + 1,
            vector,
            len(offers),
            sum(offer.samples for offer in offers),
        )
        counted = {
            **self._counted,
            **{name: offer.number for name, offer in self._open.items()},
        }
        newest = self.newest if vector is None else vector
        snapshots.write(
            self._path,
            [] if newest is None else [newest],
            {
                "is_average": vector is not None,
                "form": self._form,
                "round": found.round,
                "edges": found.edges,
                "samples": found.samples,
                "counted": counted,
            },
        )
        self.last, self.newest, self._counted = found, newest, counted
        self._open, self._opened_at = {}, None

    def _read(self):
        arrays, facts = snapshots.read(self._path)
        if facts["form"] != self._form:
            raise ValueError(
                "Expected an average of the weights that are trained here. "
                f"Received: {self._path!r}, of others. Choose another folder."
            )
        self._counted = facts["counted"]
        self.newest = arrays[0] if arrays else None
        self.last = Average(
            facts["round"],
            self.newest if facts["is_average"] else None,
            facts["edges"],
            facts["samples"],
        )


def _mean(offers):
    """sum_i samples_i weights_i / sum_i samples_i, in double precision."""
    total = sum(offer.samples for offer in offers)
    mean = np.zeros(len(offers[0].vector))
    for offer in offers:
        mean += offer.vector * (offer.samples / total)
    return mean.astype("float32")

"""How long a model takes over two machines and the link between them.

With stages 0, ..., C, a cut behind stage k, batches of B samples, the share
r_j of them that reaches stage j, features of D bytes and a link of rate R and
round trip L:

- answering: sum_(j<=k) E t_edge(j, N_j) + (1 - (1 - r)^B) L + 8 B r D / R
  + sum_(j>k) E t_cloud(j, N_j), with r = r_(k+1) and N_j ~ Binomial(B, r_j);
- hierarchical training, pipelined: max(edge step, 8 s B D / R, cloud step) a
  batch with the share s sent up; one batch at a time: edge forward
  + max(rest of the edge step, L + 8 s B D / R + cloud step);
- classic split learning: edge forward + L + 8 B (D up + D down) / R + cloud
  step + rest of the edge step, since the edge waits for the gradient.

No Keras here: what the model is comes as `model_facts.ModelFacts`.
"""

import dataclasses
import itertools
import math

# Counts less likely than this do not matter to a mean.
_RARE = 1e-12


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each part of a batch, and bytes over the link."""

    edge: float
    link: float
    cloud: float
    bytes_up: float
    bytes_down: float


def expected(seconds_of, batch_size, share):
    """Mean seconds of a batch that each sample joins with some likelihood.

    Args:
        seconds_of: A function of a number of samples above 0.
        batch_size: Samples that may join.
        share: How likely each of them joins, by itself.

    Returns:
        A float; samples that nobody joins take no time.
    """
    if share <= 0:
        return 0.0
    if share >= 1:
        return seconds_of(batch_size)
    total = 0.0
    for rows in range(1, batch_size + 1):
        chance = math.exp(
            math.lgamma(batch_size + 1)
            - math.lgamma(rows + 1)
            - math.lgamma(batch_size - rows + 1)
            + rows * math.log(share)
            + (batch_size - rows) * math.log1p(-share)
        )
        if chance > _RARE:
            total += chance * seconds_of(rows)
    return total


def reached(exit_rates):
    """Share of the samples that reaches each stage."""
    found, left = [], 1.0
    for rate in exit_rates:
        found.append(max(0.0, left))
        left -= rate
    # What is left of 1 - 0.9 - 0.1 is no share.
    return [share if share > 1e-9 else 0.0 for share in found]


def answering(edge, cloud, link, batch_size, shares, cut, up, down):
    """`Times` to answer a batch.

    Args:
        edge: A `device_times.Device`.
        cloud: A `device_times.Device`.
        link: A `measured.Link`.
        batch_size: Samples in the batch.
        shares: What `reached` gives.
        cut: Number of the last stage at the edge; -1 for none.
        up: Bytes up for a sample that goes on.
        down: Bytes down for it.
    """

    last = len(shares) - 1

    def side(device, stages):
        # Stages that all the same samples reach run as one.
        return sum(
            expected(
                lambda rows, own=own: device.forward(own[0], own[-1], rows),
                batch_size,
                share,
            )
            for share, own in _runs(stages, shares)
        )

    share = 0.0 if cut == last else shares[cut + 1]
    sent = batch_size * share
    anybody = 1 - (1 - share) ** batch_size
    return Times(
        edge=side(edge, range(cut + 1)),
        link=anybody * link.round_trip_seconds
        + 8 * sent * (up + down) / link.bits_per_second,
        cloud=side(cloud, range(cut + 1, last + 1)),
        bytes_up=sent * up,
        bytes_down=sent * down,
    )


def _runs(stages, shares):
    """Stages behind each other of one share: pairs (share, stages)."""
    groups = itertools.groupby(stages, shares.__getitem__)
    return [(share, list(own)) for share, own in groups]


def hierarchical(edge, cloud, link, batch_size, share, cut, up, pipelined):
    """Seconds of a batch and of the first one alone, and its `Times`.

    Args:
        edge: A `device_times.Device`.
        cloud: A `device_times.Device`.
        link: A `measured.Link`.
        batch_size: Samples in the batch.
        share: Share of them that is sent up.
        cut: Number of the last stage at the edge; -1 trains all in the cloud,
            the number of the last stage trains all at the edge.
        up: Bytes up for a sample that is sent.
        pipelined: Whether the parts work on different batches meanwhile.
    """
    last = len(edge.stage_names) - 1
    sent = 0.0 if cut == last else share * batch_size
    times = Times(
        edge=edge.training(0, cut, batch_size),
        link=8 * sent * up / link.bits_per_second,
        cloud=cloud.training(cut + 1, last, sent),
        bytes_up=sent * up,
        bytes_down=0.0,
    )
    forward = edge.forward(0, cut, batch_size)
    there = times.link + times.cloud
    if sent:
        there += link.round_trip_seconds
    alone = forward + max(times.edge - forward, there)
    if not pipelined:
        if sent:
            waiting = link.round_trip_seconds
            times = dataclasses.replace(times, link=times.link + waiting)
        return alone, alone, times
    return max(times.edge, times.link, times.cloud), alone, times


def split_learning(edge, cloud, link, batch_size, cut, up, down):
    """Seconds of a batch, and its `Times`, as in `hierarchical`."""
    last = len(edge.stage_names) - 1
    times = Times(
        edge=edge.training(0, cut, batch_size),
        link=link.seconds(batch_size * (up + down)),
        cloud=cloud.training(cut + 1, last, batch_size),
        bytes_up=batch_size * up,
        bytes_down=batch_size * down,
    )
    return times.edge + times.link + times.cloud, times

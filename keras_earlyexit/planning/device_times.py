"""What a device's profile says of the stages of the model that is planned."""

import dataclasses

import numpy as np

from keras_earlyexit.cost.profiles import DeviceProfile

#: A training step takes this many forward passes where none was measured: one
#: forward, and one each for the gradients of activations and of weights.
FORWARD_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Device:
    """A device's profile, asked about the stages of a model.

    Args:
        profile: A `DeviceProfile`.
        stage_names: Names of the model's stages.
        stage_macs: Multiply-adds of each.
        by_macs: Whether seconds come from MACs, since the stages are others
            than those measured.
    """

    profile: DeviceProfile
    stage_names: tuple
    stage_macs: tuple
    by_macs: bool

    def forward(self, first, last, rows):
        """Seconds to run some stages on a batch; `last` is included."""
        if not rows or first > last:
            return 0.0
        if self.by_macs:
            macs = sum(self.stage_macs[first : last + 1])
            return self.profile.predicted_seconds(macs, rows)
        return sum(
            self.profile.seconds(name, rows)
            for name in self.stage_names[first : last + 1]
        )

    def training(self, first, last, rows):
        """Seconds of a training step of some stages on a batch."""
        if not rows or first > last:
            return 0.0
        forward = self.forward(first, last, rows)
        measured = self._measured(first, last, rows)
        if measured is None:
            return FORWARD_PASSES * forward
        return max(measured, forward)

    def has_trained(self, segments):
        """Whether the steps of some (first, last) stages were measured."""
        return all(self._measured(*ends, 1) is not None for ends in segments)

    def _measured(self, first, last, rows):
        if not self.by_macs:
            names = self.stage_names[first], self.stage_names[last]
            return self.profile.training_seconds(*names, rows)
        names = self.profile.stage_names
        whole = self.profile.training_seconds(names[0], names[-1], rows)
        if whole is None:
            return None
        part = sum(self.stage_macs[first : last + 1])
        return whole * part / max(1, sum(self.stage_macs))


def matched(which, profile, facts):
    """A profile made to answer for the stages of a model, or refused.

    Args:
        which: `"edge"` or `"cloud"`, for messages.
        profile: A `DeviceProfile`.
        facts: A `model_facts.ModelFacts`.

    Returns:
        A `Device`.

    Raises:
        ValueError: If the profile is of another model.
    """
    names, macs = profile.stage_names, [x.macs for x in profile.stages]
    known = None not in macs
    if facts.has_exits:
        fits = names == facts.stage_names and (
            not known or np.allclose(macs, facts.stage_macs, rtol=1e-9)
        )
    else:
        plain = macs[0] if len(macs) == 1 else None
        if profile.plain is not None:
            plain = profile.plain.macs
        fits = known and plain == sum(facts.stage_macs) > 0
    if not fits:
        shown = ", ".join(
            f"{name} ({'?' if size is None else size} MACs)"
            for name, size in zip(names, macs, strict=True)
        )
        wanted = ", ".join(
            f"{name} ({size} MACs)"
            for name, size in zip(
                facts.stage_names, facts.stage_macs, strict=True
            )
        )
        if not facts.has_exits:
            wanted = f"one of {sum(facts.stage_macs)} MACs"
        raise ValueError(
            f"Expected `{which}` to be a profile of {facts.name!r} as it is "
            f"now, with the stages {wanted}. Received: a profile of "
            f"{profile.name!r} with the stages {shown}. Measure this model: "
            "`ee.cost.profile(model)`."
        )
    by_macs = not facts.has_exits
    return Device(profile, facts.stage_names, facts.stage_macs, by_macs)


def notes(edge, cloud, batch_size, mode):
    """What of a plan was not measured, as a list of sentences.

    Args:
        edge: A `Device`.
        cloud: A `Device`.
        batch_size: Samples in a batch.
        mode: `"infer"` or `"train"`.
    """
    last = len(edge.stage_names) - 1
    first_parts = [(0, k) for k in range(last + 1)]
    last_parts = [(k, last) for k in range(last + 1)]
    said = {}
    for which, device, segments in (
        ("edge", edge, first_parts),
        ("cloud", cloud, last_parts),
    ):
        for sentence in _notes(device, batch_size, mode, segments):
            said.setdefault(sentence, []).append(which)
    return [
        f"{' and '.join(who).capitalize()}: {sentence}"
        for sentence, who in said.items()
    ]


def _notes(device, batch_size, mode, segments):
    sizes = device.profile.batch_sizes
    if batch_size > sizes[-1]:
        yield (
            f"batches of {batch_size} are taken in proportion to those of "
            f"{sizes[-1]}, the largest measured."
        )
    elif batch_size not in sizes:
        yield (
            f"batches of {batch_size} are interpolated; measured were "
            f"{', '.join(map(str, sizes))}."
        )
    if device.by_macs:
        yield (
            "seconds of the parts are estimated from their MACs, which can be "
            "wrong by a factor of two."
        )
    if mode == "train" and not device.has_trained(segments):
        yield (
            "training steps were not measured; they are taken as "
            f"{FORWARD_PASSES} times the forward pass. Measure with "
            "`ee.cost.profile(model, training=True)`."
        )

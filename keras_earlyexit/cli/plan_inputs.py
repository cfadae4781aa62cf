"""What `keras-earlyexit plan` is given: a link, sizes, shares, profiles."""

import re

from keras_earlyexit.cli.models import check_output
from keras_earlyexit.cli.shared import CommandError, ExitCode, check_package

_RATE = re.compile(r"([0-9.]+) ?(|k|M|G)bit/s(?::([0-9.]+) ?(us|ms|s))?")
_SIZE = re.compile(r"([0-9.]+) ?(|k|M|G)(i?)B")
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 0.0}
_TRAINING_BATCH = 32
_PICTURES = (".png", ".svg", ".pdf")


def parse_link(text):
    """A link from text such as `10Mbit/s:20ms`."""
    from keras_earlyexit.cost.measured import Link

    match = _RATE.fullmatch(text.strip())
    try:
        rate, prefix, trip, unit = match.groups()
        bits = float(rate) * 1000 ** _POWERS[prefix]
        return Link(bits, float(trip or 0) * _SECONDS[unit])
    except (AttributeError, ValueError) as error:
        raise CommandError(
            "Expected a link as its rate and its round trip, such as "
            f"10Mbit/s:20ms. Received: {text!r}. Rates are in bit/s, kbit/s, "
            "Mbit/s or Gbit/s, times in us, ms or s.",
            ExitCode.USAGE,
        ) from error


def parse_size(text):
    """Bytes from text such as `64MB`, or `None`."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    try:
        number, prefix, binary = match.groups()
        base = 1024 if binary else 1000
        return float(number) * base ** _POWERS[prefix]
    except (AttributeError, ValueError) as error:
        raise CommandError(
            "Expected a size such as 64MB or 64MiB. Received: "
            f"{text!r}. Units are B, kB, MB and GB.",
            ExitCode.USAGE,
        ) from error


def parse_rates(text):
    """Shares of the exits from text such as `0.6,0.2,0.2`, or `None`."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CommandError(
            "Expected shares between commas, such as 0.6,0.2,0.2. Received: "
            f"{text!r}.",
            ExitCode.USAGE,
        ) from error


def parse_forward(text):
    """What is sent to train on: a share, or a name."""
    try:
        return float(text)
    except ValueError:
        # `plan_cut` knows the names.
        return text


def check_picture(path):
    """Refuses a place where no picture can be written."""
    check_package("matplotlib", "--plot")
    if path.suffix not in _PICTURES:
        raise CommandError(
            f"Expected --plot to end in one of {', '.join(_PICTURES)}. "
            f"Received: '{path}'.",
            ExitCode.USAGE,
        )
    check_output(path, path.suffix)


def sizes_for(mode, batch_size):
    """Batch sizes that are measured, if a device is."""
    if mode == "train":
        return (batch_size or _TRAINING_BATCH,)
    return tuple(sorted({1, batch_size or 1}))


def stand_in(model, sizes):
    """A profile that was not measured, to check everything else with."""
    from keras_earlyexit.cost.measured import Timing
    from keras_earlyexit.cost.profiles import DeviceProfile
    from keras_earlyexit.planning import model_facts

    facts = model_facts.read(model)
    macs = dict(zip(facts.stage_names, facts.stage_macs, strict=True))
    if not facts.has_exits:
        macs = {facts.stage_names[-1]: sum(facts.stage_macs)}
    stages = [
        Timing(name, [1.0] * len(sizes), macs=count)
        for name, count in macs.items()
    ]
    return DeviceProfile(facts.name, sizes, stages)


def read_profile(path):
    """The profile of a device from its file, or `None`."""
    if path is None:
        return None
    from keras_earlyexit.cost.profiles import DeviceProfile

    try:
        return DeviceProfile.load(path)
    except (OSError, TypeError, ValueError) as error:
        raise CommandError(
            f"'{path}' is no profile of a device: {error} On the device, "
            "`keras-earlyexit bench model.keras -o profile.json` writes one.",
            ExitCode.INPUT,
        ) from error

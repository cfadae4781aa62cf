"""Chooses where to cut a model, from what devices and a link were measured to.

`formulas.py` has the formulas, `model_facts.py` reads the model, and
`plans.py` is what comes out.
"""

import math
import numbers

import keras
import numpy as np

from keras_earlyexit.cost.measured import Link, amount, count, positive
from keras_earlyexit.cost.profiles import DeviceProfile
from keras_earlyexit.planning import device_times, formulas, model_facts
from keras_earlyexit.planning.planner import Planner
from keras_earlyexit.planning.plans import MODES, OBJECTIVES, Plan, one_of

#: Share of those who leave that `forward="non_exited"` sends all the same.
LEAVERS_SENT = 0.25


def plan_cut(
    model,
    edge,
    cloud,
    link,
    exit_rates=None,
    mode="infer",
    *,
    batch_size=None,
    objective="seconds",
    memory_limit=None,
    bytes_per_element=None,
    input_bytes=None,
    forward="all",
    samples=None,
    pipelined=True,
    optimizer="adam",
):
    """Predicts seconds, bytes and memory for every cut, and chooses the best.

    An `EarlyExitModel` is cut at its exits, any other model at every legal
    cut. To answer, samples that stay go up as features and come back as
    answers; to train, features and labels go up, both sides train at the same
    time, and nothing comes back (hierarchical training). What it is compared
    with: all at the edge, all in the cloud (raw inputs go up) and, for
    training, gradients that come back (split learning).

    Seconds are those of the profiles. What they say nothing of is estimated,
    and `plan.notes` tells: other batch sizes by interpolation, other stages
    than those measured by their MACs, and training steps that were not
    measured as three times the forward pass. What workers do besides
    (serialising, queues, compression) is not in it.

    Args:
        model: An `EarlyExitModel`, or a functional or `Sequential` model.
        edge: `DeviceProfile` of this model at the edge.
        cloud: The same in the cloud. For an `EarlyExitModel` both have its
            stages; for another model also profiles of it with exits do.
        link: The `ee.cost.Link` between them.
        exit_rates: Share of the samples that leaves at each exit, `final`
            last, such as `result.exit_shares(n)`; `None`: nobody leaves early.
        mode: `"infer"` or `"train"`.
        batch_size: Samples in a batch; `None`: 1 to answer, and the largest
            that the edge's profile has to train.
        objective: What is to be least, `"seconds"` or `"bytes"`.
        memory_limit: Bytes that the edge has for weights, optimizer and
            activations, or `None`.
        bytes_per_element: Bytes of a number of a feature on the link, after
            the codec: 1 for 8 bits, less with a measured compression. `None`:
            as the model computes it.
        input_bytes: Bytes of a raw sample on the link; `None`: one for each
            number, as 8-bit data has it.
        forward: Training samples that are sent: `"all"`, a share above 0, or
            `"non_exited"` for those that `exit_rates` says stay, and a quarter
            of those who leave.
        samples: Training samples in an epoch, or `None`.
        pipelined: Whether the parts work on different batches at the same
            time when they train, or on one batch after the other.
        optimizer: Keras optimizer of the edge, whose memory counts: its name,
            or an object.

    Returns:
        A `Plan`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a profile is of another model, if rates are not those of
            its exits, or if an option cannot be.

    Example:

    ```python
    edge = ee.cost.DeviceProfile.load("edge.json")
    cloud = ee.cost.DeviceProfile.load("cloud.json")
    link = ee.cost.Link(bits_per_second=10e6, round_trip_seconds=0.02)
    shares = model.predict_exits(x).exit_shares(len(model.exit_names))
    plan = ee.plan_cut(model, edge, cloud, link, exit_rates=shares)
    print(plan)
    print(plan.advice)
    ```

    Reference:
        Sepehri et al., Hierarchical Training of Deep Neural Networks Using
        Early Exiting, IEEE TNNLS 2024, arXiv 2303.02384, for the idea to
        choose the cut by a model of the run time. The formulas are ours.
    """
    one_of(MODES)("mode", mode)
    one_of(OBJECTIVES)("objective", objective)
    _check_kind("edge", edge, DeviceProfile, "ee.cost.profile(model)")
    _check_kind("cloud", cloud, DeviceProfile, "ee.cost.profile(model)")
    _check_kind("link", link, Link, "ee.cost.Link(10e6, 0.02)")
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Expected a Keras model. Received: "
            f"{model!r} (of type {type(model).__name__}). For a bundle pass "
            "the model that it was made of."
        )
    facts = model_facts.read(model)
    if batch_size is None:
        batch_size = 1 if mode == "infer" else edge.batch_sizes[-1]
    batch_size = count("batch_size", batch_size)
    rates = _checked_rates(exit_rates, facts)
    devices = [
        device_times.matched(name, profile, facts)
        for name, profile in (("edge", edge), ("cloud", cloud))
    ]
    notes = []
    if bytes_per_element is not None:
        bytes_per_element = positive("bytes_per_element", bytes_per_element)
    if input_bytes is None:
        input_bytes = facts.input_bytes
        notes.append(
            f"A raw sample is taken as {input_bytes} bytes, 8 bits for each "
            "number."
        )
    planner = Planner(
        facts,
        *devices,
        link,
        batch_size,
        formulas.reached(rates or [0.0] * len(facts.cuts) + [1.0]),
        [_feature_bytes(cut, bytes_per_element) for cut in facts.cuts],
        amount("input_bytes", input_bytes),
    )
    if mode == "infer":
        if facts.has_exits and rates is None:
            notes.append("Without exit rates: nobody leaves early.")
        rows = planner.infer()
    else:
        if not facts.has_exits:
            notes.append(
                "The exit that each cut would need, to train the edge, is "
                "not counted."
            )
        steps = None
        if samples is not None:
            steps = math.ceil(count("samples", samples) / batch_size)
        shares = _shares(forward, planner.reached, rates)
        slots = _optimizer_slots(optimizer)
        rows = planner.train(shares, slots, bool(pipelined), steps)
    return Plan(
        model=facts.name,
        mode=mode,
        objective=objective,
        batch_size=batch_size,
        link=link,
        rows=rows,
        memory_limit=memory_limit,
        exit_rates=rates,
        notes=[*device_times.notes(*devices, batch_size, mode), *notes],
    )


def _check_kind(name, value, kind, how):
    if not isinstance(value, kind):
        raise TypeError(
            f"Expected `{name}` to be a {kind.__name__}. Received: "
            f"{name}={value!r} (of type {type(value).__name__}). Make one "
            f"with `{how}`."
        )


def _checked_rates(rates, facts):
    """Exit rates as floats that sum to 1, or `None`."""
    if rates is None:
        return None
    received = (
        f"Received: exit_rates={rates!r} (of type {type(rates).__name__})"
    )
    if not facts.has_exits:
        raise ValueError(
            "Expected no exit rates for a model without exits, in which all "
            f"samples go on at every cut. {received}. Add exits with "
            "`ee.add_exits`, or leave the rates out."
        )
    names = facts.stage_names
    try:
        found = np.asarray(rates, "float64")
    except (TypeError, ValueError):
        found = None
    if found is None or found.shape != (len(names),):
        raise ValueError(
            f"Expected `exit_rates` to have a number for each of "
            f"{', '.join(names)}. {received}. Take "
            f"`result.exit_shares({len(names)})` of `predict_exits`."
        )
    if not ((found >= 0).all() and abs(found.sum() - 1) <= 1e-3):
        raise ValueError(
            "Expected `exit_rates` to be shares of all samples, at least 0, "
            f"that sum to 1. {received}, which sums to {found.sum():g}."
        )
    return tuple((found / found.sum()).tolist())


def _feature_bytes(cut, bytes_per_element):
    each = bytes_per_element or cut.element_bytes
    return cut.elements * each + cut.other_bytes


def _shares(forward, reached, rates):
    """Share of the samples that is sent, for each cut."""
    if forward == "all":
        return [1.0] * (len(reached) - 1)
    if forward == "non_exited":
        if rates is None:
            raise ValueError(
                "Expected `exit_rates` to tell who stays. Received: "
                "forward='non_exited' (of type str) without. Pass "
                "`exit_rates=result.exit_shares(n)`, or forward='all'."
            )
        return [share + LEAVERS_SENT * (1 - share) for share in reached[1:]]
    real = isinstance(forward, numbers.Real) and not isinstance(forward, bool)
    if not real or not 0 < forward <= 1:
        raise ValueError(
            "Expected `forward` to be 'all', 'non_exited' or a share above 0 "
            f"and at most 1. Received: forward={forward!r} (of type "
            f"{type(forward).__name__})."
        )
    return [float(forward)] * (len(reached) - 1)


def _optimizer_slots(optimizer):
    """Numbers that an optimizer keeps for each weight."""
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    _check_kind(
        "optimizer", optimizer, keras.optimizers.Optimizer, "keras.optimizers"
    )
    # A copy: the user's own is built for another model.
    copied = type(optimizer).from_config(optimizer.get_config())
    weight = keras.Variable(np.zeros((64, 64), "float32"))
    copied.build([weight])
    kept = [v for v in copied.variables if len(v.shape)]
    return sum(math.prod(v.shape) for v in kept) / math.prod(weight.shape)

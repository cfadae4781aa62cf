"""The segment that an edge trains, out of what it is given."""

import keras_earlyexit as ee


def first_segment(model, cut, base, optimizer):
    """The compiled first segment of a model.

    Args:
        model: An `EarlyExitModel`, or a `SegmentModel` that is compiled and
            not the last one, which is taken as it is.
        cut, base, optimizer: As in `EdgeTrainer`, for an `EarlyExitModel`.

    Returns:
        A `SegmentModel`.

    Raises:
        TypeError: If `model` is neither.
        ValueError: If it is not compiled, the last one, or not cut.
    """
    if isinstance(model, ee.EarlyExitModel):
        if cut is None:
            raise ValueError(
                "Expected the name of an early exit as `cut`. Received: "
                f"cut=None. Choose one of {', '.join(model.exit_names[:-1])}."
            )
        model = ee.split(model, cut, base)[0]
        model.compile(optimizer)
    if not isinstance(model, ee.SegmentModel):
        raise TypeError(
            "Expected an EarlyExitModel or a SegmentModel. Received: "
            f"{model!r} (of type {type(model).__name__}). Make one with "
            "`ee.add_exits`."
        )
    if model.is_last or model.optimizer is None:
        raise ValueError(
            "Expected a segment that is compiled and not the last one. "
            f"Received: '{model.name}'. Compile the first of `ee.split(...)`."
        )
    return model

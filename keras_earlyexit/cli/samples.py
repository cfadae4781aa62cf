"""The samples that `--data` and its companions stand for."""

from keras_earlyexit.cli.shared import CommandError, ExitCode, mendable


def load(data, *, model=None, shape=None, **options):
    """As `sources.load`, for a model that is there, or for none yet.

    Args:
        data: What `--data` says.
        model: A Keras model, which the samples have to fit; or `None`.
        shape: Shape of one input; `None`: the model's.
        **options: Further arguments of `sources.load`.

    Returns:
        `sources.Samples`.
    """
    from keras_earlyexit import sources

    wanted = input_shape(model)
    with mendable():
        samples = sources.load(data, input_shape=shape or wanted, **options)
    check_fit(model, samples.x)
    return samples


def load_labelled(data, *, model, **options):
    """As `load`, of the split test by default, with labels that fit the model.

    Args:
        data: What `--data` says.
        model: A model with a `head`, which samples and labels have to fit.
        **options: Further arguments of `sources.load`.

    Returns:
        `sources.Samples`, as arrays.
    """
    samples = load(data, model=model, default_split="test", **options)
    if samples.y is None:
        raise CommandError(
            "Expected data with labels as arrays. Received: "
            f"'{data}', which brings {type(samples.x).__name__}.",
            ExitCode.INPUT,
        )
    # It imports Keras.
    from keras_earlyexit.checks import check_data

    with mendable():
        check_data(model.head, samples.x, samples.y)
    return samples


def input_shape(model):
    """Shape of one input of a model, or `None` where that is not one shape."""
    shape = getattr(getattr(model, "net", model), "input_shape", None)
    return shape[1:] if isinstance(shape, tuple) else None


def check_fit(model, x):
    """Refuses arrays that are no inputs of a model."""
    import numpy as np

    wanted = input_shape(model)
    if wanted is None or not isinstance(x, np.ndarray):
        return
    # A column is what Keras makes of a vector.
    found = x.shape[1:] or (1,)
    if len(found) != len(wanted) or any(
        size not in (None, there)
        for size, there in zip(wanted, found, strict=True)
    ):
        raise CommandError(
            f"Expected samples of shape {wanted}, as '{model.name}' takes "
            f"them. Received: samples of shape {found}.",
            ExitCode.INPUT,
        )


def parse_sizes(text):
    """Batch sizes from text such as `1,32,256`."""
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise CommandError(
            "Expected numbers of at least 1 between commas, such as 1,32,256. "
            f"Received: {text!r}.",
            ExitCode.USAGE,
        )
    return sizes

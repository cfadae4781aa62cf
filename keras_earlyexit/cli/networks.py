"""The network that `--model` and `--exits` describe."""

import inspect
import pathlib
import re

import numpy as np

from keras_earlyexit import sources
from keras_earlyexit.cli.models import load_model
from keras_earlyexit.cli.shared import CommandError, ExitCode, mendable

_BACKBONE = re.compile(r"(resnet|eenet8)_?(\d+)")
_PARAMETERS = ("input_shape", "num_classes")
_HOW = (
    "Give a .keras file, module:function, or one of ours: resnet20 (for small "
    "images; 32, 44, 56, 110), eenet8_4 (4 filters)."
)


def make_alone(text):
    """The model that `--model` stands for, or `None` if it depends on data.

    Args:
        text: A `.keras` file; `module:function`, called with what its
            parameters `input_shape` and `num_classes` ask for; or the name of
            a backbone with its size.

    Returns:
        A Keras model, or `None`: `make_for` then makes it.
    """
    if text.endswith(".keras") or pathlib.Path(text).exists():
        return load_model(text)
    if not sources.is_function(text):
        if not _BACKBONE.fullmatch(text):
            raise CommandError(
                f"Expected a model. Received: {text!r}. {_HOW}", ExitCode.INPUT
            )
        return None
    maker, wanted = _function(text)
    return None if wanted else _called(text, maker, {})


def make_for(text, samples):
    """The model that `--model` stands for, if it depends on data.

    Args:
        text: As in `make_alone`.
        samples: The `sources.Samples` that it is for.

    Returns:
        A Keras model.
    """
    known = {"input_shape": _input_shape, "num_classes": _num_classes}
    if sources.is_function(text):
        maker, wanted = _function(text)
        return _called(text, maker, {x: known[x](samples) for x in wanted})
    import keras_earlyexit as ee

    kind, size = _BACKBONE.fullmatch(text).groups()
    maker = {
        "resnet": ee.backbones.resnet_cifar,
        "eenet8": ee.backbones.eenet8,
    }[kind]
    with mendable():
        return maker(int(size), _input_shape(samples), _num_classes(samples))


def with_exits(model, exits, placement, block, policy, task):
    """Gives a model exits, unless it has some.

    Args:
        model: A Keras model.
        exits: A number, or names or fractions between commas, as text; `None`
            leaves those that are there, or takes 2.
        placement: As in `ee.add_exits`.
        block: The same.
        policy: The same.
        task: The same.

    Returns:
        An `EarlyExitModel`.
    """
    import keras_earlyexit as ee

    if isinstance(model, ee.EarlyExitModel):
        if exits is not None:
            raise CommandError(
                f"Expected a model without exits for --exits {exits}. "
                f"Received: '{model.name}', which has "
                f"{', '.join(model.exit_names)}. Leave out --exits.",
                ExitCode.USAGE,
            )
        if policy is not None:
            with mendable(ExitCode.USAGE):
                model.policy = policy
        return model
    with mendable():
        return ee.add_exits(
            model,
            parse_exits(exits or "2"),
            placement=placement,
            block=block,
            policy=policy,
            task=task,
        )


def parse_exits(text):
    """A count, or a list of names or of fractions, from the text for them."""
    if text.isdecimal():
        return int(text)
    parts = [part.strip() for part in text.split(",")]
    try:
        return [float(part) for part in parts]
    except ValueError:
        return parts


def _function(text):
    """A function, and which of the parameters that we know it has."""
    with mendable():
        maker = sources.function(text)
    parameters = inspect.signature(maker).parameters
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind
        not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if not set(needed) <= set(_PARAMETERS):
        raise CommandError(
            "Expected a function without parameters, or with `input_shape` "
            f"and `num_classes`. Received: {text!r}, which needs "
            f"{', '.join(needed)}. Write one that calls it.",
            ExitCode.INPUT,
        )
    return maker, [name for name in _PARAMETERS if name in parameters]


def _called(text, maker, arguments):
    import keras

    model = maker(**arguments)
    if not isinstance(model, keras.Model):
        raise CommandError(
            f"Expected {text!r} to return a Keras model. Received: "
            f"{model!r:.80} (of type {type(model).__name__}).",
            ExitCode.INPUT,
        )
    return model


def _input_shape(samples):
    shape = getattr(samples.x, "shape", None)
    if shape is None:
        raise CommandError(
            "Expected arrays, to tell the shape of the inputs. Received: data "
            f"of type {type(samples.x).__name__}. Give a .keras file, or a "
            "function without parameters, as --model.",
            ExitCode.INPUT,
        )
    return tuple(shape[1:])


def _num_classes(samples):
    if samples.class_names is not None:
        return len(samples.class_names)
    labels = np.asarray(samples.y)
    if labels.dtype.kind not in "iub" or not labels.size:
        raise CommandError(
            "Expected labels 0, 1, ..., to tell the number of classes. "
            f"Received: labels of type {labels.dtype}. Give a .keras file, or "
            "a function without parameters, as --model.",
            ExitCode.INPUT,
        )
    one_hot = labels.ndim > 1 and labels.shape[-1] > 1
    return labels.shape[-1] if one_hot else int(labels.max()) + 1

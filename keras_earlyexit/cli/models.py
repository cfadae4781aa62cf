"""Models as files: read with care, written whole or not at all."""

import difflib
import math
import os
import pathlib
import zipfile

from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    import_keras,
)


def load_model(path, compiled=False):
    """Loads a `.keras` file, or says what is wrong with it.

    Args:
        path: The file.
        compiled: Whether to bring optimizer and objective along, which are
            there only if the model was compiled when it was saved.

    Returns:
        A Keras model.
    """
    path = pathlib.Path(path)
    how = "Give a file that `model.save('name.keras')` wrote."
    if not path.exists():
        raise CommandError(f"There is no file '{path}'. {how}", ExitCode.INPUT)
    if path.is_dir():
        kind = "a bundle" if (path / "manifest.json").exists() else "a folder"
        raise CommandError(f"'{path}' is {kind}. {how}", ExitCode.INPUT)
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise CommandError(
            f"'{path}' is not a Keras model in the .keras format. {how}",
            ExitCode.INPUT,
        )
    keras = import_keras()
    try:
        with hushed():
            return keras.models.load_model(path, compile=compiled)
    except Exception as error:
        reason = str(error).partition("Full object config")[0].strip()
        raise CommandError(
            f"Keras cannot load '{path}': it may hold layers that are neither "
            "Keras' own nor keras_earlyexit's, or code, which this command "
            f"never runs.\n{type(error).__name__}: {reason}",
            ExitCode.INPUT,
        ) from error


def load_model_with_exits(path, compiled=False):
    """As `load_model`, for a model that has exits."""
    model = load_model(path, compiled)
    import keras_earlyexit as ee

    if not isinstance(model, ee.EarlyExitModel):
        raise CommandError(
            f"Expected a model with exits. Received: '{path}', a "
            f"{type(model).__name__} without. Give it some with "
            f"`keras-earlyexit train --model {path} --exits 2`.",
            ExitCode.INPUT,
        )
    return model


def check_output(path, suffix=None, *, overwrite=True):
    """Refuses a place that cannot be written to, before anything long starts.

    Args:
        path: The file or folder that is going to be written.
        suffix: What its name has to end in, such as `".keras"`.
        overwrite: Whether something may be there.
    """
    folder = pathlib.Path(os.path.abspath(path)).parent
    if suffix is not None and path.suffix != suffix:
        raise CommandError(
            f"Expected an output that ends in {suffix}. Received: '{path}'.",
            ExitCode.USAGE,
        )
    if not folder.is_dir():
        why = f"there is no folder '{folder}'"
    elif not os.access(folder, os.W_OK):
        why = f"the folder '{folder}' may not be written to"
    elif suffix is not None and path.is_dir():
        why = "it is a folder"
    elif not overwrite and os.path.lexists(path):
        why = "it exists; --overwrite takes its place"
    else:
        return
    raise CommandError(f"Cannot write '{path}': {why}.", ExitCode.INPUT)


def save_model(model, path):
    """Saves a model; the file that was there stays until it is complete."""
    from keras_earlyexit.snapshots import save_model

    try:
        with hushed():
            save_model(model, path)
    except OSError as error:
        raise CommandError(
            f"'{path}' cannot be written: {error.strerror or error}.",
            ExitCode.INPUT,
        ) from error


def make_optimizer(name, learning_rate=None):
    """An optimizer of Keras from what `--optimizer` and its rate say."""
    import keras

    kinds = {
        kind.lower(): kind
        for kind in dir(keras.optimizers)
        if isinstance(getattr(keras.optimizers, kind), type)
        and kind not in ("Optimizer", "LossScaleOptimizer")
    }
    if name.lower() not in kinds:
        close = difflib.get_close_matches(name.lower(), kinds, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise CommandError(
            f"Expected an optimizer: {', '.join(sorted(kinds))}. Received: "
            f"{name!r}.{hint}",
            ExitCode.USAGE,
        )
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise CommandError(
            "Expected --learning-rate to be a number above 0. Received: "
            f"{learning_rate}.",
            ExitCode.USAGE,
        )
    config = {} if learning_rate is None else {"learning_rate": learning_rate}
    return getattr(keras.optimizers, kinds[name.lower()])(**config)

"""Trains the exit blocks of all candidates, once."""

import keras
import numpy as np

from keras_earlyexit.calibration import Fingerprints, fingerprints_of
from keras_earlyexit.inputs import as_inputs, is_arrays
from keras_earlyexit.model import EarlyExitModel
from keras_earlyexit.tuning import candidates as candidates_module
from keras_earlyexit.tuning.store import Store, key_of, weights_key


def train_candidates(
    model,
    x,
    y=None,
    *,
    candidates=12,
    block="pool",
    policy="max_probability",
    objective="branchynet",
    regime="disjoint",
    epochs=5,
    batch_size=128,
    optimizer="adam",
    directory=None,
    verbose="auto",
):
    """Hangs an exit on every place that may be worth one, and trains them all.

    With the regime `"disjoint"` the plain model stays as it is, so that each
    exit is as good as if it were the only one, and configurations compare as
    they would when built alone. With `"joint"` the exits share the training of
    the backbone: better early exits, but those that are not chosen in the end
    have had a say.

    Args:
        model: A functional or `Sequential` Keras model, trained for
            `"disjoint"`. Its layers are shared.
        x: Training samples, as `fit` takes them.
        y: Labels, or `None` if `x` brings them.
        candidates: How many places at most, taken evenly over the MACs of all
            block ends, or a list of layer names.
        block: An exit block, or a list of them; each is tried at each place
            that it fits.
        policy: How exits are scored; one that looks at earlier exits
            (`"patience"`) cannot be searched with.
        objective: The training objective, without layers of its own.
        regime: `"disjoint"`, `"joint"` or `"mixed"`.
        epochs: Number of epochs.
        batch_size: Samples in a batch, for arrays.
        optimizer: A Keras optimizer or its name.
        directory: Folder that keeps what is trained, so that another call
            with the same model, arrays and options goes on or returns at
            once; `None` keeps nothing. Datasets are not looked into: take
            another folder for another one.
        verbose: As in `fit`.

    Returns:
        An `EarlyExitModel` with all candidates, for `search_exits`.

    Raises:
        TypeError, ValueError: As in `ee.add_exits` and `fit`, or if there is
            no place for an exit.

    Example:

    ```python
    trained = ee.tuning.train_candidates(plain, x, y, epochs=3)
    found = ee.tuning.search_exits(trained, x_search, y_search)
    ```
    """
    made = candidates_module.attach(model, candidates, block, policy)
    optimizer = keras.optimizers.get(optimizer)

    def train(folder):
        made.compile(optimizer, objective, regime=regime)
        callbacks = []
        if folder is not None:
            callbacks.append(keras.callbacks.BackupAndRestore(str(folder)))
        of_arrays = {"batch_size": batch_size} if is_arrays(x) else {}
        made.fit(
            x,
            y,
            epochs=epochs,
            callbacks=callbacks,
            verbose=verbose,
            **of_arrays,
        )
        return made

    key = None
    if directory is not None:
        key = key_of(
            weights_key(model),
            made.exit_layers,
            *map(_text, _own(made)),
            *map(_text, (made.policy, objective, regime)),
            # Its name says which optimizer of the process it is.
            type(optimizer).__name__,
            {**optimizer.get_config(), "name": None},
            epochs,
            batch_size,
            *_data(made, x, y),
        )
    trained = Store(directory).model(key, train)
    if trained.training_fingerprints is None:
        trained.training_fingerprints = Fingerprints(capacity=2**16)
    return trained


def _own(model):
    """The layers that the exits have brought."""
    return [
        call.operation
        for calls in model.exit_graph.blocks
        for call in calls
        if isinstance(call.operation, keras.Layer)
    ]


def _text(thing):
    if isinstance(thing, str):
        return thing
    return repr(keras.saving.serialize_keras_object(thing))


def _data(model, x, y):
    """What is known of training data: hashes of arrays, or their kind."""
    if not is_arrays(x):
        return [type(x).__name__, repr(getattr(x, "element_spec", None))]
    found = [fingerprints_of(as_inputs(x, model.net.input))]
    if y is not None:
        found.append(np.asarray(keras.ops.convert_to_numpy(y)))
    return found


def check_searchable(model):
    """Refuses models whose exits depend on which others there are.

    Raises:
        TypeError: If it has no exits.
        ValueError: If its policy or its objective looks at earlier exits, or
            if it answers with values.
    """
    if not isinstance(model, EarlyExitModel):
        raise TypeError(
            "Expected a model with trained exits, or `train=(x, y)` to train "
            f"them with. Received: {model!r} (of type "
            f"{type(model).__name__}) and train=None."
        )
    shape = model.exit_graph.heads[0][0].shape[1:]
    if model.policy.carry_shape(tuple(shape)) is not None:
        raise ValueError(
            "Expected a policy that scores each exit by itself. Received: "
            f"{model.policy!r}, whose scores depend on the exits in front, so "
            "that they say nothing of other choices. Use 'max_probability', "
            "'entropy', 'margin' or 'learned'."
        )
    refiners = [r for r in model.exit_graph.refiners if r is not None]
    if refiners:
        raise ValueError(
            "Expected exits that answer by themselves. Received: a model "
            f"trained with layers between its exits ({refiners[0].name}). Use "
            "an objective without, such as 'branchynet'."
        )
    if model.head.task == "regression":
        raise ValueError(
            "Expected a classifier, whose accuracy can be weighed against "
            "cost. Received: a model that answers with values."
        )

"""What a model's head says: classes, labels or values, and in which form.

A `Head` describes the answer that every exit gives. It is read off the plain
model's own head, so that the early exits answer in the same form.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

TASKS = ("classification", "multilabel", "regression")


@dataclasses.dataclass(frozen=True)
class Head:
    """The form of a model's answers.

    Args:
        units: Number of classes, labels or values (the last axis).
        activation: `"softmax"`, `"sigmoid"` or `"linear"`, as in the model.
        task: `"classification"`, `"multilabel"` or `"regression"`.
        positions: Shape of the positions that have an answer each, such as
            (height, width) or (tokens,), with `None` for a size that is open;
            `()` for one answer per sample.
    """

    units: int
    activation: str
    task: str
    positions: tuple = ()

    def __post_init__(self):
        # A saved model brings a list.
        object.__setattr__(self, "positions", tuple(self.positions))

    @property
    def from_logits(self):
        """Whether answers are logits rather than probabilities."""
        return self.task != "regression" and self.activation == "linear"

    def probabilities(self, prediction):
        """Class probabilities (batch, ..., classes) of a prediction.

        Each label of a multi-label head becomes a position with two classes,
        so that one definition of a score serves both: the result is then
        (batch, ..., labels, 2).

        Args:
            prediction: Tensor (batch, ..., units) in the head's own form.

        Returns:
            A tensor whose last axis sums to 1.

        Raises:
            ValueError: If the head is a regression head.
        """
        if self.task == "regression":
            raise ValueError(
                "Expected a classification or multilabel head: a regression "
                "head has no class probabilities. Received a head with "
                f"{self.units} values. Use the policy 'learned'."
            )
        if self.task == "classification":
            if self.from_logits:
                return ops.softmax(prediction, axis=-1)
            return prediction
        if self.from_logits:
            prediction = ops.sigmoid(prediction)
        return ops.stack([prediction, 1.0 - prediction], axis=-1)

    def classes(self, prediction):
        """Answers of a prediction: class numbers, 0/1 labels or values."""
        if self.task == "regression":
            return prediction
        if self.task == "classification":
            return ops.argmax(prediction, axis=-1)
        return ops.cast(
            prediction > (0.0 if self.from_logits else 0.5), "int32"
        )

    def check_labels(self, y):
        """Refuses labels that cannot belong to this head.

        Args:
            y: Array of labels of all samples. For classes integers (batch,
                positions...) or (batch, positions..., 1), or one-hot (batch,
                positions..., units); otherwise (batch, positions..., units).

        Raises:
            ValueError: If the shape, the type or the range of the labels is
                wrong, or if there is NaN among them.
        """
        y = np.asarray(y)
        if y.dtype.kind in "OSUM":
            raise ValueError(
                "Expected labels as numbers. Received: y with shape "
                f"{y.shape} and dtype {y.dtype}. Number the classes from 0."
            )
        bare = _fits(y, self.positions)
        whole = _fits(y, (*self.positions, self.units))
        if self.task == "classification" and not (whole and self.units > 1):
            if not bare and not _fits(y, (*self.positions, 1)):
                raise self._wrong_shape(y)
            self._check_classes(y)
        elif not whole and not (bare and self.units == 1):
            raise self._wrong_shape(y)
        elif y.size:
            self._check_values(y)

    def _wrong_shape(self, y):
        whole = _shape_text(*self.positions, self.units)
        expected = f"y of shape {whole}, one value for each unit of the head"
        if self.task == "classification":
            expected = (
                f"integer labels of shape {_shape_text(*self.positions)} or "
                f"{_shape_text(*self.positions, 1)}, or one-hot labels of "
                f"shape {whole}"
            )
        hint = ""
        if y.ndim > 2 and not self.positions:
            hint = (
                " If the model answers at every position, its head must say "
                "so: `Head(..., positions=(height, width))`."
            )
        return ValueError(
            f"Expected {expected}. Received: y with shape {y.shape} and dtype "
            f"{y.dtype}.{hint}"
        )

    def _check_classes(self, y):
        if not y.size:
            return
        low, high = y.min(), y.max()
        if low < 0 or high >= self.units or not np.all(y == np.round(y)):
            raise ValueError(
                f"Expected integer labels from 0 to {self.units - 1}, for a "
                f"head with {self.units} classes. Received: labels from {low} "
                f"to {high} (dtype {y.dtype}). Renumber the labels, or give "
                "the model as many units as there are classes."
            )

    def _check_values(self, y):
        low, high = y.min(), y.max()
        if np.isnan(low):
            rows = np.isnan(y).reshape(len(y), -1).any(axis=1)
            raise ValueError(
                "Expected labels without NaN. Received: y of shape "
                f"{y.shape} with NaN in its rows "
                f"{np.flatnonzero(rows)[:5].tolist()} (the first ones). Drop "
                "these samples, or fill them in."
            )
        if self.task == "multilabel" and (low < 0 or high > 1):
            raise ValueError(
                "Expected multi-label targets between 0 and 1. Received: "
                f"values from {low} to {high}."
            )

    def get_config(self):
        return dataclasses.asdict(self)


def infer_head(model, graph, task=None):
    """Reads the form of a model's answers off its last operations.

    Args:
        model: The Keras model, for the loss that it may be compiled with.
        graph: Its `call_graph.CallGraph`.
        task: What the user says it is, or `None`.

    Returns:
        A `Head`.

    Raises:
        ValueError: If `task` is unknown, contradicts the head, or is needed
            because the head is linear and the model's loss does not tell.
    """
    if task is not None and task not in TASKS:
        raise ValueError(
            f"Expected `task` to be one of {', '.join(TASKS)}, or None. "
            f"Received: task={task!r}."
        )
    output = graph.outputs
    while isinstance(output, (list, tuple, dict)):
        (output,) = keras.tree.flatten(output)
    activation = _activation(graph, output)
    _check_axis(graph, output)
    task = task or _task_of(activation) or _task_of_loss(model)
    if task is None:
        raise ValueError(
            f"Expected to see what the head of '{model.name}' answers: it "
            "ends without softmax or sigmoid, and the model is not compiled "
            "with a loss that says `from_logits=True`. Say so: "
            "`add_exits(model, task='classification')` for logits, "
            "'multilabel' for one logit per label, or 'regression'."
        )
    allowed = {
        "classification": ("softmax", "linear"),
        "multilabel": ("sigmoid", "linear"),
        "regression": ("linear", "sigmoid"),
    }[task]
    if activation not in allowed:
        raise ValueError(
            f"Expected a head that ends in {' or '.join(allowed)} for "
            f"task={task!r}. Received: a head that ends in {activation}. "
            "Leave `task` out to take what the head says."
        )
    return Head(
        units=output.shape[-1],
        activation=activation,
        task=task,
        positions=output.shape[1:-1],
    )


def _fits(y, axes):
    """Whether an array has some axes behind the batch; `None` fits any size."""
    return y.ndim == 1 + len(axes) and all(
        wanted in (None, size)
        for wanted, size in zip(axes, y.shape[1:], strict=True)
    )


def _shape_text(*axes):
    """A shape for a message: `(batch,)`, `(batch, 8, any)`."""
    sizes = ["any" if size is None else str(size) for size in axes]
    return f"({', '.join(['batch', *sizes])}{'' if axes else ','})"


def _activation(graph, output):
    """Name of the activation that an output tensor comes out of."""
    call = _call_behind(graph, output)
    operation = call.operation
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    function = getattr(operation, "activation", None)
    name = getattr(function, "__name__", type(operation).__name__).lower()
    if name in ("softmax", "sigmoid"):
        return name
    if _hands_on(operation) or (
        isinstance(operation, keras.layers.Activation) and name == "linear"
    ):
        inputs = call.inputs
        if len(inputs) == 1 and any(
            tensor is inputs[0]
            for other in graph.calls
            for tensor in other.outputs
        ):
            return _activation(graph, inputs[0])
    return "linear"


def _call_behind(graph, output):
    return next(
        call
        for call in reversed(graph.calls)
        if any(tensor is output for tensor in call.outputs)
    )


def _check_axis(graph, output):
    """Refuses a softmax over positions, as in a model with channels first."""
    operation = _call_behind(graph, output).operation
    axis = getattr(operation, "axis", -1)
    if type(operation).__name__ == "Softmax" and axis not in (
        -1,
        len(output.shape) - 1,
    ):
        raise ValueError(
            "Expected a head with the classes on its last axis. Received: "
            f"'{operation.name}', a softmax over axis={axis!r} of answers of "
            f"shape {output.shape}. Bring the classes to the end, as with "
            "`keras.layers.Permute`."
        )


def _hands_on(operation):
    """Whether what comes out has the form of what goes in."""
    kind = type(operation).__name__
    if kind.startswith("UpSampling"):
        # Others overshoot: their results are no probabilities any more.
        how = getattr(operation, "interpolation", "nearest")
        return how in ("nearest", "bilinear")
    return kind.startswith("Cropping") or kind in (
        "Reshape",
        "Flatten",
        "Permute",
        "Dropout",
        "Cast",
        "Identity",
    )


def _task_of(activation):
    return {"softmax": "classification", "sigmoid": "multilabel"}.get(
        activation
    )


def _task_of_loss(model):
    """The task of a linear head, from the loss the model is compiled with."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, str):
        name = loss.lower().replace("_", "")
        squared = ("mse", "mae", "meansquarederror", "meanabsoluteerror")
        return "regression" if name in squared else None
    if not isinstance(loss, keras.losses.Loss):
        return None
    if getattr(loss, "from_logits", False):
        binary = isinstance(
            loss,
            (
                keras.losses.BinaryCrossentropy,
                keras.losses.BinaryFocalCrossentropy,
            ),
        )
        return "multilabel" if binary else "classification"
    values = (
        keras.losses.MeanSquaredError,
        keras.losses.MeanAbsoluteError,
        keras.losses.Huber,
        keras.losses.LogCosh,
    )
    return "regression" if isinstance(loss, values) else None

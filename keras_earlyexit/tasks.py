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
    """

    units: int
    activation: str
    task: str

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
            y: Numpy array of labels of all samples.

        Raises:
            ValueError: If the shape or the range of the labels is wrong.
        """
        y = np.asarray(y)
        if self.task == "classification":
            self._check_classes(y)
            return
        width = y.shape[-1] if y.ndim > 1 else 1
        if width != self.units:
            raise ValueError(
                f"Expected y of shape (batch, {self.units}), one value for "
                f"each unit of the head. Received: y with shape {y.shape}."
            )
        if self.task == "multilabel" and y.size:
            low, high = y.min(), y.max()
            if low < 0 or high > 1:
                raise ValueError(
                    "Expected multi-label targets between 0 and 1. Received: "
                    f"values from {low} to {high}."
                )

    def _check_classes(self, y):
        one_hot = y.ndim > 1 and y.shape[-1] == self.units and self.units > 1
        integers = y.ndim == 1 or (y.ndim == 2 and y.shape[-1] == 1)
        if one_hot:
            return
        if not integers:
            raise ValueError(
                "Expected integer labels of shape (batch,) or (batch, 1), or "
                f"one-hot labels of shape (batch, {self.units}). Received: y "
                f"with shape {y.shape} and dtype {y.dtype}."
            )
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

    def get_config(self):
        return dataclasses.asdict(self)


def infer_head(model, graph, task=None):
    """Reads the form of a model's answers off its last operations.

    Args:
        model: The Keras model, for the loss that it may be compiled with.
        graph: Its `surgery.Graph`.
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
    return Head(units=output.shape[-1], activation=activation, task=task)


def _activation(graph, output):
    """Name of the activation that an output tensor comes out of."""
    call = next(
        call
        for call in reversed(graph.calls)
        if any(tensor is output for tensor in call.outputs)
    )
    operation = call.operation
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    function = getattr(operation, "activation", None)
    name = getattr(function, "__name__", type(operation).__name__).lower()
    if name in ("softmax", "sigmoid"):
        return name
    passes_on = ("Reshape", "Flatten", "Dropout", "Cast", "Identity")
    if type(operation).__name__ in passes_on or (
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

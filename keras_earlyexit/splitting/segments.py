"""Segments of a cut model that are trained apart, each from its own exits.

A segment is a Keras model of its own, to be trained on another machine than
the others: it has its own exits, their costs, a loss over these and an
optimizer. It remembers what it was cut from, so that `ee.merge` can put all
segments together again.
"""

import dataclasses
import functools
from typing import NamedTuple

import keras
import numpy as np

from keras_earlyexit import objectives, policies
from keras_earlyexit.checks import FiniteLoss, check_data
from keras_earlyexit.compiling import Untracked
from keras_earlyexit.exit_graph import FINAL_CONFIDENCE, confidence_name
from keras_earlyexit.fusing import fused_network
from keras_earlyexit.metrics import ExitMetrics
from keras_earlyexit.policies import score_of
from keras_earlyexit.stages import FEATURE
from keras_earlyexit.tasks import Head

_OUTPUTS = "outputs"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a segment was cut from: plain values, the same in all segments.

    Args:
        name: Name of the model.
        network: Name of its network.
        exit_names: Names of all its exits, `final` last.
        cuts: Names of the exits that segments end with.
        relative_costs: Cost of leaving at each of its exits.
        policy: Config of its policy.
        has_given_policy: Whether the policy was chosen by hand.
        cost: Cost convention.
        measured_cost: Fields of its `MeasuredCost`, or `None`.
        weights_sha256: SHA-256 over its weights when it was cut.
    """

    name: str
    network: str
    exit_names: tuple
    cuts: tuple
    relative_costs: tuple
    policy: dict
    has_given_policy: bool
    cost: str
    measured_cost: dict | None
    weights_sha256: str

    def __post_init__(self):
        # A saved model brings lists.
        for name in ("exit_names", "cuts", "relative_costs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


class Learned(NamedTuple):
    """What came out of one training step.

    Args:
        logs: Loss and metrics of this batch, a dict of floats.
        outputs: What the segment gave before the step, a dict of arrays.
    """

    logs: dict
    outputs: dict


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class SegmentModel(keras.Model):
    """One segment of a cut model, trained from its own exits; see `ee.split`.

    `segment(x)` gives a dict with the answers of its exits and, but in the
    last segment, `feature`, which the next one takes.

    Args:
        net: A functional Keras model with these outputs.
        head: The form of the answers, a `tasks.Head`.
        base: The objective over the segment's exits.
        origin: What it was cut from, an `Origin`.
        position: Which segment it is, from 0 on.
        name: Name of the model; `None` takes the network's.
    """

    _exit_metrics = None
    _training_network = None

    def __init__(self, net, head, base, origin, position, name=None, **kwargs):
        super().__init__(name=name or net.name, **kwargs)
        self.net = net
        self.head = head
        self.base = objectives.get(base)
        self.origin = origin
        self.position = position
        self._learning_function = None
        self._hands_out = False
        if FINAL_CONFIDENCE in net.output:
            layer = net.get_layer(FINAL_CONFIDENCE)
            layer.trainable = self.base.uses_final_confidence
        self.built = True

    @property
    def exit_names(self):
        """Names of its own exits, as in the whole model."""
        names = self.origin.exit_names
        return tuple(name for name in names if name in self.net.output)

    @property
    def relative_costs(self):
        """Cost of leaving at each of its exits, over the plain model's."""
        costs = dict(
            zip(self.origin.exit_names, self.origin.relative_costs, strict=True)
        )
        return np.array([costs[name] for name in self.exit_names])

    @property
    def is_last(self):
        """Whether it ends with `final`, so that it gives no feature."""
        return FEATURE not in self.net.output

    @property
    def policy(self):
        """How the exits of the whole model were scored when it was cut.

        Made anew each time: thresholds are set on the model, before `split`.
        """
        return policies.get(self.origin.policy)

    def agreement(self, position):
        """What two segments have to have in common to be trained together.

        Args:
            position: That of the later one of the two.

        Returns:
            A dict that JSON can hold, the same on both sides: what they were
            cut from, the objective, what crosses between them, and the form
            of the labels.
        """
        crossing = self.net.input
        if position == self.position + 1:
            crossing = self.net.output[FEATURE]
        names, cut = self.origin.exit_names, self.origin.cuts[position - 1]
        is_class = self.head.task == "classification"
        labels = (None, *self.head.positions)
        return {
            "origin": dataclasses.asdict(self.origin),
            "base": keras.saving.serialize_keras_object(self.base),
            "head": self.head.get_config(),
            "first_stage": names.index(cut) + 1,
            "feature": [FEATURE, list(crossing.shape), _wide(crossing.dtype)],
            "labels": [
                "labels",
                list(labels if is_class else (*labels, self.head.units)),
                "int32" if is_class else "float32",
            ],
        }

    def call(self, inputs, training=None):
        net = self.net
        if training and self._training_network is not None:
            net = self._training_network.network
        outputs = dict(net(inputs, training=training))
        if not self.base.uses_final_confidence:
            outputs.pop(FINAL_CONFIDENCE, None)
        return outputs

    def compile(
        self,
        optimizer="rmsprop",
        metrics=None,
        *,
        weighted_metrics=None,
        **options,
    ):
        """Configures training; the loss is that of the base objective.

        Args:
            optimizer: A Keras optimizer or its name.
            metrics: Metrics for every exit; `None` is accuracy, or the mean
                absolute error for values.
            weighted_metrics: The same, weighted by `sample_weight`.
            **options: As in `keras.Model.compile`.
        """
        super().compile(optimizer=optimizer, **options)
        self._training_network = Untracked(network=fused_network(self.net))
        # Also before the first step: it is saved with the model, whole.
        self.optimizer.build(self.trainable_variables)
        self._exit_metrics = ExitMetrics(
            self, self.base, metrics, weighted_metrics
        )
        self._learning_function = None
        self._own_compile_config = {
            "optimizer": self.optimizer,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            **options,
        }

    def learn(self, x, y, sample_weight=None):
        """One training step on one batch.

        Args:
            x: What the segment takes: the model's inputs, or a feature.
            y: Labels.
            sample_weight: Array (batch,) or `None`.

        Returns:
            A `Learned`: the outputs are those that the step was made from.
        """
        # A step that hands out arrays is another one than that of `fit`.
        before = self.train_function, self.train_step
        self.train_step = functools.partial(type(self).train_step, self)
        self.train_function = self._learning_function
        self._hands_out = True
        try:
            logs = self.train_on_batch(x, y, sample_weight, return_dict=True)
            self._learning_function = self.train_function
        finally:
            self._hands_out = False
            self.train_function, self.train_step = before
        found = logs.pop(_OUTPUTS)
        names = [name for name in self.net.output if name in self._names()]
        outputs = {
            name: keras.ops.convert_to_numpy(value)
            for name, value in zip(names, found, strict=True)
        }
        return Learned({k: float(v) for k, v in logs.items()}, outputs)

    def scores(self, outputs):
        """Exit scores of this segment's early exits.

        Args:
            outputs: What the segment gave, a dict of arrays.

        Returns:
            Dict of exit name to array (batch,), in the order of the exits.
        """
        policy, carry, found = self.policy, None, {}
        early = self.origin.exit_names[:-1]
        for name in self.exit_names:
            if name not in early:
                continue
            score, carry = score_of(
                policy,
                self.head,
                outputs[name],
                outputs[confidence_name(name)],
                carry,
                early.index(name),
            )
            found[name] = keras.ops.convert_to_numpy(score)
        return found

    def leaving(self, outputs, scores=None):
        """Which samples leave at one of this segment's early exits.

        Args:
            outputs: What the segment gave, a dict of arrays.
            scores: What `scores` gave for these, if that is known.

        Returns:
            Array of booleans (batch,).
        """
        if scores is None:
            scores = self.scores(outputs)
        early = self.origin.exit_names[:-1]
        thresholds = dict(
            zip(early, self.policy.thresholds(len(early)), strict=True)
        )
        return np.any(
            [score > thresholds[name] for name, score in scores.items()],
            axis=0,
        )

    def fit(self, x=None, y=None, *args, callbacks=None, **kwargs):
        """Trains this segment alone; see `keras.Model.fit`.

        Raises:
            ValueError: If labels do not fit the head, if inputs contain NaN,
                or if the loss becomes NaN.
        """
        check_data(self.head, x, y)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = callbacks if isinstance(callbacks, (list, tuple)) else ()
            if callbacks is not None and not given:
                given = [callbacks]
            callbacks = [*given, FiniteLoss()]
        return super().fit(x, y, *args, callbacks=callbacks, **kwargs)

    @property
    def metrics(self):
        metrics = super().metrics
        if self._exit_metrics is None:
            return metrics
        return [*metrics, *self._exit_metrics.of_training()]

    def reset_metrics(self):
        # `learn` has its own step do it, see `compute_loss`.
        if not self._hands_out:
            super().reset_metrics()

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The base objective's loss over the segment's exits."""
        if self._hands_out:
            # Compiled; a call each from outside takes longer than they do.
            super().reset_metrics()
        names = [confidence_name(name) for name in self.exit_names]
        confidences = [y_pred[name] for name in names if name in y_pred]
        parts = self.base.of_answers(
            y,
            [y_pred[name] for name in self.exit_names],
            confidences,
            list(self.relative_costs),
            sample_weight=sample_weight,
        )
        for name, metric in self._exit_metrics.parts.items():
            metric.update_state(parts[name], keras.ops.shape(y)[0])
        # As in `ExitTraining`: a gradient of zero, and not none at all.
        unused = sum(keras.ops.sum(value) for value in confidences)
        return parts["loss"] + 0.0 * unused + sum(self.losses)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics of every exit."""
        self._exit_metrics.update_exits(y, y_pred, sample_weight)
        logs = self.get_metrics_result()
        if self._hands_out:
            names = [name for name in self.net.output if name in self._names()]
            logs[_OUTPUTS] = tuple(y_pred[name] for name in names)
        return logs

    def _names(self):
        """The outputs that a call gives."""
        names = set(self.net.output)
        if not self.base.uses_final_confidence:
            names.discard(FINAL_CONFIDENCE)
        return names

    def get_config(self):
        return {
            "name": self.name,
            "net": keras.saving.serialize_keras_object(self.net),
            "head": self.head.get_config(),
            "base": keras.saving.serialize_keras_object(self.base),
            "origin": dataclasses.asdict(self.origin),
            "position": self.position,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        net = keras.saving.deserialize_keras_object(
            config["net"], custom_objects=custom_objects
        )
        return cls(
            net,
            Head(**config["head"]),
            config["base"],
            Origin(**config["origin"]),
            config["position"],
            name=config["name"],
        )

    def get_compile_config(self):
        if self._exit_metrics is None:
            return {}
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in self._own_compile_config.items()
        }

    def compile_from_config(self, config):
        self.compile(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )


def _wide(dtype):
    """The type of features between machines: half precision stays at home."""
    is_float = keras.backend.is_float_dtype(dtype)
    return "float32" if is_float else keras.backend.standardize_dtype(dtype)

"""What every training objective has: options, a call, and where it is found."""

import keras
from keras import ops

from keras_earlyexit.objectives.terms import terms_for
from keras_earlyexit.registry import Registry


class Objective:
    """A training objective over all exits. Subclasses define `parts`.

    `loss = prediction_loss + cost_weight * cost_loss + confidence_loss`

    Args:
        cost_weight: Weight of the cost of inference, the papers' lambda.
        task: `"classification"`, `"multilabel"` or `"regression"`.
        from_logits: Whether predictions are logits.
        loss: Base loss per exit (a Keras loss or its name), for objectives
            that take one; `None` is the task's own.

    Attributes:
        name: The objective's name, as `ee.objectives.get` takes it.
        policy: Name of the policy that goes with it.
        trains_confidence: Whether the confidence branches get a gradient.
        counts_cost: Whether the loss depends on the costs.
        uses_final_confidence: Whether `final` needs a confidence too.
        uses_exit_tags: Whether each training sample carries an exit tag.
        part_names: The parts it returns beside `loss`.
        regime: Which parts of the network it trains, unless `compile` is told;
            see `ee.regimes`.
        rates: Factors of the learning rate by the name of a group, see
            `groups`.
        states: Numbers that change while it trains, a list of `State`.
    """

    name = None
    policy = "max_probability"
    trains_confidence = False
    counts_cost = True
    uses_final_confidence = False
    uses_exit_tags = False
    part_names = ("prediction_loss", "cost_loss")
    regime = "joint"
    rates = {}
    states = ()

    def __init__(
        self,
        cost_weight=1.0,
        task="classification",
        from_logits=False,
        loss=None,
    ):
        if not cost_weight >= 0:
            raise ValueError(
                "Expected `cost_weight` to be a number of 0 or more. "
                f"Received: cost_weight={cost_weight!r}."
            )
        self.cost_weight = float(cost_weight)
        self.task = task
        self.from_logits = from_logits
        self.loss = loss
        self.terms = terms_for(task, from_logits, loss)

    def threshold(self, num_early_exits):
        """The threshold of the policy that goes with it; `None`: its own."""
        return None

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        """The parts of the loss: a dict of scalars by `part_names`."""
        raise TypeError(f"{type(self).__name__} does not define `parts`.")

    def refiners(self, model):
        """Layers that this objective wants behind the exit blocks.

        Args:
            model: The `EarlyExitModel` that is compiled.

        Returns:
            E + 1 `refining.Refiner` or `None`.
        """
        return [None] * len(model.exit_names)

    def prepare(self, net):
        """The network to train in place of `net`, with the same layers.

        For gradients that take another way than answers do: stopped at some
        place, or scaled.

        Args:
            net: A functional Keras model with exits.

        Returns:
            A functional Keras model with the same inputs and outputs.
        """
        return net

    def attach(self, model):
        """Gets ready to train a model; called at the end of `compile`."""

    def groups(self, model):
        """Variables that are trained apart, or `None` if all are one group.

        Args:
            model: The `EarlyExitModel` that is compiled.

        Returns:
            Dict of lists of variables by name. Each group gets an optimizer of
            its own (`optimizers.CompositeOptimizer`), and can be turned off.
        """
        return None

    def callbacks(self, model):
        """Callbacks that `fit` adds for this objective."""
        return []

    def answers(self, predictions):
        """What the exits answer, from what their blocks and the head say.

        Where the answers are made of more (see `refiners`), a model has done
        so already; this is for calls with the bare predictions.
        """
        return predictions

    def __call__(
        self,
        y_true,
        predictions,
        confidences,
        costs,
        *,
        sample_weight=None,
        exit_tags=None,
    ):
        """The loss of a batch.

        Args:
            y_true: Labels: integers (batch,) or (batch, 1), or one-hot.
            predictions: E + 1 tensors (batch, classes).
            confidences: E or E + 1 tensors (batch, 1).
            costs: E + 1 relative costs.
            sample_weight: Tensor (batch,) or `None`.
            exit_tags: Integer tensor (batch,), the exit that each sample is
                trained at, for objectives that use tags.

        Returns:
            A dict of scalar tensors: `loss`, `prediction_loss`, `cost_loss`
            (before `cost_weight`) and `confidence_loss`.

        Raises:
            ValueError: If labels are missing or shaped wrongly, or if there
                are not enough confidences.
        """
        if y_true is None:
            raise ValueError(
                f"Objective {self.name!r} needs labels. Received: y_true=None. "
                "Pass `fit(x, y)`, or a dataset that yields (x, y)."
            )
        return self.of_answers(
            y_true,
            self.answers([as_float(p) for p in predictions]),
            confidences,
            costs,
            sample_weight=sample_weight,
            exit_tags=exit_tags,
        )

    def of_answers(
        self,
        y_true,
        predictions,
        confidences,
        costs,
        *,
        sample_weight=None,
        exit_tags=None,
    ):
        """As a call, on predictions that the refiners have seen."""
        predictions = [as_float(p) for p in predictions]
        dtype = predictions[-1].dtype
        confidences = [ops.cast(h, dtype) for h in confidences]
        self._check_counts(predictions, confidences, costs)
        y = self.terms.labels(ops.convert_to_tensor(y_true), predictions[-1])
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, dtype)
            sample_weight = ops.reshape(sample_weight, (-1,))
        if exit_tags is not None:
            exit_tags = ops.cast(ops.reshape(exit_tags, (-1,)), "int32")
        costs = [ops.convert_to_tensor(cost, dtype=dtype) for cost in costs]
        parts = self.parts(
            y, predictions, confidences, costs, sample_weight, exit_tags
        )
        zero = ops.zeros((), dtype=dtype)
        result = {
            name: parts.get(name, zero)
            for name in ("prediction_loss", "cost_loss", "confidence_loss")
        }
        result["loss"] = (
            result["prediction_loss"]
            + self.cost_weight * result["cost_loss"]
            + result["confidence_loss"]
        )
        return result

    def of_final(
        self,
        y_true,
        predictions,
        confidences,
        costs,
        *,
        sample_weight=None,
        exit_tags=None,
    ):
        """The base loss of `final` alone, as long as only the backbone learns.

        Arguments and result are those of a call.
        """
        prediction = as_float(predictions[-1])
        y = self.terms.labels(ops.convert_to_tensor(y_true), prediction)
        (loss,) = self.losses(y, [prediction])
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, loss.dtype)
            sample_weight = ops.reshape(sample_weight, (-1,))
        loss, zero = mean(loss, sample_weight), ops.zeros((), loss.dtype)
        return {
            "loss": loss,
            "prediction_loss": loss,
            "cost_loss": zero,
            "confidence_loss": zero,
        }

    def losses(self, y, predictions):
        """The base loss of every exit, per sample: E + 1 tensors (batch,)."""
        return [
            self.terms.loss(y, self.terms.term(y, prediction))
            for prediction in predictions
        ]

    def for_head(self, head, loss=None):
        """A copy of this objective for a model's head and base loss."""
        config = {
            **self.get_config(),
            "task": head.task,
            "from_logits": head.from_logits,
        }
        if loss is not None:
            config["loss"] = loss
        return type(self).from_config(config)

    def _check_counts(self, predictions, confidences, costs):
        exits = len(predictions) - 1
        wanted = exits + self.uses_final_confidence
        if len(confidences) < wanted or len(costs) != exits + 1:
            raise ValueError(
                f"Objective {self.name!r} expects, for {exits + 1} "
                f"predictions, {wanted} confidences and {exits + 1} costs. "
                f"Received: {len(confidences)} confidences and {len(costs)} "
                "costs."
            )

    def get_config(self):
        loss = self.loss
        if loss is not None and not isinstance(loss, str):
            loss = keras.losses.serialize(loss)
        return {
            "cost_weight": self.cost_weight,
            "task": self.task,
            "from_logits": self.from_logits,
            "loss": loss,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}(cost_weight={self.cost_weight})"


def as_float(prediction):
    """A prediction as float32, or float64 where it is that already."""
    prediction = ops.convert_to_tensor(prediction)
    if keras.backend.standardize_dtype(prediction.dtype) == "float64":
        return prediction
    return ops.cast(prediction, "float32")


def mean(values, weight):
    """Mean over the batch of values (batch,), weighted as Keras does it."""
    return ops.mean(values if weight is None else values * weight)


_registry = Registry("objective", Objective)
register = _registry.register


def get(identifier, **options):
    """Finds a training objective.

    Args:
        identifier: A name such as `"eenet_v2"`, an `Objective`, or a config as
            `keras.saving.serialize_keras_object` writes it.
        **options: Passed to the objective, such as `cost_weight=`.

    Returns:
        An `Objective`, called as `objective(y_true, predictions, confidences,
        costs, *, sample_weight=None, exit_tags=None)`; see
        `Objective.__call__`.

    Raises:
        ValueError: For a name that does not exist.
        TypeError: If `identifier` is none of these.

    Example:

    ```python
    objective = ee.objectives.get("eenet_v1", cost_weight=0.7)
    ```
    """
    return _registry.get(identifier, **options)

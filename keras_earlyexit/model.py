"""The early-exit model: what it consists of, answers, saves and shows."""

import dataclasses

import keras

from keras_earlyexit import exit_graph, policies, stages, surgery
from keras_earlyexit.compiling import ExitCompiling
from keras_earlyexit.cost.costing import ExitCosting
from keras_earlyexit.cost.measured import MeasuredCost
from keras_earlyexit.evaluating import ExitEvaluation
from keras_earlyexit.routing import Router
from keras_earlyexit.tasks import Head
from keras_earlyexit.training import ExitTraining, fingerprints

_FINGERPRINTS = "training_fingerprints"


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class EarlyExitModel(
    ExitCompiling, ExitTraining, ExitEvaluation, ExitCosting, keras.Model
):
    """A Keras model that can answer at several depths; see `ee.add_exits`.

    `model(x)` gives every exit's answer, a flat dict `exit_0`,
    `exit_0_confidence`, ..., `final`. `predict` gives each sample's answer at
    the exit that its policy lets it leave at, and skips the work behind it.

    Args:
        net: A functional Keras model with these outputs.
        head: The form of the answers, a `tasks.Head`.
        policy: A policy, its name or config; `None`: the objective's own.
        cost: Cost convention, `"macs"` or `"eenets"`.
        name: Name of the model; `None` takes the network's.

    Raises:
        ValueError: If an output is missing, or an exit hangs on more than one
            tensor.

    Example:

    ```python
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    prediction, confidence = ee.ExitBlock(10)(x)
    x = keras.layers.Conv2D(32, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        "exit_0": prediction,
        "exit_0_confidence": confidence,
        "final": keras.layers.Dense(10, activation="softmax")(x),
    }
    head = ee.tasks.Head(10, "softmax", "classification")
    model = ee.EarlyExitModel(keras.Model(inputs, outputs), head)
    ```
    """

    #: `calibration.Fingerprints` of the arrays that `fit` was given, saved with
    #: the weights, so that `ee.calibrate` can tell training samples.
    training_fingerprints = None

    def __init__(
        self, net, head, policy=None, cost="macs", name=None, **kwargs
    ):
        super().__init__(name=name or net.name, **kwargs)
        self.head = head
        self.cost = cost
        self.net = None
        self.set_network(net)
        self.set_policy(
            policies.get("learned" if policy is None else policy),
            given=policy is not None,
        )
        self.built = True

    def set_network(self, net):
        """Puts another network in the place of the present one.

        Args:
            net: A functional Keras model with the same exits.
        """
        surgery.replace_layer(self, "net", net)
        self._exits = exit_graph.read(net)
        self.set_costs()

    @property
    def exit_graph(self):
        """The network taken apart at its exits, an `exit_graph.ExitGraph`."""
        return self._exits

    @property
    def exit_names(self):
        """Names of the exits, `("exit_0", ..., "final")`."""
        return self._exits.names

    @property
    def exit_layers(self):
        """Names of the layers that the early exits hang on: (E,)."""
        return self._exits.layers

    @property
    def policy(self):
        """How exits are scored. Set it by object, name or config."""
        return self._policy

    @policy.setter
    def policy(self, value):
        self.set_policy(policies.get(value), given=True)
        self.warn_if_untrained()

    @property
    def has_given_policy(self):
        """Whether the policy was chosen by hand, so that `compile` keeps it."""
        return self._has_given_policy

    def set_policy(self, policy, given):
        """Sets the policy and builds the stages anew, when they are needed.

        Args:
            policy: A `policies.Policy`.
            given: Whether it was chosen by hand.

        Raises:
            ValueError: If the policy does not fit the model.
        """
        policy.check(self.head, len(self.exit_names) - 1)
        self._policy = policy
        self._has_given_policy = given
        self._stages = stages.Stages(
            self._exits, self._policy, self.head, self.name
        )
        self._router = None
        # The compiled evaluation step holds the policy from before.
        self.forget_test_function()

    @property
    def stages(self):
        """The E + 1 stages, Keras models that share this model's weights.

        Stage k takes `feature` (stage 0 the model's inputs), and `carry` where
        the policy has one; it returns a dict with `feature`, `prediction`,
        `confidence`, `score` (batch,), and `carry`; the last returns
        `prediction`. Thresholds are never inside a stage.
        """
        return self._stages

    def call(self, inputs, training=None):
        net = self.training_network if training else self.net
        outputs = net(inputs, training=training)
        if not self.uses_final_confidence:
            outputs.pop(exit_graph.FINAL_CONFIDENCE, None)
        return outputs

    @property
    def router(self):
        """The compiled answering path, a `Router`, made when first needed."""
        if self._router is None:
            self._router = Router(self)
        return self._router

    def predict_exits(self, x, batch_size=None):
        """Answers every sample at the exit that it leaves at.

        The work behind that exit is skipped, sample by sample inside a batch.

        Args:
            x: Arrays or tensors (a list or dict for several inputs), a
                `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator.
            batch_size: Rows that are routed together, 256 by default; datasets
                and generators bring their own batches.

        Returns:
            An `ExitResult` with predictions (N, classes), exit index, score
            and relative cost (N,).

        Raises:
            ValueError: If `x` does not fit the model, or contains NaN.

        Example:

        ```python
        result = model.predict_exits(x)
        print(result.mean_cost, result.exit_index)
        ```
        """
        return self.router.predict_exits(x, batch_size)

    def predict(
        self, x, batch_size=None, verbose="auto", steps=None, callbacks=None
    ):
        """Each sample's answer at the exit that it leaves at.

        As `predict_exits`, with Keras' progress bar and callbacks.

        Args:
            x: As in `predict_exits`.
            batch_size: Rows that are routed together, 256 by default.
            verbose: 0 for silence, 1 for a progress bar, 2 for one line;
                `"auto"` shows a bar when there is more than one batch.
            steps: Number of batches to take from a dataset or generator.
            callbacks: Keras callbacks.

        Returns:
            Array (N, classes).

        Raises:
            ValueError: If `x` does not fit the model, or contains NaN.
        """
        batches, total = self.router.batches(x, batch_size, steps)
        if verbose == "auto":
            verbose = 0 if total == 1 else 1
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=1,
            steps=total,
            model=self,
        )
        callbacks.on_predict_begin()
        found = []
        for step, batch in enumerate(batches):
            callbacks.on_predict_batch_begin(step)
            answers = self.router.route(batch)
            found.append(answers)
            callbacks.on_predict_batch_end(step, {"outputs": answers[0]})
        callbacks.on_predict_end()
        return self.router.result(found).predictions

    def predict_on_batch(self, x):
        """Each sample's answer at the exit that it leaves at, one batch."""
        return self.router.predict_exits(x, batch_size=len(x)).predictions

    def summary(self, *args, print_fn=None, **kwargs):
        """Prints the network's layers, then its exits and their costs."""
        self.net.summary(*args, print_fn=print_fn, **kwargs)
        (print_fn or print)(self.exit_table())

    def exit_table(self):
        """The exits as text: where they hang, and what they cost."""
        thresholds = self.policy.thresholds(len(self.exit_names) - 1)
        rows = [("exit", "behind layer", "relative cost", "threshold")]
        rows += [
            (name, layer, f"{cost:.4f}", f"{threshold:.3g}")
            for name, layer, cost, threshold in zip(
                self.exit_names,
                [*self.exit_layers, "(the model's own head)"],
                self.relative_costs,
                [*thresholds, float("nan")],
                strict=True,
            )
        ]
        rows[-1] = (*rows[-1][:3], "-")
        measured = ""
        if self.measured_cost is not None:
            cost = self.measured_cost
            measured = f", cost for a batch of {cost.batch_size:g}"
            figures = [cost.unit, *(f"{value:.4g}" for value in cost.exits)]
            rows = [
                (*row[:3], figure, row[3])
                for row, figure in zip(rows, figures, strict=True)
            ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                text.ljust(width)
                for text, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        title = f"Exits, policy {self.policy.name!r}{measured}:"
        return "\n".join([title, *lines])

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.training_fingerprints is not None:
            store[_FINGERPRINTS] = self.training_fingerprints.hashes

    def load_own_variables(self, store):
        values = {key: store[key] for key in store.keys()}
        hashes = values.pop(_FINGERPRINTS, None)
        super().load_own_variables(values)
        if hashes is not None:
            self.training_fingerprints = fingerprints(hashes)

    def get_config(self):
        return {
            "name": self.name,
            "net": keras.saving.serialize_keras_object(self.net),
            "head": self.head.get_config(),
            "policy": keras.saving.serialize_keras_object(self.policy),
            "has_given_policy": self.has_given_policy,
            "cost": self.cost,
            "measured_cost": (
                None
                if self.measured_cost is None
                else dataclasses.asdict(self.measured_cost)
            ),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        given = config["has_given_policy"]
        net = keras.saving.deserialize_keras_object(
            config["net"], custom_objects=custom_objects
        )
        model = cls(
            net,
            Head(**config["head"]),
            policy=config["policy"],
            cost=config["cost"],
            name=config["name"],
        )
        model.set_policy(model.policy, given=given)
        if config.get("measured_cost") is not None:
            model.use_cost(MeasuredCost(**config["measured_cost"]))
        return model

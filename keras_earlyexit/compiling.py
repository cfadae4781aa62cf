"""How an early-exit model is set up for training by `compile`."""

import functools
import warnings

import keras

from keras_earlyexit import (
    call_graph,
    exit_graph,
    fusing,
    objectives,
    optimizers,
    policies,
    refining,
    regimes,
)
from keras_earlyexit.metrics import ExitMetrics


class ExitCompiling:
    """The `compile` part of `EarlyExitModel`, mixed into it."""

    objective = None
    regime = None
    uses_final_confidence = False
    _exit_metrics = None
    _training_network = None
    _training_steps = None

    def compile(
        self,
        optimizer="rmsprop",
        objective="eenet_v2",
        loss=None,
        metrics=None,
        *,
        regime=None,
        weighted_metrics=None,
        **options,
    ):
        """Configures training.

        An objective may bring layers of its own along, behind the exit blocks;
        they take the place of those that another objective has brought.

        Args:
            optimizer: A Keras optimizer or its name; or a dict of them, one
                for each group of variables (`backbone`, `exit` and `final`,
                and what the objective adds).
            objective: A training objective, its name or config (see
                `ee.objectives.get`). It brings its policy along, unless one
                was given.
            loss: Base loss of an exit, for objectives that take one; `None`
                is the task's own.
            metrics: Metrics for every exit and for the routed answers; `None`
                is accuracy, or the mean absolute error for values.
            regime: `"joint"`, `"disjoint"` (frozen backbone) or `"mixed"`
                (backbone first), see `ee.regimes`; `None`: the objective's.
            weighted_metrics: The same as `metrics`, weighted by
                `sample_weight`.
            **options: `run_eagerly`, `steps_per_execution`, `jit_compile` and
                `auto_scale_loss`, as in `keras.Model.compile`.

        Raises:
            ValueError: If the objective, the regime or a metric is unknown, or
                if the optimizers do not fit the groups of variables.
        """
        objective = objectives.get(objective).for_head(self.head, loss)
        regime = regimes.get(regime or objective.regime)
        self._use_final_confidence(objective)
        self._set_refiners(objective.refiners(self))
        optimizer = self._grouped(optimizer, objective, regime)
        super().compile(optimizer=optimizer, **options)
        # Also before the first step: it is saved with the model, whole.
        self.optimizer.build(self.trainable_variables)
        self.objective = objective
        self.regime = regime
        # Not a part of the model to Keras: it has the same layers.
        self._training_network = Untracked(
            network=regime.network(fusing.fuse(self.exit_graph))
            or objective.prepare(fusing.fused_network(self.net))
        )
        self._training_steps = {}
        self._exit_metrics = ExitMetrics(
            self, objective, metrics, weighted_metrics
        )
        self._compile_options = Untracked(
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **options,
        )
        objective.attach(self)
        if not self.has_given_policy:
            self.set_policy(self._policy_of(objective), given=False)
        self.warn_if_untrained()

    def _use_final_confidence(self, objective):
        """Trains the confidence of `final` only for those who look at it."""
        name = exit_graph.FINAL_CONFIDENCE
        self.uses_final_confidence = objective.uses_final_confidence
        if name in self.net.output:
            layer = self.net.get_layer(name)
            layer.trainable = objective.uses_final_confidence
        elif objective.uses_final_confidence:
            raise ValueError(
                f"Objective {objective.name!r} needs a confidence at `final`. "
                f"Expected an output {name!r} of shape (batch, 1). "
                f"Received: a network with outputs {sorted(self.net.output)}."
            )

    def _set_refiners(self, refiners):
        """Puts layers behind the exit blocks, unless they are there already."""
        if not refining.same(refiners, self.exit_graph.refiners):
            net = exit_graph.network(
                self.exit_graph, refiners, name=self.net.name
            )
            self.set_network(net)
            self.set_policy(self.policy, given=self.has_given_policy)
        exits = self.exit_graph
        for refiner, (prediction, confidence) in zip(
            exits.refiners[:-1], exits.heads[:-1], strict=True
        ):
            branch = call_graph.producer(exits.graph, confidence).operation
            if call_graph.producer(exits.graph, prediction).operation is branch:
                branch = getattr(branch, "confidence_branch", None)
            if branch is not None:
                # What nothing depends on has no gradient.
                used = refiner is None or not refiner.replaces_confidence
                branch.trainable = used

    def _grouped(self, optimizer, objective, regime):
        """An optimizer with a group for each part that is trained apart."""
        groups = objective.groups(self)
        several = isinstance(optimizer, dict) and "class_name" not in optimizer
        inner = optimizers.composite(optimizer)
        if groups is None and (regime.needs_groups or several or inner):
            groups = regimes.groups_of(self)
        if groups is None:
            return optimizer
        if inner is None:
            inner = optimizer = optimizers.CompositeOptimizer(optimizer)
        inner.bind(groups, objective.rates)
        regime.begin(inner)
        return optimizer

    @property
    def composite_optimizer(self):
        """The `CompositeOptimizer` of this model, or `None` without one."""
        return optimizers.composite(self.optimizer)

    @property
    def training_network(self):
        """What is run in training: as `net`, but gradients may differ."""
        if self._training_network is None:
            return self.net
        return self._training_network.network

    def use_training_step(self, part, state):
        """Takes the compiled training step for the present state of training.

        What changes between the states of a part, such as the groups that an
        optimizer moves, is fixed in a compiled step; each is compiled once.

        Args:
            part: Name of what has states.
            state: Which state it is in now, a hashable value.
        """
        steps = self._training_steps
        states = dict(steps.get("states", ()))
        if states.get(part) == state:
            return
        steps[steps.get("states", ())] = self.train_function
        steps["states"] = tuple(sorted({**states, part: state}.items()))
        self.train_function = steps.get(steps["states"])
        if self.train_function is None:
            # JAX has one compiled step for one function, and would use that
            # of another state again.
            self.train_step = functools.partial(type(self).train_step, self)
            self.make_train_function(force=True)

    def forget_test_function(self):
        """Lets the next evaluation compile its step anew: something changed."""
        self.test_step = functools.partial(type(self).test_step, self)
        self.test_function = None

    def _policy_of(self, objective):
        name = objective.policy
        if self.head.task == "regression":
            name = "learned"
        threshold = objective.threshold(len(self.exit_names) - 1)
        return policies.get(name, threshold=threshold)

    def warn_if_untrained(self):
        """Warns if the policy reads what the objective does not train."""
        objective, policy = self.objective, self.policy
        if objective is None or objective.trains_confidence:
            return
        if policy.uses_confidence:
            warnings.warn(
                f"Policy {policy.name!r} reads the confidence branches, which "
                f"objective {objective.name!r} does not train: who leaves "
                "early is left to chance. Choose a policy such as "
                "'max_probability', or another objective.",
                stacklevel=3,
            )

    def _check_compiled(self, method):
        if self.objective is None:
            raise ValueError(
                f"Expected a compiled model before `{method}`. Received: "
                f"'{self.name}', not compiled. Call "
                "`model.compile('adam')` first."
            )

    def get_compile_config(self):
        if self.objective is None:
            return {}
        options = {
            name: keras.saving.serialize_keras_object(value)
            for name, value in vars(self._compile_options).items()
        }
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "objective": keras.saving.serialize_keras_object(self.objective),
            "regime": keras.saving.serialize_keras_object(self.regime),
            **options,
        }

    def compile_from_config(self, config):
        config = {
            name: keras.saving.deserialize_keras_object(value)
            for name, value in config.items()
        }
        policy = self.policy
        self.compile(**config)
        self.set_policy(policy, given=self.has_given_policy)


class Untracked:
    """Keeps values from being tracked by Keras as parts of the model."""

    def __init__(self, **values):
        vars(self).update(values)

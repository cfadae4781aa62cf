"""Training regimes: which parts of the network learn, and when.

`joint` trains everything at once. `disjoint` leaves the model that the exits
were added to as it is, its own head included, and trains the exits alone.
`mixed` trains that model alone first, then everything.

A part that does not learn is out of reach of the optimizer, which has a group
of variables for each part; nothing is marked as not trainable, so there is
nothing to put back when training ends or fails.

Reference:
    Kubaty et al., How to Train Your Multi-Exit Model? Analyzing the Impact of
    Training Strategies, arXiv 2407.14320.
"""

import keras
from keras import ops

from keras_earlyexit import call_graph, exit_graph, surgery
from keras_earlyexit.registry import Registry

BACKBONE = "backbone"


class Joint:
    """Everything learns at once.

    Attributes:
        name: The regime's name, as `ee.regimes.get` takes it.
        needs_groups: Whether backbone and exits need optimizers of their own.
        final_only: Whether `final` alone is trained at the moment.
    """

    name = "joint"
    needs_groups = False
    final_only = False

    def network(self, exits):
        """What is run in training: a callable like a network, or `None`."""
        return None

    def begin(self, optimizer):
        """Turns groups of the optimizer on and off before training."""

    def callbacks(self, model):
        """Callbacks that `fit` adds for this regime."""
        return []

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        options = ", ".join(f"{k}={v}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({options})"


class Disjoint(Joint):
    """The exits learn, on a frozen backbone.

    Batch normalisation and dropout of the backbone work as in inference, and
    no gradient is computed for it.
    """

    name = "disjoint"
    needs_groups = True

    def network(self, exits):
        return FrozenBackbone(exits)

    def begin(self, optimizer):
        optimizer.frozen = frozenset([BACKBONE])


class Mixed(Joint):
    """The backbone learns alone for some epochs, then everything.

    Args:
        backbone_epochs: Number of epochs for the backbone; `None`: half of
            those that `fit` is asked for. A second `fit` goes on where the one
            before ended.
    """

    name = "mixed"
    needs_groups = True

    def __init__(self, backbone_epochs=None):
        if backbone_epochs is not None and backbone_epochs < 0:
            raise ValueError(
                "Expected `backbone_epochs` to be 0 or more, or None. "
                f"Received: backbone_epochs={backbone_epochs!r}."
            )
        self.backbone_epochs = backbone_epochs
        self.epochs_done = 0

    def begin(self, optimizer):
        self.epochs_done, self.final_only = 0, False

    def callbacks(self, model):
        return [_BackboneFirst(self)]

    def get_config(self):
        return {"backbone_epochs": self.backbone_epochs}


_registry = Registry("regime", Joint)
for _regime in (Joint, Disjoint, Mixed):
    _registry.register(_regime)


def get(identifier, **options):
    """Finds a training regime.

    Args:
        identifier: `"joint"`, `"disjoint"`, `"mixed"`, a regime, or a config
            as `keras.saving.serialize_keras_object` writes it.
        **options: Passed to the regime, such as `backbone_epochs=`.

    Returns:
        A regime for `model.compile(regime=...)`.

    Raises:
        ValueError: For a name that does not exist.
        TypeError: If `identifier` is none of these.

    Example:

    ```python
    regime = ee.regimes.get("mixed", backbone_epochs=20)
    model.compile("adam", "branchynet", regime=regime)
    ```
    """
    return _registry.get(identifier, **options)


def groups_of(model):
    """The variables of a model, by the part of it that they belong to.

    Args:
        model: An `EarlyExitModel`.

    Returns:
        Dict of lists: `backbone`, `exit_0`, ..., and `final`, which has what
        stands beside the model's own head. Only trainable variables.
    """
    exits = model.exit_graph
    rest = {id(v): v for v in model.trainable_variables}
    groups = {BACKBONE: _take(rest, [c.operation for c in exits.backbone])}
    for name, calls, refiner in zip(
        exits.names, [*exits.blocks, ()], exits.refiners, strict=True
    ):
        groups[name] = _take(rest, [c.operation for c in calls] + [refiner])
    groups[exit_graph.FINAL] += rest.values()
    return groups


def _take(rest, operations):
    """Takes the variables of some operations out of those that are left."""
    return [
        rest.pop(id(variable))
        for operation in operations
        for variable in getattr(operation, "trainable_variables", ())
        if id(variable) in rest
    ]


class FrozenBackbone:
    """A network whose backbone only answers, while the exits learn.

    Args:
        exits: An `exit_graph.ExitGraph`.
    """

    def __init__(self, exits):
        graph = exits.graph
        confidence = graph.outputs.get(exit_graph.FINAL_CONFIDENCE)
        kept = [*exits.features, exits.heads[-1][0]]
        if confidence is not None:
            (call,) = {call_graph.producer(graph, confidence)}
            kept.append(call.inputs[0])
        # An exit may hang on the tensor that the model's own head reads.
        kept = list({id(tensor): tensor for tensor in kept}.values())
        self._backbone = keras.Model(graph.inputs, kept)
        inputs = [surgery.input_like(tensor) for tensor in kept]
        given = call_graph.pairs(kept, inputs)
        outputs = surgery.rerun(graph, given, keras.tree.flatten(graph.outputs))
        self._exits = keras.Model(
            inputs, keras.tree.pack_sequence_as(graph.outputs, outputs)
        )

    def __call__(self, inputs, training=True):
        kept = self._backbone(inputs, training=False)
        kept = [ops.stop_gradient(tensor) for tensor in kept]
        return self._exits(kept, training=training)


class _BackboneFirst(keras.callbacks.Callback):
    """Turns groups on and off where an epoch begins."""

    def __init__(self, regime):
        super().__init__()
        self.regime = regime

    def on_epoch_begin(self, epoch, logs=None):
        regime = self.regime
        epochs = regime.backbone_epochs
        if epochs is None:
            epochs = self.params["epochs"] // 2
        final_only = max(epoch, regime.epochs_done) < epochs
        if final_only != regime.final_only:
            regime.final_only = final_only
            self.model.forget_test_function()
        optimizer = self.model.composite_optimizer
        optimizer.frozen = frozenset()
        if final_only:
            optimizer.frozen = frozenset(optimizer.groups) - {BACKBONE}
        self.model.use_training_step("mixed", final_only)

    def on_epoch_end(self, epoch, logs=None):
        self.regime.epochs_done += 1

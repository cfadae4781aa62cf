"""Zero time waste: what earlier exits found out is used again."""

import keras
from keras import layers, ops

from keras_earlyexit.objectives.base import Objective, mean, register
from keras_earlyexit.objectives.boosted import check_vector_classes
from keras_earlyexit.objectives.terms import safe_log
from keras_earlyexit.refining import Refiner
from keras_earlyexit.regimes import groups_of

ENSEMBLE = "ensemble"


@keras.saving.register_keras_serializable(package="keras_earlyexit")
class CascadeEnsemble(Refiner):
    """An exit that sees the answer before its own, and their ensemble.

    - Cascade: z_i + U LayerNorm(stop_gradient(z_{i-1})), with p_i its softmax.
    - Ensemble: the softmax of mean_{j<=i} exp(w_ij) ln p_j + b_i, a weighted
      geometric mean.

    The prediction is that of the cascade until `ensembling`, a weight that is
    0 or 1, is set to 1.

    Args:
        units: Number of classes.
        index: i, the number of exits before this one.
        cascade: Whether it sees the answer before (`final` does not).
        from_logits: Whether predictions are logits.
    """

    def __init__(self, units, index, cascade=True, from_logits=False, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.index = index
        self.from_logits = from_logits
        self.cascade = cascade
        self.normalise = self.link = None
        if cascade and index:
            self.normalise = layers.LayerNormalization(dtype=self.dtype_policy)
            self.link = layers.Dense(
                units, use_bias=False, dtype=self.dtype_policy
            )

    def build(self, prediction_shape, confidence_shape=None, memory_shape=None):
        if self.link is not None:
            self.normalise.build((None, self.units))
            self.link.build((None, self.units))
        self.log_weights = self.add_weight(
            shape=(self.index + 1,),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
            name="log_weights",
        )
        self.bias = self.add_weight(
            shape=(self.units,),
            initializer="zeros",
            name="bias",
        )
        self.ensembling = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            name="ensembling",
        )
        self.built = True

    @property
    def ensemble_weights(self):
        """The weights of the ensemble, trained after the cascade."""
        return [self.log_weights, self.bias]

    def call(self, prediction, confidence=None, memory=None):
        own = prediction if self.from_logits else safe_log(prediction)
        if self.link is not None:
            before = ops.stop_gradient(memory[:, -self.units :])
            own = own + self.link(self.normalise(before))
        logarithms = ops.log_softmax(own, axis=-1)
        if memory is not None:
            together = ops.concatenate([memory, logarithms], axis=-1)
        else:
            together = logarithms
        parts = ops.reshape(together, (-1, self.index + 1, self.units))
        weights = ops.exp(self.log_weights)[:, None]
        ensemble = ops.mean(weights * parts, axis=1) + self.bias
        scores = ops.where(self.ensembling > 0.5, ensemble, own)
        answer = scores if self.from_logits else ops.softmax(scores, axis=-1)
        if confidence is None:
            return {"prediction": answer}
        return {
            "prediction": answer,
            "confidence": ops.copy(confidence),
            "memory": together,
        }

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "index": self.index,
            "cascade": self.cascade,
            "from_logits": self.from_logits,
        }


@register
class ZeroTimeWaste(Objective):
    """sum_i CE_i of the cascade, then of the ensembles; see `CascadeEnsemble`.

    The ensembles' weights learn in the last epochs of `fit`, all else in those
    before. The backbone is frozen unless `compile` is told another `regime`.

    Args:
        ensemble_epochs: Epochs for the ensembles; `None`: a third of those
            that `fit` is asked for, at least one of two or more.
        **options: As in `Objective`.

    Reference:
        Wolczyk et al., Zero Time Waste: Recycling Predictions in Early Exit
        Neural Networks, NeurIPS 2021, arXiv 2106.05409.
    """

    name = "zero_time_waste"
    counts_cost = False
    part_names = ("prediction_loss",)
    regime = "disjoint"

    def __init__(self, cost_weight=1.0, ensemble_epochs=None, **options):
        super().__init__(cost_weight, **options)
        if ensemble_epochs is not None and not ensemble_epochs >= 0:
            raise ValueError(
                "Expected `ensemble_epochs` to be 0 or more, or None. "
                f"Received: ensemble_epochs={ensemble_epochs!r}."
            )
        self.ensemble_epochs = ensemble_epochs

    def refiners(self, model):
        check_vector_classes(model, self.name)
        return [
            CascadeEnsemble(
                model.head.units,
                index,
                cascade=index < len(model.exit_names) - 1,
                from_logits=model.head.from_logits,
                name=f"{name}_ensemble",
            )
            for index, name in enumerate(model.exit_names)
        ]

    def groups(self, model):
        groups = groups_of(model)
        found = [
            variable
            for refiner in model.exit_graph.refiners
            for variable in refiner.ensemble_weights
        ]
        own = {id(variable) for variable in found}
        for name, variables in groups.items():
            groups[name] = [v for v in variables if id(v) not in own]
        return {**groups, ENSEMBLE: found}

    def callbacks(self, model):
        return [_EnsembleLast(self)]

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        losses = self.losses(y, predictions)
        return {"prediction_loss": sum(mean(loss, weight) for loss in losses)}

    def get_config(self):
        return {**super().get_config(), "ensemble_epochs": self.ensemble_epochs}


class _EnsembleLast(keras.callbacks.Callback):
    """First everything but the ensembles learns, then they do."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def on_epoch_begin(self, epoch, logs=None):
        epochs = self.params["epochs"]
        last = self.objective.ensemble_epochs
        if last is None:
            last = max(epochs // 3, 1) if epochs > 1 else 0
        ensembling = epoch >= epochs - last
        for refiner in self.model.exit_graph.refiners:
            refiner.ensembling.assign(float(ensembling))
        optimizer = self.model.composite_optimizer
        every = frozenset(optimizer.groups)
        learns = frozenset([ENSEMBLE])
        optimizer.active = learns if ensembling else every - learns
        self.model.use_training_step("zero_time_waste", ensembling)

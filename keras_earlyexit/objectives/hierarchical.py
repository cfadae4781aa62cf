"""Each segment of a cut network learns from its own exits alone."""

import keras
from keras import ops

from keras_earlyexit import exit_graph
from keras_earlyexit.objectives.base import Objective, get, register
from keras_earlyexit.splitting import partitioning

#: What an objective that can be a base leaves as it is: each of these reaches
#: over several exits, or over the whole model.
_WHOLE_MODEL = ("refiners", "prepare", "attach", "callbacks", "groups")


@register
class Hierarchical(Objective):
    """sum_k base(exits of segment k), with a stop-gradient at every cut.

    The model is cut as it will be between machines. Each segment applies the
    base objective to its own exits, of which the last is its final one, and
    nothing that a later segment learns reaches an earlier one: d loss_j /
    d weights_k = 0 for j > k. So this gives the weights that segments give
    that are trained apart, each with its own optimizer, on features that come
    from the one before.

    The confidence of a segment's last exit is not trained by the EENets bases,
    since within its segment nothing comes after it; the policy is therefore
    `max_probability`.

    Args:
        cost_weight: As in `Objective`; `None` takes the base's.
        cuts: Names of the early exits that segments end with.
        base: Name, object or config of the objective of each segment.
        **options: As in `Objective`.

    Raises:
        ValueError: If the base needs more than the exits of one segment.

    Example:

    ```python
    model.compile(
        {"segment_0": keras.optimizers.SGD(0.1), "segment_1": "adam"},
        ee.objectives.get("hierarchical", cuts="exit_0"),
    )
    ```

    Reference:
        Sepehri et al., Hierarchical Training of Deep Neural Networks Using
        Early Exiting, IEEE TNNLS 2024, arXiv 2303.02384. The form of the loss
        is reconstructed from its abstract.
    """

    name = "hierarchical"

    def __init__(
        self, cost_weight=None, cuts="exit_0", base="eenet_v2", **options
    ):
        base = get(base)
        if cost_weight is None:
            cost_weight = base.cost_weight
        super().__init__(cost_weight, **options)
        _check_base(base)
        if base.cost_weight != self.cost_weight:
            base = type(base).from_config(
                {**base.get_config(), "cost_weight": self.cost_weight}
            )
        self.base = base
        self.cuts = (cuts,) if isinstance(cuts, str) else tuple(cuts)
        self.counts_cost = base.counts_cost
        self.uses_final_confidence = base.uses_final_confidence
        self.part_names = base.part_names

    def prepare(self, net):
        exits = exit_graph.read(net)
        ends = {last for _, last in self._bounds(len(exits.names))}

        def at_exit(index, feature):
            onward = ops.stop_gradient(feature) if index in ends else feature
            return feature, onward

        return exit_graph.network(exits, at_exit=at_exit)

    def groups(self, model):
        found, owner = {}, {}
        segments = partitioning.partition(model, self.cuts)
        for k, segment in enumerate(segments):
            found[f"segment_{k}"] = variables = segment.trainable_variables
            for variable in variables:
                if id(variable) in owner:
                    raise ValueError(
                        "Expected layers that belong to one segment each. "
                        f"Received: cuts={self.cuts!r}, with the variable "
                        f"'{variable.path}' in segment {owner[id(variable)]} "
                        f"and in segment {k}. Cut behind the last call of "
                        "that layer, or in front of its first."
                    )
                owner[id(variable)] = k
        found[f"segment_{len(segments) - 1}"] += [
            v for v in model.trainable_variables if id(v) not in owner
        ]
        return found

    def parts(self, y, predictions, confidences, costs, weight, exit_tags):
        total = {}
        for first, last in self._bounds(len(predictions)):
            own = slice(first, last + 1)
            parts = self.base.parts(
                y,
                predictions[own],
                confidences[own],
                costs[own],
                weight,
                exit_tags,
            )
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def for_head(self, head, loss=None):
        return Hierarchical(
            self.cost_weight,
            self.cuts,
            self.base.for_head(head, loss),
            task=head.task,
            from_logits=head.from_logits,
            loss=loss,
        )

    def _bounds(self, num_exits):
        names = [exit_graph.exit_name(i) for i in range(num_exits - 1)]
        return partitioning.bounds((*names, exit_graph.FINAL), self.cuts)

    def get_config(self):
        return {
            **super().get_config(),
            "cuts": list(self.cuts),
            "base": keras.saving.serialize_keras_object(self.base),
        }


def _check_base(base):
    changed = [
        name
        for name in _WHOLE_MODEL
        if getattr(type(base), name) is not getattr(Objective, name)
    ]
    if changed or base.uses_exit_tags:
        raise ValueError(
            "Expected a base objective that looks at the exits of one segment "
            "alone, such as 'eenet_v2' or 'branchynet'. Received: "
            f"base={base.name!r}, which reaches over the whole model."
        )

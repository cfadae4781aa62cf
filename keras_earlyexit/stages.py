"""The stages of a network with exits: Keras models that share its weights."""

import collections.abc
import math

import keras

from keras_earlyexit import call_graph, refining, surgery
from keras_earlyexit.exit_graph import FINAL
from keras_earlyexit.policies import Score, carry_shape_of

FEATURE = "feature"
CARRY = "carry"
#: What the next stage takes, in the order of its inputs.
CROSSING = (FEATURE, CARRY)


class Stages(collections.abc.Sequence):
    """The stages of a model, Keras models that share its weights.

    Built one by one when first used: a model that is only trained or saved
    never needs them. Not a list, so that Keras does not take them for parts
    of the model.

    The *carry* between two stages is what the policy hands on, and behind it
    the memory of the refiners, as one tensor.

    Args:
        exits: An `exit_graph.ExitGraph`.
        policy: The `policies.Policy` whose score each stage computes.
        head: The model's `tasks.Head`.
        name: Name of the model, for the stages' names.
    """

    def __init__(self, exits, policy, head, name):
        self._exits = exits
        self._policy = policy
        self._head = head
        self._name = name
        self._carried = carry_shape_of(
            policy, head, exits.graph.outputs[FINAL].shape[1:]
        )
        self._built = [None] * len(exits.names)

    def __len__(self):
        return len(self._built)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._built[index] is None:
            self._built[index] = self._build(range(len(self))[index])
        return self._built[index]

    def _build(self, index):
        exits = self._exits
        inputs, given, carry, memory = self._inputs(index)
        prediction, confidence = exits.heads[index]
        name = f"{self._name}_stage_{index}"
        if confidence is None:
            (prediction,) = surgery.rerun(exits.graph, given, [prediction])
            found = refining.run(
                exits.refiners[index], prediction, None, memory
            )
            outputs = {"prediction": found["prediction"]}
            return keras.Model(inputs, outputs, name=name)
        feature, prediction, confidence = surgery.rerun(
            exits.graph, given, [exits.features[index], prediction, confidence]
        )
        found = refining.run(
            exits.refiners[index], prediction, confidence, memory
        )
        outputs = {
            FEATURE: feature,
            "prediction": found["prediction"],
            "confidence": found["confidence"],
            **self._score(index, found, carry),
        }
        return keras.Model(inputs, outputs, name=name)

    def _inputs(self, index):
        """Inputs of a stage and what they stand for; carry and memory."""
        graph = self._exits.graph
        if index == 0:
            inputs = keras.tree.map_structure(surgery.input_like, graph.inputs)
            return inputs, call_graph.pairs(graph.inputs, inputs), None, None
        feature = self._exits.features[index - 1]
        # A list, because Keras takes a tensor as well as a dict by name for it.
        inputs = [surgery.input_like(feature, name=FEATURE)]
        given = {id(feature): inputs[0]}
        memory = self._exits.memories[index]
        if memory is None and self._carried is None:
            return inputs, given, None, None
        if memory is None:
            carry = keras.Input(self._carried, name=CARRY)
            return [*inputs, carry], given, carry, None
        if self._carried is None:
            memory = surgery.input_like(memory, name=CARRY)
            return [*inputs, memory], given, None, memory
        size = math.prod(self._carried)
        both = keras.Input((size + memory.shape[-1],), name=CARRY)
        inputs.append(both)
        carry = keras.layers.Reshape(self._carried)(both[:, :size])
        return inputs, given, carry, both[:, size:]

    def _score(self, index, found, carry):
        layer = Score(
            self._policy,
            self._head,
            index,
            name=f"{self._exits.names[index]}_score",
        )
        score = layer(found["prediction"], found["confidence"], carry)
        carried, memory = [], found.get("memory")
        if self._carried is not None:
            score, carry = score
            carried.append(carry)
        if memory is not None:
            carried = [keras.layers.Flatten()(part) for part in carried]
            carried.append(memory)
        if not carried:
            return {"score": score}
        if len(carried) == 1:
            return {"score": score, CARRY: carried[0]}
        return {"score": score, CARRY: keras.ops.concatenate(carried, -1)}


def crossing_of(outputs):
    """What a stage hands on to the next, in the order of its inputs.

    Args:
        outputs: Dict of what a stage returns.

    Returns:
        A list: the feature, and the carry if there is one; empty for the last
        stage.
    """
    return [outputs[key] for key in CROSSING if key in outputs]

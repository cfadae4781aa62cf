"""The layer that computes a policy's score at the end of a stage."""

import keras

from keras_earlyexit.policies.base import score_of
from keras_earlyexit.registry import PACKAGE
from keras_earlyexit.tasks import Head


@keras.saving.register_keras_serializable(package=PACKAGE)
class Score(keras.layers.Layer):
    """The layer that computes a policy's score at the end of a stage.

    Args:
        policy: A `Policy`.
        head: The model's `tasks.Head`.
        exit_index: Which early exit, from 0 on.
    """

    def __init__(self, policy, head, exit_index, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.policy = policy
        self.head = head
        self.exit_index = exit_index

    def call(self, prediction, confidence, carry=None):
        score, carry = score_of(
            self.policy,
            self.head,
            prediction,
            confidence,
            carry,
            self.exit_index,
        )
        return score if carry is None else (score, carry)

    def get_config(self):
        return {
            **super().get_config(),
            "policy": keras.saving.serialize_keras_object(self.policy),
            "head": self.head.get_config(),
            "exit_index": self.exit_index,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["policy"] = keras.saving.deserialize_keras_object(
            config["policy"]
        )
        config["head"] = Head(**config["head"])
        return cls(**config)

"""Policies that read the confidence branch."""

from keras import ops

from keras_earlyexit.policies.base import Policy, register


@register
class Learned(Policy):
    """The confidence branch's own output h is the score.

    Reference:
        Demir and Akbas, Early-exit Convolutional Neural Networks,
        arXiv 2409.05336.
    """

    name = "learned"
    default_threshold = 0.5
    uses_confidence = True

    def score(self, probabilities, confidence, carry, exit_index):
        return confidence[:, 0], carry


@register
class JointGate(Policy):
    """The conditional probability q of leaving here, from learned gates.

    With g_l the gate of exit l, P_l = max(0, min(g_l, 1 - sum_{j<l} P_j)) is
    the probability of leaving at l, and q_l = P_l / (1 - sum_{j<l} P_j) that
    of leaving at l if no earlier exit was taken. Where nothing is left, q is 1.

    Reference:
        Regol, Chataoui and Coates, Jointly-Learned Exit and Inference for a
        Dynamic Neural Network, arXiv 2310.09163.
    """

    name = "joint_gate"
    default_threshold = 0.5
    uses_confidence = True

    def carry_shape(self, shape):
        return (1,)

    def score(self, probabilities, confidence, carry, exit_index):
        if carry is None:
            carry = ops.zeros_like(confidence)
        leaving, conditional = conditional_exit(confidence, carry)
        return conditional[:, 0], carry + leaving


def conditional_exit(gate, taken):
    """Probability of leaving at an exit, and the same if not left before.

    Args:
        gate: Tensor (batch, 1), the exit's gate g in [0, 1].
        taken: Tensor (batch, 1), the probability of having left before.

    Returns:
        Two tensors (batch, 1): P and q.
    """
    rest = ops.maximum(1.0 - taken, 0.0)
    leaving = ops.minimum(gate, rest)
    # What rounding leaves of 1 - sum(g) is nothing: the exit takes it all.
    something = rest > 1e-6
    conditional = leaving / ops.where(something, rest, 1.0)
    conditional = ops.where(something, conditional, 1.0)
    return leaving, ops.clip(conditional, 0.0, 1.0)


def exit_distribution(gates):
    """P(exit l) of every exit, `final` last, and q of the early ones.

    Args:
        gates: List of E tensors (batch, 1) in [0, 1].

    Returns:
        Two lists of tensors (batch, 1): E + 1 that sum to 1, and E.

    Example:

    ```python
    gates = [ops.array([[g]]) for g in (0.3, 0.5, 0.4)]
    exit_distribution(gates)  # P = .3, .5, .2, 0 and q = .3, .714, 1
    ```
    """
    taken = ops.zeros_like(gates[0])
    leaving, conditional = [], []
    for gate in gates:
        p, q = conditional_exit(gate, taken)
        leaving.append(p)
        conditional.append(q)
        taken = taken + p
    return [*leaving, ops.maximum(1.0 - taken, 0.0)], conditional

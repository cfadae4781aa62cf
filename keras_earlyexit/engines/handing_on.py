"""What goes from one stage to the next."""

from keras_earlyexit.stages import CARRY, FEATURE


def handed_on(outputs, function):
    """What the next stage takes: the feature, and the carry if there is one."""
    feature = function(outputs[FEATURE])
    if CARRY not in outputs:
        return feature
    return {FEATURE: feature, CARRY: function(outputs[CARRY])}

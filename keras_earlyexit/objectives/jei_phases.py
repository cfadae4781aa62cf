"""Who learns when in JEI-DNN: the warm-up, then gates and exits in turns."""

import keras
import numpy as np
from keras import ops

GATES = "gates"
_MOST_WEIGHT = 5.0
_LONGEST_WARM_UP = 6
_LONGEST_TURN = 200


class JointPhases(keras.callbacks.Callback):
    """Turns groups of variables on and off, and weights the gates' targets.

    Args:
        objective: The `jei.JEI` that is trained.
    """

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self._best = {}
        self._turn = None
        self._turn_began = 0

    def on_epoch_begin(self, epoch, logs=None):
        objective = self.objective
        done = max(epoch, objective.epochs_done)
        warming_up = done < self._warm_up_epochs()
        if objective.warming_up != warming_up:
            objective.warming_up = warming_up
            self.model.forget_test_function()
        objective.state.best_exits.assign(
            ops.zeros(objective.state.best_exits.shape)
        )
        self._begin_turn("warm_up" if warming_up else GATES, 0)

    def on_train_batch_begin(self, batch, logs=None):
        if self._turn == "warm_up":
            return
        if batch - self._turn_began >= self._turn_batches():
            self._begin_turn("exits" if self._turn == GATES else GATES, batch)

    def on_test_begin(self, logs=None):
        # What is counted from here on are samples of the validation data.
        counts = self.objective.state.best_exits
        counts.assign(ops.zeros(counts.shape))

    def on_epoch_end(self, epoch, logs=None):
        objective = self.objective
        objective.epochs_done += 1
        if self._turn != "warm_up":
            # Not before the gates have learned at all: an exit that suits all
            # samples gets a weight of 0.
            self._weight_targets()
        else:
            self._stop_early(logs or {})
            if max(epoch + 1, objective.epochs_done) >= self._warm_up_epochs():
                self._restore(list(self._best))
                self._best = {}

    def _warm_up_epochs(self):
        if self.objective.warm_up_epochs is not None:
            return self.objective.warm_up_epochs
        return min(int(0.4 * self.params["epochs"]), _LONGEST_WARM_UP)

    def _turn_batches(self):
        if self.objective.turn_batches is not None:
            return self.objective.turn_batches
        steps = self.params.get("steps") or 2 * _LONGEST_TURN
        return max(min(steps // 2, _LONGEST_TURN), 1)

    def _begin_turn(self, turn, batch):
        optimizer = self.model.composite_optimizer
        active = {GATES}
        if turn != GATES:
            active = set(optimizer.groups) - active
        if turn == "warm_up":
            active -= {name for name, best in self._best.items() if best.over}
        optimizer.active = frozenset(active)
        self._turn, self._turn_began = turn, batch
        state = (turn == "warm_up", tuple(sorted(active)))
        self.model.use_training_step("jei", state)

    def _weight_targets(self):
        """Weights positives up where few samples should leave."""
        state = self.objective.state
        counts = ops.convert_to_numpy(state.best_exits)
        if counts.sum():
            rare = (counts.sum() - counts) / np.maximum(counts, 0.1)
            weights = np.minimum(rare[:-1], _MOST_WEIGHT)
            state.positive_weights.assign(weights.astype("float32"))

    def _stop_early(self, logs):
        """Leaves exits alone whose accuracy has stopped rising."""
        groups = self.model.composite_optimizer.groups
        for name in self.model.exit_names[:-1]:
            key = f"{name}_accuracy"
            accuracy = logs.get(f"val_{key}", logs.get(key))
            best = self._best.setdefault(name, _Best())
            if accuracy is None or best.over:
                continue
            best.look_at(accuracy, groups[name], self.objective.patience)
            if best.over:
                self._restore([name])

    def _restore(self, names):
        groups = self.model.composite_optimizer.groups
        for name in names:
            values = self._best[name].weights
            for variable, value in zip(groups[name], values, strict=False):
                variable.assign(value)


class _Best:
    """The best weights of one exit so far."""

    def __init__(self):
        self.accuracy = -np.inf
        self.weights = []
        self.over = False
        self._waited = 0

    def look_at(self, accuracy, variables, patience):
        if accuracy > self.accuracy:
            self.accuracy, self._waited = accuracy, 0
            self.weights = [ops.convert_to_numpy(v).copy() for v in variables]
        else:
            self._waited += 1
            self.over = self._waited >= patience

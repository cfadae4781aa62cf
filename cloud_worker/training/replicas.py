"""One segment on several machines: each takes a share of every batch.

The chief has the connections and the ledger; the others have neither and do as
it says. All of them hold the same weights: a step sums the gradients of all
shares, and each machine applies the sum. Normalisation over a batch is over the
whole batch. So a step is that of one machine, but for the order in which floats
are added.

TensorFlow's collective operations wait for ever for a peer that is gone, and a
process cannot leave a cluster to join another. So every collective has a
deadline, and a process whose cluster is broken becomes a new process by `exec`:
all meet again, and go on from what the chief has committed.
"""

import contextlib
import os
import sys
import threading
import time

import keras
import numpy as np

from cloud_worker.logs import fields, logger
from keras_earlyexit import snapshots

_IDLE, _STATE, _STEP, _STOP = range(4)
# How often the chief says that it is there.
_BEAT_S = 1.0
# For all to start, TensorFlow included.
_JOIN_S = 300.0
_PAUSE_S = 1.0


class Crew:
    """The machines that train one segment, as TensorFlow sees them.

    To be made before TensorFlow does anything else. It waits for the others.

    Args:
        addresses: `"host:port"` of each, the chief's first: for TensorFlow's
            own connections, which are neither encrypted nor protected.
        index: Which of them this is.
        patience_s: Seconds without a word from the others after which this
            process begins anew.
    """

    def __init__(self, addresses, index, patience_s=60.0):
        import tensorflow as tf

        self.index, self.size = index, len(addresses)
        self._patience_s = patience_s
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(addresses)}),
            task_type="worker",
            task_id=index,
            rpc_layer="grpc",
        )
        with self.within(_JOIN_S):
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        self._summed = tf.function(
            lambda tensors: self.run(_add_each, tensors), reduce_retracing=True
        )

    def sum(self, *arrays):
        """The sum over all machines of each of some arrays, as tensors."""
        import tensorflow as tf

        with self.within():
            return self._summed(tuple(map(tf.constant, arrays)))

    def run(self, function, arguments):
        """In a `tf.function`: calls what adds up over all machines."""
        return self._strategy.run(function, args=arguments)

    @contextlib.contextmanager
    def within(self, seconds=None):
        """Begins anew if what is inside takes longer, or finds no peer."""
        import tensorflow as tf

        lost = (
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.FailedPreconditionError,
            tf.errors.InternalError,
            tf.errors.UnavailableError,
            tf.errors.UnknownError,
        )
        seconds = self._patience_s if seconds is None else seconds
        timer = threading.Timer(seconds, begin_anew, ("no word in time",))
        timer.daemon = True
        timer.start()
        try:
            yield
        except lost as error:
            begin_anew(str(error).splitlines()[0])
        finally:
            timer.cancel()


def add(tensors):
    """Inside what a `Crew` runs: the sums of tensors over all machines."""
    import tensorflow as tf

    # They have to be on a device to be sent from it.
    tensors = tf.nest.map_structure(tf.identity, tensors)
    return tf.distribute.get_replica_context().all_reduce("SUM", tensors)


def _add_each(*tensors):
    """One by one: TensorFlow packs only what is of one type."""
    return tuple(map(add, tensors))


def begin_anew(reason):
    """Replaces this process by a new one with the same command."""
    logger.warning("cluster lost, beginning anew", extra=fields(reason=reason))
    # The others may not have noticed yet.
    time.sleep(_PAUSE_S)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class SharedSegment:
    """A segment as one of the crew has it. For one thread at a time.

    Args:
        segment: A compiled `SegmentModel`, the same on all machines.
        crew: A `Crew`.
    """

    def __init__(self, segment, crew):
        self._segment, self._crew = segment, crew
        import tensorflow as tf

        for layer in segment.net.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
        self._gradients = tf.function(self._of_share, reduce_retracing=True)
        self._apply = tf.function(segment.optimizer.apply)

    def say(self, command, rows=0, is_weighted=False):
        """Tells the others what comes; they call `hear`."""
        self._crew.sum(np.array([command, rows, is_weighted], "int64"))

    def hear(self):
        """What the chief says: a command, rows, and if they have weights."""
        said = self._crew.sum(np.zeros(3, "int64"))
        return map(int, said[0].numpy())

    def send_state(self, arrays):
        """Gives all machines the same state, which is the chief's."""
        content = b"".join(map(np.ndarray.tobytes, map(_whole, arrays)))
        padded = content + bytes(-len(content) % 4)
        self.say(_STATE, len(padded) // 4)
        self._crew.sum(np.frombuffer(padded, "int32"))

    def take_state(self, size):
        """The other side of `send_state`."""
        content = self._crew.sum(np.zeros(size, "int32"))[0].numpy().tobytes()
        arrays, offset = [], 0
        for like in snapshots.state_of(self._segment):
            found = np.frombuffer(content, like.dtype, like.size, offset)
            arrays.append(found.reshape(like.shape))
            offset += like.nbytes
        snapshots.restore(self._segment, arrays)

    def learn(self, x, y, weight):
        """One step of all machines; returns loss and accuracy.

        Args:
            x: Features: the batch on the chief, zeros on the others.
            y: Labels, likewise.
            weight: Array (batch,) likewise, or `None`.
        """
        given = (x, y) if weight is None else (x, y, weight)
        x, y, *weight = self._crew.sum(*given)
        rows, size, index = len(x), self._crew.size, self._crew.index
        if rows < size:
            # Too few to go round: all do the same, and count for a part.
            places, share = slice(None), 1 / size
        else:
            start, end = rows * index // size, rows * (index + 1) // size
            places, share = slice(start, end), (end - start) / rows
        part = [tensor[places] for tensor in (x, y, *weight)]
        with self._crew.within():
            loss, right, gradients = self._gradients(np.float32(share), *part)
            self._apply(gradients)
        return {"loss": float(loss), "accuracy": float(right)}

    def _of_share(self, share, x, y, weight=None):
        arguments = (share, x, y, weight)
        return self._crew.run(self._of_replica, arguments)

    def _of_replica(self, share, x, y, weight):
        import tensorflow as tf

        segment = self._segment
        with tf.GradientTape() as tape:
            outputs = segment(x, training=True)
            loss = segment.compute_loss(x, y, outputs, weight) * share
            scaled = segment.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, segment.trainable_variables)
        right = tf.constant(float("nan"))
        if segment.head.task == "classification":
            answers = outputs[segment.exit_names[-1]]
            found = keras.metrics.sparse_categorical_accuracy(y, answers)
            right = tf.cast(tf.reduce_mean(found), "float32") * share
        return add((loss, right, gradients))


class ReplicatedStepper:
    """What the chief's learner steps; as `SegmentStepper`.

    Args:
        segment: A compiled `SegmentModel`, the last one.
        crew: A `Crew`.
    """

    def __init__(self, segment, crew):
        self._segment = segment
        self._shared = SharedSegment(segment, crew)
        self._lock = threading.Lock()
        self._is_sent = False
        self._closed = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def step(self, arrays, labels, sample_weight):
        """As `SegmentStepper.step`."""
        (feature,) = arrays
        with self._lock:
            if not self._is_sent:
                self._shared.send_state(self.state())
                self._is_sent = True
            self._shared.say(_STEP, len(feature), sample_weight is not None)
            return self._shared.learn(feature, labels, sample_weight)

    def state(self):
        """As `SegmentStepper.state`."""
        return snapshots.state_of(self._segment)

    def restore(self, arrays):
        """As `SegmentStepper.restore`; the others follow at the next step."""
        snapshots.restore(self._segment, arrays)
        self._is_sent = False

    def close(self):
        """Lets the others end."""
        self._closed.set()
        self._beating.join()
        with self._lock:
            self._shared.say(_STOP)
        _log_end(self._segment)

    def _beat(self):
        while not self._closed.wait(_BEAT_S):
            with self._lock:
                self._shared.say(_IDLE)


def follow(segment, crew):
    """Does as the chief says until it says that it is over.

    What has been trained is the chief's to keep; nothing is written here.

    Args:
        segment: A compiled `SegmentModel`, as the chief has it.
        crew: A `Crew`; not the chief's.
    """
    shared = SharedSegment(segment, crew)
    shape, labels = _forms(segment)
    while True:
        command, size, is_weighted = shared.hear()
        if command == _STATE:
            shared.take_state(size)
        elif command == _STEP:
            weight = np.zeros(size, "float32") if is_weighted else None
            x = np.zeros((size, *shape[1]), shape[0])
            y = np.zeros((size, *labels[1]), labels[0])
            shared.learn(x, y, weight)
        elif command == _STOP:
            break
    _log_end(segment)


def _log_end(segment):
    """Says what has become of the weights, the same on all machines."""
    digest = snapshots.weights_sha256(segment.weights)
    logger.info("trained together", extra=fields(weights_sha256=digest))


def _forms(segment):
    """Type and shape of a sample's feature and of its label."""
    agreed = segment.agreement(segment.position)
    return [
        (dtype, tuple(shape[1:]))
        for _, shape, dtype in (agreed["feature"], agreed["labels"])
    ]


def _whole(array):
    return np.ascontiguousarray(array)

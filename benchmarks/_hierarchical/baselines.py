"""What hierarchical training is compared with, over the same wire.

A service of its own, which no worker knows: messages and codec are the
product's, the methods are not. `Whole` takes raw 8-bit images and trains all of
the network; `Split` is classic split learning, which takes features and gives
back the gradient of each.

Neither keeps a journal or a ledger: they lose a batch where the product does
not, and are that much cheaper.
"""

import concurrent.futures
import queue

import grpc
import keras
import numpy as np
import tensorflow as tf

from _hierarchical import setting
from keras_earlyexit.fusing import fused_network
from protos import split_pb2
from protos.feeding.window import Window
from protos.identity import Feature
from protos.options import open_channel, server_options
from protos.tensors import decode, encode

SERVICE = "keras_earlyexit.benchmarks.Baselines"
#: Of images, features and gradients.
CODEC = "uint8+zstd"
_MAX_BYTES = 1 << 28
#: A batch of images takes seconds on a slow link; pings come behind it.
_PING_TIMEOUT_S = 60.0
_ROWS = 1024
_IMAGES = Feature("images", (None, 32, 32, 3), "uint8")
_LABELS = Feature("labels", (None,), "int32")


class Cloud:
    """The cloud's side: trains all of the network, or what follows the cut.

    Args:
        model: The network with its exit.
    """

    def __init__(self, model):
        model.compile(setting.optimizer(), setting.BASE)
        self._model = model
        self.before, self._part = _parts(model)
        self._optimizer = setting.optimizer()
        self._optimizer.build(self._part.trainable_variables)
        self._learn = tf.function(self._learned, reduce_retracing=True)
        shape = (None, *self._part.input.shape[1:])
        self._feature = Feature("feature", shape, "float32")

    def serve(self):
        """Starts a server on loopback; returns it and its port."""
        server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(2),
            options=server_options(_MAX_BYTES, 8, _PING_TIMEOUT_S),
        )
        handlers = {
            name: grpc.stream_stream_rpc_method_handler(
                method,
                request_deserializer=split_pb2.TrainRequest.FromString,
                response_serializer=kind.SerializeToString,
            )
            for name, method, kind in (
                ("Whole", self._answer_whole, split_pb2.TrainReply),
                ("Split", self._answer_split, split_pb2.Tensor),
            )
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, port

    def whole(self, x, y):
        """A step of all of the network; its loss."""
        return self._model.train_on_batch(x, y, return_dict=True)["loss"]

    def split(self, feature, y):
        """A step of what follows the cut; the gradient of the feature."""
        return self._learn(feature, y).numpy()

    def _answer_whole(self, requests, context):
        for request in requests:
            images = decode(request.tensors[0], _IMAGES, _ROWS)
            labels = decode(request.labels, _LABELS, _ROWS)
            loss = self.whole(setting.normal(images), labels)
            yield split_pb2.TrainReply(
                committed=request.sequence + 1, loss=float(loss)
            )

    def _answer_split(self, requests, context):
        rng = np.random.default_rng(0)
        for request in requests:
            feature = decode(request.tensors[0], self._feature, _ROWS)
            labels = decode(request.labels, _LABELS, _ROWS)
            yield encode(self.split(feature, labels), CODEC, rng)

    def _learned(self, feature, labels):
        with tf.GradientTape() as tape:
            tape.watch(feature)
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(
                    labels, self._part(feature, training=True)
                )
            )
        weights = self._part.trainable_variables
        gradient, *gradients = tape.gradient(loss, [feature, *weights])
        self._optimizer.apply(gradients, weights)
        return gradient


class Edge:
    """The edge's side.

    Args:
        model: The network with its exit.
        target: `"host:port"` of the cloud's.
    """

    def __init__(self, model, target):
        self._part = _parts(model)[0]
        self._optimizer = setting.optimizer()
        self._optimizer.build(self._part.trainable_variables)
        self._call_part = tf.function(
            lambda x: self._part(x, training=True), reduce_retracing=True
        )
        weights = self._part.trainable_variables
        self._apply = tf.function(lambda g: self._optimizer.apply(g, weights))
        shape = (None, *self._part.output.shape[1:])
        self._gradient = Feature("gradient", shape, "float32")
        self._channel = open_channel(target, None, _MAX_BYTES, _PING_TIMEOUT_S)
        self._rng = np.random.default_rng(0)

    def ahead(self, x):
        """The feature of a batch, and what `back` needs of it."""
        with tf.GradientTape() as tape:
            feature = self._call_part(tf.constant(x))
        return feature.numpy(), (tape, feature)

    def back(self, kept, gradient):
        """A step with the gradient of the feature."""
        tape, feature = kept
        weights = self._part.trainable_variables
        gradients = tape.gradient(feature, weights, tf.constant(gradient))
        self._apply(gradients)

    def train_whole(self, batches):
        """Sends raw images; waits until all are learned.

        Args:
            batches: Iterable of `(images, labels)`, 8 bits as they are.

        Returns:
            Bytes up and down of all messages.
        """
        up, down, window = [], 0, Window()

        def requests():
            for sequence, (x, y) in enumerate(batches):
                request = _request(sequence, encode(x, CODEC), y)
                while not window.wait(len(request), 1.0):
                    pass
                window.sent(sequence, len(request))
                up.append(len(request))
                yield request

        for reply in self._call("Whole", requests()):
            down += len(reply)
            message = split_pb2.TrainReply.FromString(reply)
            window.answered(message.committed)
        return sum(up), down

    def train_split(self, batches):
        """Trains the edge's part with the gradients that come back.

        Args:
            batches: Iterable of `(x, labels)`, as the network takes them.

        Returns:
            Bytes up and down of all messages.
        """
        up = down = 0
        going = queue.SimpleQueue()
        replies = self._call("Split", iter(going.get, None))
        for sequence, (x, y) in enumerate(batches):
            feature, kept = self.ahead(x)
            message = encode(feature, CODEC, self._rng)
            request = _request(sequence, message, y)
            going.put(request)
            reply = next(replies)
            up, down = up + len(request), down + len(reply)
            message = split_pb2.Tensor.FromString(reply)
            self.back(kept, decode(message, self._gradient, _ROWS))
        going.put(None)
        return up, down

    def _call(self, name, requests):
        return self._channel.stream_stream(f"/{SERVICE}/{name}")(
            requests, timeout=3600
        )


def _request(sequence, message, labels):
    return split_pb2.TrainRequest(
        sequence=sequence,
        tensors=[message],
        labels=encode(labels.astype("int32")),
    ).SerializeToString()


def _parts(model):
    """The network without exits, before the cut and behind it."""
    final = model.net.output["final"]
    feature = model.net.get_layer(model.exit_layers[0]).output
    # As the product's own steps are, or it would win by that.
    return tuple(
        fused_network(keras.Model(*ends))
        for ends in ((model.net.input, feature), (feature, final))
    )

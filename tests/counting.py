"""A layer that counts the rows that really go through it, on every backend."""

import collections

import keras

ROWS = collections.Counter()


def note(name, rows):
    ROWS[str(name)] += int(rows)


@keras.saving.register_keras_serializable(package="counting")
class CountRows(keras.layers.Layer):
    """Hands its input on, and counts its rows when it is computed."""

    def call(self, x):
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            tf.numpy_function(
                lambda rows: note(self.name, rows), [tf.shape(x)[0]], []
            )
        elif backend == "jax":
            import jax

            rows = x.shape[0]
            jax.debug.callback(lambda: note(self.name, rows))
        elif x.device.type != "meta":
            note(self.name, x.shape[0])
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def counted():
    """The counts so far, which start again from zero."""
    if keras.backend.backend() == "jax":
        import jax

        jax.effects_barrier()
    found = dict(ROWS)
    ROWS.clear()
    return found

"""All devices of one machine for every step, on JAX."""

import keras

from cloud_worker.training.segment import SegmentStepper


def spread():
    """From now on models have their weights on all devices of this machine.

    Raises:
        ValueError: If there is only one, or if the backend is not JAX.
    """
    backend = keras.backend.backend()
    if backend != "jax":
        raise ValueError(
            "Expected the JAX backend for --data-parallel. Received: "
            f"{backend}. Set KERAS_BACKEND=jax, or see --workers."
        )
    devices = keras.distribution.list_devices()
    if len(devices) < 2:
        raise ValueError(
            "Expected several devices for --data-parallel. Received: "
            f"{devices}. Leave it out."
        )
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )


class SpreadStepper(SegmentStepper):
    """As `SegmentStepper`, after `spread`.

    A batch that does not go round evenly is trained with by all devices
    alike: its step is the same, and not faster.
    """

    def step(self, arrays, labels, sample_weight, **place):
        distribution = keras.distribution.distribution()
        num_devices = distribution.device_mesh.devices.size
        if len(labels) % num_devices:
            keras.distribution.set_distribution(None)
        try:
            return super().step(arrays, labels, sample_weight, **place)
        finally:
            keras.distribution.set_distribution(distribution)

"""Writes what TensorBoard shows, on any backend and without TensorFlow."""

import io
import time

import numpy as np


class EventWriter:
    """An event file in a folder; `close` it, or what is last may be lost.

    Args:
        folder: Path of the folder, which is made.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder):
        try:
            from tensorboard.summary.writer.event_file_writer import (
                EventFileWriter,
            )
        except ImportError as error:
            raise ImportError(
                "Writing for TensorBoard needs the package tensorboard, which "
                f"could not be imported ({error}). Install it with "
                "`pip install keras-earlyexit[tensorboard]`."
            ) from error
        self._writer = EventFileWriter(str(folder))

    def scalar(self, tag, value, step):
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        self._add(scalar_pb(tag, float(value)), step)

    def histogram(self, tag, values, step):
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        self._add(histogram_pb(tag, values), step)

    def text(self, tag, markdown, step):
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, markdown), step)

    def image(self, tag, pixels, step):
        """Adds a picture: uint8 (height, width, 3)."""
        from PIL import Image
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.image import metadata
        from tensorboard.util import tensor_util

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        height, width, _ = pixels.shape
        # As the plug-in has it: the sizes, then the pictures.
        values = [str(width).encode(), str(height).encode(), file.getvalue()]
        summary = summary_pb2.Summary()
        summary.value.add(
            tag=tag,
            metadata=metadata.create_summary_metadata(None, None),
            tensor=tensor_util.make_tensor_proto(
                np.array(values, dtype=object), dtype=np.object_
            ),
        )
        self._add(summary, step)

    def _add(self, summary, step):
        from tensorboard.compat.proto import event_pb2

        self._writer.add_event(
            event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        )

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()

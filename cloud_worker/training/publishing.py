"""Writes what is trained as a new generation, for the workers that answer."""

import os

from keras_earlyexit import snapshots
from keras_earlyexit.bundle.manifest import MANIFEST
from keras_earlyexit.bundle.reading import load_bundle
from keras_earlyexit.exporting.halves import export_segment
from protos import training


class Publisher:
    """Writes the bundle of the segment that is trained here.

    Args:
        model: The `EarlyExitModel` that the segment shares its weights with.
        segment: The `SegmentModel`, the last one.
        path: The folder to write. Whoever serves it sees that it is new.
        format: As in `ee.export`.
    """

    def __init__(self, model, segment, path, format="litert"):
        model.set_policy(segment.policy, given=segment.origin.has_given_policy)
        self._model, self._segment = model, segment
        self._path, self._format = os.fspath(path), format

    def publish(self):
        """Writes the weights as they are now.

        Returns:
            What both halves of this generation call its weights: SHA-256 over
            what was cut and what this segment has become since. The edge's
            own segment is the one that it has now.
        """
        origin = self._segment.origin
        own = snapshots.weights_sha256(self._segment.weights)
        name = training.digest([origin.weights_sha256, own])
        if not self._has(name):
            export_segment(
                self._model,
                self._path,
                cut=origin.cuts,
                segment=self._segment.position,
                weights_sha256=name,
                format=self._format,
            )
        return name

    def _has(self, name):
        """Whether this generation stands there already."""
        if not os.path.exists(os.path.join(self._path, MANIFEST)):
            return False
        return load_bundle(self._path).manifest.weights_sha256 == name

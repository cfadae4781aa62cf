"""What of a bundle is timed: its stages, its route. Needs no Keras."""

import collections
import functools

import numpy as np

#: One thing that is timed: `kind` is `"stage"`, `"exit"` or `"plain"`; `name`
#: that of the exit at its end; `macs` those of one sample, or `None`; `call` a
#: function without arguments that returns when the answers are there.
Run = collections.namedtuple("Run", ["kind", "name", "macs", "call"])


class BundleRuns:
    """The runs of a bundle.

    Args:
        bundle: An object with `predict_exits`. Stages are timed if it has
            `stages`, functions of a tuple of arrays that return a dict of
            arrays; the time to each exit if it has `route(x, thresholds)`.
            What they are called, and what they take, is read off its
            `manifest`.
    """

    device = "cpu"

    def __init__(self, bundle):
        self._bundle = bundle
        manifest = getattr(bundle, "manifest", None)
        self._entries = getattr(manifest, "stages", ())
        self.name = getattr(manifest, "model_name", type(bundle).__name__)
        self.backend = getattr(manifest, "format", type(bundle).__name__)

    def batch(self, x, rows):
        """A tuple of arrays: samples over and over, or zeros."""
        if x is None and not self._entries:
            raise ValueError(
                "Expected samples to run this bundle on. Received: x=None "
                f"for {self._bundle!r}, which does not say what it takes. "
                "Pass `profile(bundle, x=x)`."
            )
        if x is None:
            return tuple(_zeros(spec, rows) for spec in self._entries[0].inputs)
        if isinstance(x, dict):
            x = [x[spec.name] for spec in self._entries[0].inputs]
        arrays = x if isinstance(x, (list, tuple)) else [x]
        arrays = [np.asarray(array) for array in arrays]
        if not all(array.ndim and len(array) for array in arrays):
            raise ValueError(
                "Expected at least one sample. Received: arrays of shapes "
                f"{[array.shape for array in arrays]}."
            )
        return tuple(array[np.arange(rows) % len(array)] for array in arrays)

    def runs(self, batch):
        """A list of `Run`, for one batch."""
        bundle, rows = self._bundle, len(batch[0])
        whole = batch[0] if len(batch) == 1 else list(batch)
        if self._entries:
            specs = self._entries[0].inputs
            whole = {
                spec.name: array
                for spec, array in zip(specs, batch, strict=True)
            }
        stages = getattr(bundle, "stages", None)
        if not stages:
            call = functools.partial(bundle.predict_exits, whole, rows)
            return [Run("stage", "final", None, call)]
        runs, given = [], batch
        names = [bundle.exit_names[entry.index] for entry in self._entries]
        for name, stage in zip(names, stages, strict=True):
            call = functools.partial(stage, given)
            runs.append(Run("stage", name, None, call))
            outputs = call()
            given = tuple(
                outputs[key] for key in ("feature", "carry") if key in outputs
            )
        if hasattr(bundle, "route"):
            early = len(bundle.exit_names) - 1
            for entry, name in zip(self._entries, names, strict=True):
                thresholds = thresholds_to(entry.index, early)
                call = functools.partial(bundle.route, whole, thresholds)
                runs.append(Run("exit", name, None, call))
        return runs


def thresholds_to(index, early):
    """Nobody leaves before an exit, everybody leaves there.

    Args:
        index: Number of the exit.
        early: Number of early exits, E.

    Returns:
        Float array (E,).
    """
    thresholds = np.full(early, np.inf, "float32")
    thresholds[index:] = -np.inf
    return thresholds


def _zeros(spec, rows):
    shape = (rows, *(size or 1 for size in spec.shape[1:]))
    return np.zeros(shape, spec.dtype.replace("string", "str"))

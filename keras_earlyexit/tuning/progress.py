"""A progress bar for what is not counted in batches."""

import time

_AFTER_S = 2.0


class Bar:
    """A bar that shows itself only when it is needed; a context.

    Args:
        what: What it is for.
        verbose: 0 for silence, 1 for a bar; `"auto"` shows one after a while.
    """

    def __init__(self, what, verbose="auto"):
        self._what = what
        self._after = {0: float("inf"), "auto": _AFTER_S}.get(verbose, 0.0)
        self._bar = None

    def __enter__(self):
        self._start = time.monotonic()
        return self

    def __exit__(self, *error):
        if self._bar is not None:
            self._bar.update(100, finalize=True)

    def update(self, share):
        """Shows which share is done, from 0 to 1."""
        if time.monotonic() - self._start < self._after:
            return
        if self._bar is None:
            from keras.utils import Progbar

            print(f"Searching: {self._what}", flush=True)
            self._bar = Progbar(100, unit_name="percent")
        # The last step is for the end of the context.
        self._bar.update(min(int(100 * share), 99))

"""What the edge has for good: one file, and a folder for itself alone."""

import fcntl
import os

from keras_earlyexit import snapshots


class Checkpoint:
    """The edge's state of training, written whole or not at all.

    Args:
        folder: Where it is; made if it is not there.
        settings: Dict of what has to be the same to go on.

    Raises:
        ValueError: If another process uses the folder, or if what is there
            is damaged or of a training with other settings.
        OSError: If the folder cannot be used.
    """

    def __init__(self, folder, settings):
        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, "checkpoint")
        self._settings = settings
        self._lock = os.open(
            os.path.join(folder, "lock"), os.O_CREAT | os.O_RDWR, 0o600
        )
        try:
            self._take(folder)
            snapshots.remove_left_behind(self._path)
            self._start()
        except BaseException:
            os.close(self._lock)
            raise

    def read(self):
        """What was written last: `(arrays, progress)`; `None` for nothing."""
        if self._arrays is None:
            return None
        return self._arrays, self._progress

    def write(self, arrays, progress):
        """Writes the state.

        Args:
            arrays: List of arrays.
            progress: Dict that JSON can hold.

        Raises:
            OSError: If it cannot be written; what was there still is.
        """
        self._arrays, self._progress = arrays, progress
        facts = {
            "run": self.run,
            "settings": self._settings,
            "progress": progress,
        }
        snapshots.write(self._path, arrays or [], facts)

    def close(self):
        """Lets others use the folder; it may be closed already."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self, folder):
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                "Expected a folder for this training alone. Received: "
                f"{os.fspath(folder)!r}, which another process uses. End "
                "that, or choose another folder."
            ) from error

    def _start(self):
        """Counts this run, for good, before anybody is told of it."""
        arrays, facts = None, {"run": 0, "progress": None}
        if os.path.exists(self._path):
            arrays, facts = snapshots.read(self._path)
            self._check(facts["settings"])
        self.run = facts["run"] + 1
        self.write(arrays or None, facts["progress"])

    def _check(self, before):
        found = [
            f"{name}={before.get(name)!r} (now {value!r})"
            for name, value in self._settings.items()
            if before.get(name) != value
        ]
        if found:
            raise ValueError(
                "Expected the settings that this training began with. "
                f"Received: others; it had {', '.join(found)}. Use those, or "
                "another folder."
            )

"""What the trainer has for good: one file, written whole or not at all.

State and the number of the last batch that is in it stand in the same file.
So there is no moment at which one of them is ahead of the other, and a batch
is in the state exactly if the ledger says so.
"""

import os

from keras_earlyexit import snapshots

NAME = "ledger"


class LedgerInUse(ValueError):
    """Another process trains with this folder."""


class Ledger:
    """The committed state of a trainer.

    Args:
        folder: Where it is; made if it is not there.

    Raises:
        LedgerInUse: If another process uses the folder.
        OSError: If the folder cannot be used.
    """

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, NAME)
        self._lock = _lock(folder)
        snapshots.remove_left_behind(self.path)

    def read(self):
        """What was committed last.

        Returns:
            `(arrays, facts)`, or `None` if nothing was.

        Raises:
            DamagedSnapshot: If the file is not as it was written.
        """
        try:
            return snapshots.read(self.path)
        except FileNotFoundError:
            return None

    def write(self, arrays, facts):
        """Commits.

        Args:
            arrays: The state, a list of arrays.
            facts: All else, a dict that JSON can hold.

        Raises:
            OSError: If it cannot be written; what was committed before still
                is.
        """
        snapshots.write(self.path, arrays, facts)

    def close(self):
        """Lets others use the folder."""
        os.close(self._lock)


def _lock(folder):
    import fcntl

    descriptor = os.open(
        os.path.join(folder, f"{NAME}.lock"), os.O_CREAT | os.O_RDWR, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LedgerInUse(
            "Expected a folder for this trainer alone. Received: "
            f"{os.fspath(folder)!r}, which another process uses. End that, or "
            "choose another folder."
        ) from error
    return descriptor

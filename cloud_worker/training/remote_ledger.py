"""A ledger in an object store, for machines that may be lost with their disks.

Nothing of it is kept here: what the store holds is what is acknowledged, and
another machine goes on from just that.
"""

import os
import tempfile

from keras_earlyexit import snapshots
from keras_earlyexit.storage.commits import Commits


class RemoteLedger:
    """As `Ledger`, at a URL.

    Args:
        url: Such as `s3://bucket/run`.

    Raises:
        ImportError: If what reads it is not installed.
        OSError: If the store cannot be used.
    """

    def __init__(self, url):
        self.path = url
        self._commits = Commits(url)
        # Whoever trained here before may live on, behind a broken network.
        self._commits.take_over()

    def read(self):
        """As `Ledger.read`."""
        parts = self._commits.read()
        if parts is None:
            return None
        with tempfile.TemporaryDirectory(prefix="cloud_worker_") as folder:
            file = os.path.join(folder, "ledger")
            with open(file, "xb") as out:
                try:
                    for part in parts:
                        out.write(part)
                except ValueError as error:
                    raise snapshots.DamagedSnapshot(str(error)) from error
            return snapshots.read(file)

    def write(self, arrays, facts):
        """As `Ledger.write`; done once the store has it."""
        with tempfile.TemporaryDirectory(prefix="cloud_worker_") as folder:
            file = os.path.join(folder, "ledger")
            snapshots.write(file, arrays, facts)
            self._commits.write(file)

    def close(self):
        """There is nothing to let go of."""

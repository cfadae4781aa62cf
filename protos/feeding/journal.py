"""Keeps what was sent until the other side has it for good.

Files hold records in sequence, and whole files are deleted once all their
records are acknowledged.
"""

import collections
import errno
import os
import threading
import time

from protos.feeding.journal_files import (
    NAME,
    OVERHEAD_BYTES,
    DamagedJournal,
    JournalFile,
)

_NUM_FILES = 8
_MAX_CONTENT = (1 << 31) - 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Journal:
    """Records in sequence on disk, until they are acknowledged.

    May be used from several threads, and by one process at a time.

    Args:
        folder: Where its files are; made if it is not there.
        max_bytes: Bytes that all files may have. `append` waits for
            acknowledgements where it would need more.
        sync: Whether each record is flushed to the disk before it is read
            or another is added, so that it outlasts a power failure too;
            without it, only a crash of the process.
        clock: Returns seconds that never go back.

    Raises:
        DamagedJournal: If what is there is not what was written.
        OSError: If the folder cannot be used.

    Example:

    ```python
    journal = Journal("state/journal", max_bytes=64 << 20)
    journal.append(0, b"first")
    journal.acknowledge(1)
    ```
    """

    def __init__(
        self, folder, max_bytes=256 << 20, sync=True, clock=time.monotonic
    ):
        self._folder = os.fspath(folder)
        self._max_bytes = max_bytes
        self._file_bytes = max(1, max_bytes // _NUM_FILES)
        self._sync = sync
        self._clock = clock
        self._changed = threading.Condition()
        self._files = collections.deque()
        self._places = collections.OrderedDict()
        self._next = None
        self._acknowledged = 0
        self._is_closed = False
        #: Seconds that `append` has waited for room.
        self.waited_s = 0.0
        os.makedirs(self._folder, exist_ok=True)
        try:
            self._open_all()
        except BaseException:
            self._close_all()
            raise

    @property
    def first_sequence(self):
        """The oldest record that is kept; `None` without one."""
        with self._changed:
            return next(iter(self._places), None)

    @property
    def next_sequence(self):
        """The sequence number to append next; `None` if any will do."""
        return self._next

    @property
    def num_bytes(self):
        """Bytes of all files."""
        with self._changed:
            return sum(file.size for file in self._files)

    def __len__(self):
        with self._changed:
            return len(self._places)

    def append(self, sequence, content, timeout_s=None):
        """Adds a record; waits while there is no room for it.

        Args:
            sequence: Its number, one after that of the last record.
            content: Bytes.
            timeout_s: Seconds to wait at most; `None` waits for ever.

        Returns:
            Whether it was added; not, if there was no room in time.

        Raises:
            ValueError: If the number is another, if the journal is closed or
                if the record is larger than the journal may be.
            OSError: If the disk is full and nothing can be waited for, or if
                it fails. The journal is as before then. The disk is not
                waited for: what may fail is also the record before.
        """
        needed = OVERHEAD_BYTES + len(content)
        if needed > min(self._max_bytes, _MAX_CONTENT):
            raise ValueError(
                f"Expected records that fit into {self._max_bytes} bytes. "
                f"Received: one that needs {needed}. Give the journal more "
                "bytes, or make batches smaller."
            )
        started = self._clock()
        with self._changed:
            if self._next not in (None, sequence):
                raise ValueError(
                    f"Expected record {self._next}. Received: record "
                    f"{sequence}. Append one after the other."
                )
            while True:
                if self._is_closed:
                    raise ValueError(
                        "Expected an open journal. Received: one after "
                        "`close()`. Make a new one."
                    )
                if self._try_append(sequence, content, needed):
                    return True
                before = self._clock()
                left_s = None
                if timeout_s is not None:
                    left_s = timeout_s - (before - started)
                    if left_s <= 0:
                        return False
                self._changed.wait(left_s)
                self.waited_s += self._clock() - before

    def read(self, sequence):
        """The content of a record.

        Args:
            sequence: Its number.

        Returns:
            Bytes, or `None` if there is no such record.

        Raises:
            DamagedJournal: If it is not what was written any more.
            OSError: If it cannot be flushed to the disk.
        """
        with self._changed:
            place = self._places.get(sequence)
            if place is None:
                return None
            self._flush()
            return place.file.content(place)

    def flush(self):
        """Waits until all records are on the disk.

        Raises:
            OSError: If it fails.
        """
        with self._changed:
            self._flush()

    def wait(self, sequence, timeout_s=None):
        """Waits for a record.

        Args:
            sequence: Its number.
            timeout_s: Seconds to wait at most.

        Returns:
            Whether it is there.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or sequence in self._places, timeout_s
            )
            return sequence in self._places

    def wait_acknowledged(self, sequence, timeout_s=None):
        """Waits until all records below a number are acknowledged.

        Args:
            sequence: The number.
            timeout_s: Seconds to wait at most.

        Returns:
            Whether they are.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or self._acknowledged >= sequence,
                timeout_s,
            )
            return self._acknowledged >= sequence

    def acknowledge(self, sequence):
        """Forgets all records below a number; deletes files of them alone.

        Args:
            sequence: The number.
        """
        with self._changed:
            self._acknowledged = max(self._acknowledged, sequence)
            while self._places and next(iter(self._places)) < sequence:
                self._places.popitem(last=False)
            while len(self._files) > 1 and self._files[1].first <= sequence:
                self._files.popleft().delete()
            self._changed.notify_all()

    def wake(self):
        """Lets whoever waits look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self):
        """Closes the files; what is in them stays."""
        with self._changed:
            self._is_closed = True
            self._close_all()
            self._changed.notify_all()

    def _flush(self):
        if self._sync:
            for file in self._files:
                file.flush()

    def _try_append(self, sequence, content, needed):
        """Whether it could be added; says no where that may change."""
        # At most one record is torn by a power failure, the last one.
        self._flush()
        active = self._files[-1] if self._files else None
        if active is not None and not self._places:
            # Nothing in it is needed any more.
            if active.is_empty or active.size + needed > self._file_bytes:
                self._files.pop().delete()
                active = None
        used = sum(file.size for file in self._files)
        if used + needed > self._max_bytes:
            return False
        try:
            if active is None or (
                not active.is_empty and active.size + needed > self._file_bytes
            ):
                active = JournalFile.create(self._folder, sequence, self._sync)
                self._files.append(active)
            place = active.add(sequence, content)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if self._places:
                return False
            if active is None or active.is_empty:
                raise
            # Old records may be what the disk is full of.
            self._files.pop().delete()
            return self._try_append(sequence, content, needed)
        self._places[sequence] = place
        self._next = sequence + 1
        self._changed.notify_all()
        return True

    def _open_all(self):
        names = sorted(filter(NAME.fullmatch, os.listdir(self._folder)))
        for name in names:
            file = JournalFile(os.path.join(self._folder, name))
            self._files.append(file)
            is_last = name == names[-1]
            if self._next not in (None, file.first):
                raise _misplaced(file, 0, file.first, self._next)
            wanted = file.first
            for sequence, place in file.records(is_last, self._sync):
                if sequence != wanted:
                    raise _misplaced(file, place.offset, sequence, wanted)
                self._places[sequence] = place
                self._next = wanted = sequence + 1
            if file.is_empty and not is_last:
                raise DamagedJournal(file.path, file.size, "an early end")
            if file.is_empty:
                # Made, and then nothing was written any more.
                self._files.pop().delete()

    def _close_all(self):
        for file in self._files:
            file.close()


def _misplaced(file, offset, sequence, wanted):
    return DamagedJournal(
        file.path, offset, f"record {sequence} in place of {wanted}"
    )

"""The files of a journal, and how a torn one is told from a damaged one.

Records have a checksum of their head besides that of their content: only so
can a record that was torn by a crash be told from one whose length is damaged.
The first is cut off, since nobody was told that it is there; the second stops,
since good records may follow.
"""

import contextlib
import os
import re
import struct
import zlib
from typing import NamedTuple

_MAGIC = b"kexjrnl1"
# Bytes of the content, its sequence number, its checksum; then that of these.
_HEAD = struct.Struct("<IQI")
_CHECK = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + _CHECK.size
NAME = re.compile(r"(\d{20})\.journal")
#: Bytes of a file with one record besides that record's content.
OVERHEAD_BYTES = len(_MAGIC) + _HEAD_BYTES


class DamagedJournal(ValueError):
    """A journal that does not hold what was written.

    Args:
        path: The file.
        offset: Where in it the first record starts that is wrong.
        reason: What is wrong with it.
    """

    def __init__(self, path, offset, reason):
        super().__init__(
            "Expected a journal as it was written. Received: "
            f"{str(path)!r}, {reason} at byte {offset}. Look at the disk; to "
            "go on from the last checkpoint without these records, remove the "
            "folder of the journal."
        )
        self.path, self.offset = path, offset


class Place(NamedTuple):
    """Where a record is: in which file, from which byte on.

    Args:
        file: A `JournalFile`.
        offset: Where its head starts.
        length: Bytes of its content.
        checksum: CRC-32 of its content.
    """

    file: "JournalFile"
    offset: int
    length: int
    checksum: int


class JournalFile:
    """One file of a journal; its name is the number of its first record.

    Args:
        path: The file, which is there.
    """

    def __init__(self, path):
        self.path = path
        self.first = int(NAME.fullmatch(os.path.basename(path))[1])
        self._descriptor = os.open(path, os.O_RDWR)
        self.size = os.fstat(self._descriptor).st_size
        # Nobody knows whether a process that was killed had come to it.
        self._is_flushed = False

    @classmethod
    def create(cls, folder, first, sync):
        """Makes a file for the record `first` and those after it."""
        path = os.path.join(folder, f"{first:020d}.journal")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        file = cls(path)
        try:
            file._append(_MAGIC)
            if sync:
                file.flush()
                _flush_folder(folder)
        except OSError:
            file.delete()
            raise
        return file

    def add(self, sequence, content):
        """Adds a record at the end, or leaves the file as it was."""
        place = Place(self, self.size, len(content), zlib.crc32(content))
        head = _HEAD.pack(len(content), sequence, place.checksum)
        check = _CHECK.pack(zlib.crc32(head))
        self._append(b"".join((head, check, content)))
        return place

    def flush(self):
        """Waits until all that was written is on the disk."""
        if not self._is_flushed:
            os.fsync(self._descriptor)
            self._is_flushed = True

    def content(self, place):
        """The content of a record."""
        found = self._read(place.offset + _HEAD_BYTES, place.length)
        if zlib.crc32(found) != place.checksum:
            raise DamagedJournal(self.path, place.offset, "a wrong checksum")
        return found

    def records(self, is_last, sync):
        """The records, in their order; a torn end is cut off.

        Args:
            is_last: Whether it is the file that was written to last: only
                that can have been torn.
            sync: Whether a cut is flushed to the disk.

        Yields:
            `(sequence, place)`.

        Raises:
            DamagedJournal: If it is not what was written.
        """
        if self._read(0, len(_MAGIC)) != _MAGIC:
            if not (is_last and self._has_torn_start()):
                raise DamagedJournal(self.path, 0, "no journal's head")
            self._cut(0, sync)
        offset = len(_MAGIC)
        while offset < self.size:
            head = self._read(offset, _HEAD_BYTES)
            if not self._is_whole(head, offset):
                if not is_last:
                    raise DamagedJournal(self.path, offset, "an early end")
                self._cut(offset, sync)
                return
            length, sequence, checksum = _HEAD.unpack_from(head)
            place = Place(self, offset, length, checksum)
            self.content(place)
            yield sequence, place
            offset += _HEAD_BYTES + length

    def _is_whole(self, head, offset):
        """Whether a record ends in the file; damage is told from a tear."""
        if len(head) < _HEAD_BYTES:
            return False
        (checksum,) = _CHECK.unpack_from(head, _HEAD.size)
        if zlib.crc32(head[: _HEAD.size]) != checksum:
            # After a power failure the end of a file may be zeros.
            if any(self._read(offset, self.size - offset)):
                raise DamagedJournal(self.path, offset, "a damaged head")
            return False
        length, _, _ = _HEAD.unpack_from(head)
        return offset + _HEAD_BYTES + length <= self.size

    def _append(self, data):
        view, written = memoryview(data), 0
        self._is_flushed = False
        try:
            while written < len(view):
                written += os.pwrite(
                    self._descriptor, view[written:], self.size + written
                )
        except OSError:
            # What is left of it would be taken for damage.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(view)

    def _read(self, offset, length):
        parts, end = [], offset + length
        while offset < end:
            part = os.pread(self._descriptor, end - offset, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    @property
    def is_empty(self):
        """Whether there is no record in it."""
        return self.size <= len(_MAGIC)

    def _has_torn_start(self):
        """Whether the first write to it may have ended early."""
        found = self._read(0, self.size)
        is_part = len(found) < len(_MAGIC) and _MAGIC.startswith(found)
        return is_part or not any(found)

    def _cut(self, size, sync):
        os.ftruncate(self._descriptor, size)
        if sync:
            os.fsync(self._descriptor)
        self.size = size

    def delete(self):
        """Closes the file and removes it."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self):
        """Closes the file; it may be closed already."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _flush_folder(folder):
    """Flushes the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

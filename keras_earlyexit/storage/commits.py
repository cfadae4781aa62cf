"""A state in an object store, of which each commit has a number.

A commit is there once the small object with its number is: the store lets one
writer create that, and the state was written before, under a name of its own.
Who is not the only writer any more finds its number taken, or a higher one
there, and commits nothing from then on.
"""

import hashlib
import secrets

from keras_earlyexit.storage.objects import (
    MAX_POINTER_BYTES,
    Store,
    pointer,
    read_pointer,
)

_KIND = "keras_earlyexit commit"
_COMMITS, _DATA = "commits", "data"
# Of the commits before the last one, for whoever is reading.
_KEPT = 2


class TakenOver(OSError):
    """Another process commits to the same place."""


class Commits:
    """The committed state at a URL.

    Args:
        url: Where it is.

    Raises:
        OSError: If the store cannot be used.
    """

    def __init__(self, url):
        self._store = Store(url)
        self._number = self._newest()
        self._tried = set()
        self._is_lost = False

    @property
    def url(self):
        """Where it is."""
        return self._store.url

    def take_over(self):
        """Commits what is there once more, so that no earlier writer can."""
        if not self._number:
            return
        found = self._pointer(self._number)
        number = self._number + 1
        try:
            self._store.create(
                _name(number),
                pointer(_KIND, **{**found, "id": secrets.token_hex(16)}),
            )
        except FileExistsError as error:
            raise self._taken_over() from error
        self._number = number

    def read(self):
        """The state that was committed last, in parts; `None` for none.

        Returns:
            Iterator of bytes, which raises `ValueError` at the end if they
            are not what was written.
        """
        if not self._number:
            return None
        found = self._pointer(self._number)
        return self._checked(found)

    def write(self, file):
        """Commits the content of a file.

        Args:
            file: Path of it.

        Raises:
            TakenOver: If another process has committed since.
            OSError: If the store cannot be written. What was committed before
                still is.
        """
        if self._is_lost:
            raise self._taken_over()
        size, sha256 = _digest(file)
        token = secrets.token_hex(16)
        self._store.upload(file, f"{_DATA}/{token}")
        # The answer to an earlier try may have been lost, not the commit.
        while self._is_ours(self._number + 1):
            self._number += 1
        self._tried.add(token)
        content = pointer(
            _KIND, id=token, data=token, size_bytes=size, sha256=sha256
        )
        number = self._number + 1
        try:
            self._store.create(_name(number), content)
        except FileExistsError as error:
            if not self._is_ours(number):
                self._is_lost = True
                raise self._taken_over() from error
        if self._newest() != number:
            self._is_lost = True
            raise self._taken_over()
        self._number, self._tried = number, {token}
        self._prune()

    def _checked(self, found):
        digest = hashlib.sha256()
        name = f"{_DATA}/{found['data']}"
        for part in self._store.chunks(name, found["size_bytes"]):
            digest.update(part)
            yield part
        if digest.hexdigest() != found["sha256"]:
            raise ValueError(
                f"Expected {self.url}/{name} with the SHA-256 "
                f"{found['sha256']}. Received: {digest.hexdigest()}. It is "
                "damaged: remove the newest commit to go on from the one "
                "before."
            )

    def _newest(self):
        found = [_number(name) for name in self._store.names(_COMMITS)]
        return max((x for x in found if x is not None), default=0)

    def _pointer(self, number):
        data = self._store.read(_name(number), MAX_POINTER_BYTES)
        found = read_pointer(
            data, _KIND, id=str, data=str, size_bytes=int, sha256=str
        )
        if not found["data"].isalnum() or found["size_bytes"] < 0:
            raise ValueError(
                f"Expected {self.url}/{_name(number)} with a name and a size. "
                f"Received: {found}. Write it anew."
            )
        return found

    def _is_ours(self, number):
        try:
            return self._pointer(number)["id"] in self._tried
        except FileNotFoundError:
            return False

    def _prune(self):
        least = self._number - _KEPT
        numbers = [_number(name) for name in self._store.names(_COMMITS)]
        found = {x: self._pointer(x)["data"] for x in numbers if x is not None}
        used = {token for x, token in found.items() if x >= least}
        for number in sorted(x for x in found if x < least):
            if found[number] not in used:
                self._store.remove(f"{_DATA}/{found[number]}")
            self._store.remove(_name(number))

    def _taken_over(self):
        return TakenOver(
            f"Expected to be the only one that commits to {self.url}. "
            "Received: a commit of another process. End one of the two."
        )


def _name(number):
    return f"{_COMMITS}/{number:012d}"


def _number(name):
    return int(name) if name.isdecimal() and len(name) == 12 else None


def _digest(file):
    digest, size = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()

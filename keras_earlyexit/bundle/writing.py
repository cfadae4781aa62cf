"""Writes a folder whole or not at all.

Everything goes into a temporary folder beside the place where it shall be.
When it is complete, files and folders are flushed to the disk, and then the
temporary folder is renamed. Whoever is killed in between leaves a temporary
folder behind, and nothing else: the next one to write there removes it. A
folder in use is told from one left behind by a lock that ends with its process.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil

from keras_earlyexit.bundle.manifest import MANIFEST

_PARTIAL = ".partial"
_REPLACED = ".replaced"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def new_folder(path, overwrite=False):
    """A temporary folder that stands at `path` once the block has ended.

    Args:
        path: Where the folder shall be.
        overwrite: Whether it may take the place of bundles that are there.

    Yields:
        Path of the temporary folder. It is removed if the block raises.

    Raises:
        FileExistsError: If there is something at `path`, unless it is a
            bundle, or a folder of bundles, and `overwrite` is set.
        FileNotFoundError: If the folder around `path` does not exist.
    """
    path = os.path.abspath(path)
    around, name = os.path.split(path)
    if not os.path.isdir(around):
        raise FileNotFoundError(
            f"Expected the folder {around!r} to write {name!r} into. "
            "Received: nothing of that name. Make it first."
        )
    check_free(path, overwrite)
    remove_left_behind(path)
    temporary = os.path.join(
        around, f".{name}.{secrets.token_hex(8)}{_PARTIAL}"
    )
    os.mkdir(temporary)
    lock = _lock(temporary)
    try:
        yield temporary
        _flush(temporary)
        check_free(path, overwrite)
        _put(temporary, path)
        _flush_one(around)
    finally:
        # Nothing, what failed, or what stood there before.
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_left_behind(path):
    """Removes temporary folders for `path` whose process is gone."""
    around, name = os.path.split(os.path.abspath(path))
    ours = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}(\.[a-z]+)")
    for entry in os.listdir(around):
        where = os.path.join(around, entry)
        found = ours.fullmatch(entry)
        kind = found and found[1]
        if kind == _REPLACED and not os.path.lexists(path):
            os.rename(where, path)
        elif kind in (_PARTIAL, _REPLACED):
            lock = _lock(where)
            if lock is not None:
                shutil.rmtree(where, ignore_errors=True)
                os.close(lock)


def check_free(path, overwrite=False):
    """Refuses a place where something is that may not be replaced.

    Args:
        path: Where a folder shall be.
        overwrite: Whether bundles may be there.

    Raises:
        FileExistsError: If there is something else.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(
            f"Expected nothing at {path!r}. Received: a path that exists. "
            "Choose another, or pass overwrite=True to replace a bundle."
        )
    entries = os.listdir(path) if os.path.isdir(path) else None
    bundles = entries and all(
        os.path.isfile(os.path.join(path, entry, MANIFEST)) for entry in entries
    )
    if os.path.islink(path) or not (
        entries == [] or bundles or MANIFEST in (entries or ())
    ):
        raise FileExistsError(
            f"Expected {path!r} to be a bundle or nothing: overwrite=True "
            "replaces bundles only. Received: something else. Choose another "
            "path, or remove it yourself."
        )


def _lock(folder):
    """A descriptor that holds a folder's lock; `None` if that cannot be."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing is removed then.
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _flush(folder):
    for place, _, files in os.walk(folder, topdown=False):
        for file in files:
            _flush_one(os.path.join(place, file))
        _flush_one(place)


def _flush_one(path):
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.path.isdir(path):  # Windows opens no folders.
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(temporary, path):
    """Renames the temporary folder, exchanging it with what is there."""
    if not os.path.lexists(path):
        os.rename(temporary, path)
    elif not _exchange(temporary, path):
        # A kill here leaves nothing at `path`, until the next one to write
        # there puts the folder back.
        before = f"{temporary.removesuffix(_PARTIAL)}{_REPLACED}"
        os.rename(path, before)
        os.rename(temporary, path)
        shutil.rmtree(before, ignore_errors=True)


def _exchange(one, other):
    """Exchanges two paths in one step; `False` where that does not exist."""
    if os.name != "posix":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(
        _AT_FDCWD,
        os.fsencode(one),
        _AT_FDCWD,
        os.fsencode(other),
        _RENAME_EXCHANGE,
    )

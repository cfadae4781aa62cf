"""The files of a bundle: only those in its manifest, whole and unchanged.

Sizes are looked at before anything is read and hashes before anything is
parsed. No link is followed inside a bundle. The hashes show damage; against
somebody who can write a manifest too, hand in the manifest's own SHA-256.
"""

import hashlib
import os
import stat

from keras_earlyexit.bundle import parsing
from keras_earlyexit.bundle.manifest import MANIFEST, MAX_FILES, FileEntry
from keras_earlyexit.bundle.specs import BundleError

_CHUNK_BYTES = 2**20


def read_manifest(path, sha256=None):
    """Reads the manifest of a bundle.

    Args:
        path: The bundle's folder.
        sha256: What the SHA-256 of `manifest.json` must be, in hex; `None`
            takes any.

    Returns:
        `(manifest, sha256)`: a `Manifest` and the hash that it has.

    Raises:
        FileNotFoundError: If there is no bundle at `path`.
        BundleError: If the manifest cannot be read.
    """
    file = os.path.join(path, MANIFEST)
    if not os.path.lexists(file):
        raise FileNotFoundError(
            f"Expected a bundle, a folder with {MANIFEST}, as `ee.export` "
            f"writes it. Received: {os.fspath(path)!r}{_instead(path)}"
        )
    if not stat.S_ISREG(os.lstat(file).st_mode):
        raise BundleError(
            f"Expected {file!r} to be a file. Received: a link or a device. "
            "Copy the bundle whole."
        )
    data, found = _read(file, at_most=parsing.MAX_BYTES)
    if sha256 is not None and found != sha256.lower():
        raise BundleError(
            f"Expected {MANIFEST} with the SHA-256 {sha256}. Received: "
            f"{found}, in {os.fspath(path)!r}. It is another bundle, or "
            "somebody has changed it."
        )
    return parsing.parse(data), found


def _instead(path):
    if not os.path.isdir(path):
        return ", which does not exist."
    names = sorted(os.listdir(path))
    segments = [name for name in names if name.startswith("segment_")]
    if segments:
        return f", a folder of the bundles {', '.join(segments)}. Load one."
    return f", a folder with {len(names)} entries and no manifest."


def check_files(path, manifest, keep):
    """Compares the files of a bundle with its manifest.

    Args:
        path: The bundle's folder.
        manifest: Its `Manifest`.
        keep: Whether the bytes of the files are wanted.

    Returns:
        Dict path -> bytes; empty without `keep`.

    Raises:
        BundleError: If a file is missing, is not in the manifest, is a link,
            or has another size or hash.
    """
    listed = {file.path: file for file in manifest.files}
    there = _files(path, at_most=len(listed) + 1)
    missing, extra = set(listed) - there, there - {*listed, MANIFEST}
    if missing or extra:
        raise BundleError(
            f"Expected in {os.fspath(path)!r} the {len(listed)} files of its "
            f"manifest. Missing: {sorted(missing)[:5]}; not in the manifest: "
            f"{sorted(extra)[:5]}. Export the bundle again, and copy it whole."
        )
    contents = {}
    for name, file in listed.items():
        where = os.path.join(path, *name.split("/"))
        size = os.lstat(where).st_size
        if size != file.size_bytes:
            raise _damaged(where, f"{file.size_bytes} bytes", f"{size} bytes")
        data, found = _read(where, at_most=file.size_bytes, keep=keep)
        if found != file.sha256:
            raise _damaged(where, f"the SHA-256 {file.sha256}", found)
        if keep:
            contents[name] = data
    return contents


def describe(path):
    """A `FileEntry` for each file in a folder that is no manifest yet."""
    return tuple(
        FileEntry(
            name,
            os.path.getsize(os.path.join(path, name)),
            _read(os.path.join(path, name), keep=False)[1],
        )
        for name in sorted(_files(path, at_most=MAX_FILES))
    )


def _files(path, at_most):
    """Relative paths of all files in a folder, refusing links."""
    found = set()
    for folder, names, files in os.walk(path, onerror=_raise):
        for name in [*names, *files]:
            where = os.path.join(folder, name)
            mode = os.lstat(where).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise BundleError(
                    "Expected files and folders in a bundle, and no links or "
                    f"devices. Received: {where!r}. Copy the bundle whole."
                )
            if stat.S_ISREG(mode):
                found.add(os.path.relpath(where, path).replace(os.sep, "/"))
        # What is behind the first few that are too many is of no interest.
        if len(found) > at_most:
            return found
    return found


def _read(file, at_most=None, keep=True):
    """Bytes of a file (or none of them) and their SHA-256."""
    digest, parts, size = hashlib.sha256(), [], 0
    # A link that came in between is not followed, a pipe does not block.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(file, flags), "rb") as stream:
        while part := stream.read(_CHUNK_BYTES):
            size += len(part)
            if at_most is not None and size > at_most:
                raise _damaged(file, f"at most {at_most} bytes", "more")
            digest.update(part)
            if keep:
                parts.append(part)
    return b"".join(parts), digest.hexdigest()


def _damaged(file, expected, received):
    return BundleError(
        f"Expected {os.fspath(file)!r} with {expected}. Received: {received}. "
        "The bundle is damaged or was changed: export it again."
    )


def _raise(error):
    raise error

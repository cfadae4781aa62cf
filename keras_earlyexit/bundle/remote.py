"""Bundles in an object store.

At the URL of a bundle there is `current.json`, which names the folder of the
newest one and the SHA-256 of its manifest; older ones stay beside it. A bundle
that was copied there by other means, its manifest right at the URL, is read as
well.
"""

import hashlib
import os
import pathlib

from keras_earlyexit.bundle import folder, parsing, writing
from keras_earlyexit.bundle.manifest import MANIFEST
from keras_earlyexit.bundle.specs import BundleError
from keras_earlyexit.storage.objects import (
    MAX_POINTER_BYTES,
    Store,
    pointer,
    read_pointer,
)

CURRENT = "current.json"
_KIND = "keras_earlyexit current bundle"
_GENERATIONS = "generations"
#: Bytes of all files of a bundle that is fetched, unless it is told.
MAX_BYTES = 16 << 30
#: Environment variable with the folder that fetched bundles are kept in.
CACHE = "KERAS_EARLYEXIT_CACHE"


def publish(path, url, overwrite=False):
    """Writes a bundle of this machine to an object store.

    Whoever reads gets the one before until the last object is written, and
    this one from then on.

    Args:
        path: The bundle's folder.
        url: Where to; that of the bundle itself.
        overwrite: Whether it may come after a bundle that is there.

    Returns:
        The SHA-256 of its manifest.

    Raises:
        FileExistsError: If there is one and `overwrite` is not set.
        OSError: If it cannot be written.
    """
    store = Store(url)
    if not overwrite:
        check_free(url)
    manifest, sha256 = folder.read_manifest(path)
    folder.check_files(path, manifest, keep=False)
    place = f"{_GENERATIONS}/{sha256[:32]}"
    for name in (*(file.path for file in manifest.files), MANIFEST):
        store.upload(os.path.join(path, *name.split("/")), f"{place}/{name}")
    store.write(
        CURRENT, pointer(_KIND, generation=place, manifest_sha256=sha256)
    )
    return sha256


def check_free(url):
    """Raises `FileExistsError` if there is a bundle at a URL."""
    store = Store(url)
    for name in (CURRENT, MANIFEST):
        try:
            store.size(name)
        except FileNotFoundError:
            continue
        raise FileExistsError(
            f"Expected no bundle at {store.url}. Received: one. Choose another "
            "place, or pass overwrite=True for a newer generation of it."
        )


def fetch(url, manifest_sha256=None, max_bytes=MAX_BYTES, cache=None):
    """Brings a bundle to this machine, unless it is there already.

    Sizes are looked at before anything is read, the hash of the manifest
    before it is parsed, and that of each file before it is kept.

    Args:
        url: Where it is.
        manifest_sha256: What the SHA-256 of its manifest must be, in hex;
            `None` takes the newest.
        max_bytes: Bytes of all its files at most.
        cache: Folder to keep it in; `None` takes that of the environment
            variable `KERAS_EARLYEXIT_CACHE`, or `~/.cache/keras_earlyexit`.

    Returns:
        `(path, sha256)`: its folder here, and the hash of its manifest.

    Raises:
        FileNotFoundError: If there is none.
        BundleError: If it is not what it should be.
        OSError: If the store cannot be read, or the folder written.
    """
    store = Store(url)
    place, expected = _place(store, manifest_sha256)
    try:
        data = store.read(f"{place}{MANIFEST}", parsing.MAX_BYTES)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected a bundle, as `ee.export` writes it. Received: {url}, "
            f"where there is no {place}{MANIFEST}. Correct the URL."
        ) from error
    except ValueError as error:
        raise BundleError(str(error)) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if expected is not None and sha256 != expected.lower():
        raise BundleError(
            f"Expected {MANIFEST} with the SHA-256 {expected}. Received: "
            f"{sha256}, at {url}. It is another bundle, or somebody has "
            "changed it."
        )
    manifest = parsing.parse(data)
    total = sum(file.size_bytes for file in manifest.files)
    if total > max_bytes:
        raise BundleError(
            f"Expected a bundle of at most {max_bytes} bytes. Received: "
            f"{total}, at {url}. Look at the URL, or pass a larger max_bytes."
        )
    path = _cache(cache) / sha256
    if not _is_whole(path, sha256):
        _download(store, place, manifest, data, path)
    return os.fspath(path), sha256


def version(url):
    """What is different once there is a newer bundle; empty for none."""
    store = Store(url)
    for name in (CURRENT, MANIFEST):
        try:
            data = store.read(name, parsing.MAX_BYTES)
        except FileNotFoundError:
            continue
        return hashlib.sha256(data).hexdigest()
    return ""


def _place(store, manifest_sha256):
    """Which folder to read, and the hash that its manifest must have."""
    try:
        data = store.read(CURRENT, MAX_POINTER_BYTES)
    except FileNotFoundError:
        return "", manifest_sha256
    try:
        found = read_pointer(data, _KIND, generation=str, manifest_sha256=str)
    except ValueError as error:
        raise BundleError(str(error)) from error
    if manifest_sha256 is not None:
        manifest_sha256 = manifest_sha256.lower()
        # The one that was asked for, though there may be a newer one.
        return f"{_GENERATIONS}/{manifest_sha256[:32]}/", manifest_sha256
    sha256 = found["manifest_sha256"]
    place = f"{_GENERATIONS}/{sha256[:32]}"
    if found["generation"] != place:
        raise BundleError(
            f"Expected {CURRENT} to name {place!r}. Received: "
            f"{found['generation'][:200]!r}. Export the bundle again."
        )
    return f"{place}/", sha256


def _cache(cache):
    if cache is None:
        cache = os.environ.get(CACHE) or os.path.expanduser(
            "~/.cache/keras_earlyexit"
        )
    path = pathlib.Path(cache).absolute() / "bundles"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _is_whole(path, sha256):
    try:
        manifest, _ = folder.read_manifest(path, sha256)
        folder.check_files(path, manifest, keep=False)
    except (OSError, BundleError):
        return False
    return True


def _download(store, place, manifest, data, path):
    with writing.new_folder(path, overwrite=True) as temporary:
        for file in manifest.files:
            where = os.path.join(temporary, *file.path.split("/"))
            os.makedirs(os.path.dirname(where), exist_ok=True)
            digest = hashlib.sha256()
            name = f"{place}{file.path}"
            with open(where, "xb") as out:
                try:
                    for part in store.chunks(name, file.size_bytes):
                        digest.update(part)
                        out.write(part)
                except FileNotFoundError as error:
                    raise BundleError(
                        f"Expected {store.url}/{name}, which the manifest "
                        "names. Received: nothing there. Export it again."
                    ) from error
                except ValueError as error:
                    raise BundleError(str(error)) from error
            if digest.hexdigest() != file.sha256:
                raise BundleError(
                    f"Expected {store.url}/{name} with the SHA-256 "
                    f"{file.sha256}. Received: {digest.hexdigest()}. The "
                    "bundle is damaged or was changed: export it again."
                )
        with open(os.path.join(temporary, MANIFEST), "xb") as out:
            out.write(data)

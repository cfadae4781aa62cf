"""Sees when what a worker starts from has changed."""

import os

from keras_earlyexit.storage.urls import is_url


class Watch:
    """Sees which sources have changed.

    A source counts as changed once it has stayed the same for one look, so
    that one which is being copied is left alone.

    Args:
        sources: Paths of bundles or `.keras` files, or URLs of bundles.
    """

    def __init__(self, sources):
        self._loaded = {source: fingerprint(source) for source in sources}
        self._seen = dict(self._loaded)

    def changed(self, at_once=False):
        """Looks again.

        Args:
            at_once: Whether not to wait for another look.

        Returns:
            The sources to load anew. Each is told once, until it changes
            again.
        """
        found = []
        for source, loaded in self._loaded.items():
            now = fingerprint(source)
            is_steady = at_once or now == self._seen[source]
            self._seen[source] = now
            if now and now != loaded and is_steady:
                self._loaded[source] = now
                found.append(source)
        return found


def fingerprint(source):
    """What is different once a file of a source is: nothing if it is gone."""
    if is_url(source):
        return _version(source)
    found = []
    paths = [source]
    for folder, _, files in os.walk(source):
        paths += [os.path.join(folder, name) for name in files]
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.append(
            (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        )
    return tuple(sorted(found))


def _version(url):
    from keras_earlyexit.bundle.remote import version

    try:
        return tuple(filter(None, [version(url)]))
    except OSError:
        # It is asked again soon.
        return ()

"""A folder in an object store, reached through fsspec."""

import contextlib
import json

_CHUNK_BYTES = 8 << 20
#: Of the small objects that say what is there.
MAX_POINTER_BYTES = 64 << 10
# Deadlines where fsspec's own are long or missing.
_OPTIONS = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 4, "mode": "standard"},
        }
    }
}


class Store:
    """Objects below a URL, none of them read beyond a size.

    Args:
        url: Such as `s3://bucket/folder`, or what else fsspec knows.

    Raises:
        ImportError: If fsspec, or what it needs for this kind of URL, is not
            installed.
        OSError: If it cannot be used.
    """

    def __init__(self, url):
        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        options = _OPTIONS.get(protocol, {})
        try:
            import fsspec

            with _told(url):
                # What another machine has written is to be seen at once.
                self._files, self._root = fsspec.core.url_to_fs(
                    self.url, use_listings_cache=False, **options
                )
        except ImportError as error:
            raise ImportError(
                f"Expected what reads {protocol}:// URLs. Received: {error}. "
                'Install it with: pip install "keras-earlyexit[storage]"'
            ) from error

    def size(self, name):
        """Bytes of an object.

        Raises:
            FileNotFoundError: If it is not there.
        """
        with self._at(name) as path:
            return int(self._files.info(path)["size"])

    def read(self, name, at_most):
        """The bytes of a small object.

        Args:
            name: Relative to the store's URL.
            at_most: How many it may have; looked at before it is read.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is larger.
        """
        self._check_size(name, at_most)
        with self._at(name) as path:
            return self._files.cat_file(path, start=0, end=at_most)

    def chunks(self, name, num_bytes):
        """The bytes of an object, in parts.

        Args:
            name: Relative to the store's URL.
            num_bytes: How many it has to have.

        Yields:
            bytes.
        """
        found = self.size(name)
        if found != num_bytes:
            raise ValueError(
                f"Expected {self.url}/{name} with {num_bytes} bytes. Received: "
                f"{found}. It was changed, or is damaged."
            )
        for start in range(0, num_bytes, _CHUNK_BYTES):
            end = min(start + _CHUNK_BYTES, num_bytes)
            with self._at(name) as path:
                part = self._files.cat_file(path, start=start, end=end)
            yield part

    def write(self, name, data):
        """Writes an object, over one that is there."""
        with self._at(name) as path:
            self._make_room(path)
            self._files.pipe_file(path, data)

    def create(self, name, data):
        """Writes an object that is not there yet.

        Raises:
            FileExistsError: If it is. Of several that try, one succeeds.
        """
        with self._at(name) as path:
            self._make_room(path)
            self._files.pipe_file(path, data, mode="create")

    def upload(self, file, name):
        """Writes a file of this machine as an object."""
        with self._at(name) as path:
            self._make_room(path)
            self._files.put_file(str(file), path)

    def names(self, folder):
        """Names of the objects right in a folder, sorted."""
        with self._at(folder) as path:
            try:
                found = self._files.ls(path, detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return sorted(each.rstrip("/").rpartition("/")[2] for each in found)

    def remove(self, name):
        """Removes an object; one that is not there is fine."""
        with self._at(name) as path, contextlib.suppress(FileNotFoundError):
            self._files.rm_file(path)

    def _check_size(self, name, at_most):
        size = self.size(name)
        if size > at_most:
            raise ValueError(
                f"Expected {self.url}/{name} with at most {at_most} bytes. "
                f"Received: {size}. Look at the URL."
            )

    def _make_room(self, path):
        # Elsewhere it would do nothing, or make a bucket.
        if self.url.startswith("file://"):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _at(self, name):
        with _told(f"{self.url}/{name}"):
            yield f"{self._root}/{name}"


@contextlib.contextmanager
def _told(url):
    """What goes wrong is an `OSError`, whatever reaches the store raises."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        raise OSError(
            f"Expected an object store that can be used at {url}. Received: "
            f"{type(error).__name__}: {error}. Look at the URL, the network "
            "and the credentials."
        ) from error


def pointer(kind, /, **content):
    """The bytes of a small object that says what is there."""
    return json.dumps({**content, "kind": kind}, sort_keys=True).encode()


def read_pointer(data, kind, /, **fields):
    """What such an object says.

    Args:
        data: Its bytes.
        kind: What it has to be.
        **fields: The type of each thing that it has to tell.

    Raises:
        ValueError: If it is something else.
    """
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if (
        not isinstance(found, dict)
        or found.get("kind") != kind
        or any(type(found.get(key)) is not x for key, x in fields.items())
    ):
        raise ValueError(
            f"Expected a {kind} with {', '.join(fields)}. Received: "
            f"{bytes(data[:80])!r}. Look at the URL, or write it anew."
        )
    return found

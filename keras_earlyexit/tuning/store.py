"""Keeps trained candidates and what was observed, so that a run can go on.

A file is named after a hash of all that it depends on, so that one made with
other data, weights or options is never taken for it; it is written whole or
not at all, and its own hash stands beside it, so that damage is noticed.
"""

import hashlib
import json
import os
import pathlib
import secrets
import warnings

import keras
import numpy as np

from keras_earlyexit import json_values

_CHUNK_BYTES = 2**20


class Store:
    """A folder of files by key.

    Args:
        directory: The folder, made if need be; `None` keeps nothing.
    """

    def __init__(self, directory):
        self._folder = None
        if directory is not None:
            self._folder = pathlib.Path(directory)
            self._folder.mkdir(parents=True, exist_ok=True)

    def model(self, key, make):
        """A trained model: the one that is kept, or a new one.

        Args:
            key: What it depends on, as `key_of` gives it.
            make: Makes it if there is none; gets a folder for what training
                needs to go on after an interruption, or `None`.

        Returns:
            A Keras model.
        """
        if self._folder is None:
            return make(None)
        file = self._folder / f"candidates-{key}.keras"
        if self._is_whole(file):
            return keras.models.load_model(file)
        model = make(self._folder / f"training-{key}")
        self._write(file, model.save)
        return model

    def arrays(self, key, make):
        """Arrays by name: those that are kept, or new ones.

        Args:
            key: As in `model`.
            make: Makes a dict of arrays.

        Returns:
            Dict of arrays.
        """
        if self._folder is None:
            return make()
        file = self._folder / f"observed-{key}.npz"
        if self._is_whole(file):
            with np.load(file, allow_pickle=False) as found:
                return dict(found)
        arrays = make()
        self._write(file, lambda path: np.savez_compressed(path, **arrays))
        return arrays

    def _is_whole(self, file):
        note = file.with_suffix(".json")
        if not (file.exists() and note.exists()):
            return False
        try:
            wanted = json.loads(json_values.read(note))["sha256"]
        except (ValueError, KeyError, TypeError):
            wanted = None
        if wanted == _sha256(file):
            return True
        warnings.warn(
            f"{str(file)!r} is damaged: it has not the hash that stands in "
            f"{note.name!r}. It is made again.",
            stacklevel=4,
        )
        return False

    def _write(self, file, save):
        temporary = file.with_name(
            f"{file.stem}.{secrets.token_hex(4)}{file.suffix}"
        )
        try:
            save(temporary)
            digest = _sha256(temporary)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        json_values.write(
            file.with_suffix(".json"), json.dumps({"sha256": digest}) + "\n"
        )


def key_of(*parts):
    """A short hash of arrays, texts and values that `repr` shows in full."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            shape = f"{part.dtype} {part.shape}"
            content = np.ascontiguousarray(part).tobytes()
        else:
            shape, content = type(part).__name__, repr(part).encode()
        digest.update(f"{shape} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def weights_key(model):
    """A hash of a model's layers and of its weights."""
    return key_of(model.to_json(), *model.get_weights())


def _sha256(file):
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while part := stream.read(_CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()

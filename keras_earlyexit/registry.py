"""Classes that users name by a string: policies, objectives and regimes."""

import difflib

import keras

PACKAGE = "keras_earlyexit"


class Registry:
    """The classes of one kind, by the name that each of them has.

    Args:
        noun: What they are called in messages, such as `"policy"`.
        kind: Their common base class.
    """

    def __init__(self, noun, kind):
        self._noun = noun
        self._kind = kind
        self._classes = {}

    @property
    def names(self):
        """All names, sorted."""
        return tuple(sorted(self._classes))

    def register(self, cls):
        """Makes a class known to `get` and to Keras' saving."""
        self._classes[cls.name] = cls
        return keras.saving.register_keras_serializable(package=PACKAGE)(cls)

    def get(self, identifier, **options):
        """Makes an object from its name.

        Args:
            identifier: A name, an object of this kind, or a config as
                `keras.saving.serialize_keras_object` writes it.
            **options: Passed to the class, with a name only.

        Returns:
            An object of this kind.

        Raises:
            ValueError: For a name that does not exist, or for options without
                a name.
            TypeError: If `identifier` is none of these.
        """
        if isinstance(identifier, self._kind):
            if options:
                raise ValueError(
                    f"Expected options only with the name of a {self._noun}. "
                    f"Received: {identifier!r} and {options!r}."
                )
            return identifier
        if isinstance(identifier, dict):
            return keras.saving.deserialize_keras_object(identifier)
        if not isinstance(identifier, str):
            raise TypeError(
                f"Expected the name of a {self._noun}, a "
                f"{self._kind.__name__} or its config. Received: "
                f"{identifier!r} (of type {type(identifier).__name__})."
            )
        if identifier not in self._classes:
            close = difflib.get_close_matches(identifier, self.names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"Unknown {self._noun} {identifier!r}. Expected one of "
                f"{', '.join(self.names)}.{hint}"
            )
        return self._classes[identifier](**options)

"""Names of a package that load the module which defines them on first use."""

import importlib


def attach(package, homes):
    """Gives a package names that are imported when they are first used.

    Args:
        package: The package's `__name__`.
        homes: Dict from each public name to its module, relative to the
            package.

    Returns:
        `(__getattr__, __dir__, __all__)` for the package to take over.
    """
    names = sorted(homes)

    def load(name):
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}"
            )
        module = importlib.import_module(f".{homes[name]}", package)
        value = getattr(module, name)
        setattr(importlib.import_module(package), name, value)
        return value

    return load, lambda: names, names

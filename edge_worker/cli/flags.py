"""The flags that all commands have, and the worker that they describe."""

import inspect
import pathlib
from typing import Annotated

import typer

_PATH = pathlib.Path | None
#: Name -> type, default and help; what has no default has to be given.
_FLAGS = {
    "bundle": (
        pathlib.Path,
        ...,
        "Folder of the first segment of a model that was cut.",
    ),
    "cloud": (str, ..., "host:port of the cloud worker."),
    "ca": (_PATH, None, "PEM file of the authority of its certificate."),
    "cert": (_PATH, None, "PEM file of this edge's certificate."),
    "key": (_PATH, None, "PEM file of its key."),
    "token_file": (_PATH, None, "File whose first token is sent along."),
    "insecure": (bool, False, "Plain text; to a loopback address only."),
    "edge_id": (
        str | None,
        None,
        "What this edge calls itself (default: as its certificate, or the "
        "host).",
    ),
    "deadline": (float, 2.0, "Seconds that a batch may take."),
    "codec": (str, "float32", "Form in which features cross."),
    "offload": (str, "features", "What is sent: features, input or auto."),
    "allow_raw_input": (bool, False, "Let inputs leave this machine."),
    "offload_rows_per_s": (
        float | None,
        None,
        "The most samples that are sent on in a second.",
    ),
    "max_offload_share": (
        float | None,
        None,
        "The largest share of samples that is sent on.",
    ),
    "threshold": (
        list[float] | None,
        None,
        "Threshold of the early exits, or given once for each (default: the "
        "bundle's).",
    ),
    "num_threads": (int | None, None, "Threads that the stages may use."),
}


def with_flags(command):
    """A command that takes the flags besides its own parameters.

    Args:
        command: A function whose first parameter is a `Settings`.

    Returns:
        A function for typer.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is ... else default,
            annotation=Annotated[kind, typer.Option(help=text)],
        )
        for name, (kind, default, text) in _FLAGS.items()
    ]

    def run(**values):
        settings = Settings(**{name: values.pop(name) for name in _FLAGS})
        return command(settings, **values)

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters = shared[:2] + own + shared[2:]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


class Settings:
    """What the flags say: a bundle and an `EdgeConfig`.

    Args:
        bundle: Path of the bundle.
        cloud: `"host:port"` of the cloud worker.
        token_file: File with a token, or `None`.
        threshold: Thresholds, or `None`.
        num_threads: Threads of the stages, or `None`.
        **others: Other fields of `EdgeConfig`.
    """

    def __init__(
        self, bundle, cloud, token_file, threshold, num_threads, **others
    ):
        from edge_worker.config import EdgeConfig
        from protos.security import read_tokens

        if token_file is not None:
            others["token"] = read_tokens(token_file)[0]
        self.bundle = bundle
        self.config = EdgeConfig(cloud, **others)
        self.thresholds = threshold or None
        if threshold and len(threshold) == 1:
            (self.thresholds,) = threshold
        self.num_threads = num_threads

    def load(self):
        """The `Bundle`."""
        from keras_earlyexit.bundle import load_bundle

        return load_bundle(self.bundle, num_threads=self.num_threads)

    def start(self):
        """The `EdgeWorker`."""
        import dataclasses

        from edge_worker.worker import EdgeWorker

        settings = {
            field.name: getattr(self.config, field.name)
            for field in dataclasses.fields(self.config)
        }
        return EdgeWorker(self.load(), thresholds=self.thresholds, **settings)

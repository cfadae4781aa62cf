"""`keras-earlyexit demo`: a page to try a model on."""

import contextlib
import importlib.util
import os
import pathlib
import signal
import sys
import tempfile
import webbrowser
from typing import Annotated

import typer

from keras_earlyexit.cli import options
from keras_earlyexit.cli.models import load_model_with_exits
from keras_earlyexit.cli.shared import (
    CommandError,
    ExitCode,
    hushed,
    import_keras,
    install_command,
    mendable,
    print_json,
    print_text,
)

_DIGITS = "digits"


def demo(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A .keras file of images, with exits; digits: one of ours, "
            "which is trained on first use, in less than a minute.",
        ),
    ] = _DIGITS,
    data: Annotated[str, options.Data.__metadata__[0]] = _DIGITS,
    data_dir: options.DataDir = None,
    split: options.Split = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="SPLIT",
            help="Other samples of the data, to choose thresholds by risk on "
            "(default for digits: calibration).",
        ),
    ] = None,
    image_scale: options.ImageScale = 1.0,
    class_names: options.ClassNames = None,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Of the page; 0 lets the system choose.",
        ),
    ] = 0,
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Open it in a browser."),
    ] = True,
    as_json: options.Json = False,
):
    """Try a model on a page: who answers, how sure, and what it saves.

    The page is on this machine only. Behind it run an edge worker and a cloud
    worker, which end with it.
    """
    # SIGTERM ends a process at once otherwise, and would leave the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.OK))
    if data == _DIGITS:
        calibration = calibration or "calibration"
    _check_packages()
    with (
        # What takes long comes later.
        _listening(port) as listener,
        tempfile.TemporaryDirectory(prefix="keras-earlyexit-") as folder,
    ):
        os.environ["GRADIO_TEMP_DIR"] = str(pathlib.Path(folder, "files"))
        import_keras()
        loaded = _load_model(model)
        found, others = (
            _load_data(loaded, data, part, data_dir, image_scale)
            for part in (split or "", calibration)
        )
        names = class_names.split(",") if class_names else found.class_names
        say = (lambda text: None) if as_json else print_text
        _run(
            *(loaded, found, others, names, folder),
            *(say, listener, browser, as_json),
        )
    return ExitCode.OK


@contextlib.contextmanager
def _listening(port):
    from keras_earlyexit.live import server

    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(server.listening(port))
        except OSError as error:
            raise CommandError(
                f"Port {port} cannot be had: {error}. Name another one, or "
                "none: the system then chooses.",
                ExitCode.INPUT,
            ) from error
        yield listener


def _run(model, found, others, names, folder, say, listener, browser, as_json):
    from keras_earlyexit.live import images, page, processes, server, trying
    from keras_earlyexit.report.samples import names_of

    with mendable():
        names = names_of(model.head, names)
    say("Starting an edge worker and a cloud worker ...")
    bundles = pathlib.Path(folder, "cut")
    with hushed():
        processes.export(model, bundles)
    early = len(model.exit_names) - 1
    split = processes.Split(bundles, model.policy.thresholds(early))
    try:
        tried = trying.Trying(
            model,
            split,
            (found.x, found.y),
            None if others is None else (others.x, others.y),
            names,
        )

        def ready(url):
            if as_json:
                print_json({"url": url})
                sys.stdout.flush()
            say(f"The page is at {url}; Ctrl+C ends it.")
            if browser:
                webbrowser.open(url)

        made = page.build(tried, images.Images(found.x))
        server.serve(made, listener, ready)
    finally:
        split.close()


def _check_packages():
    for package in ("gradio", "ai_edge_litert", "grpc", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise CommandError(
                f"demo needs the package {package}. Install it with: "
                f"{install_command('demo')}",
                ExitCode.MISSING,
            )


def _load_model(text):
    if text == _DIGITS:
        from keras_earlyexit.callbacks import LiveTable
        from keras_earlyexit.live import digits

        # Nothing is shown if it is there already.
        return digits.model(callbacks=[LiveTable()])
    loaded = load_model_with_exits(text)
    shape = loaded.net.input_shape
    head = loaded.head
    is_image = isinstance(shape, tuple) and len(shape) == 4
    if (
        not is_image
        or None in shape[1:]
        or shape[-1] not in (1, 3, 4)
        or head.task != "classification"
        or head.positions
    ):
        raise CommandError(
            "Expected a model that gives images of a fixed size, (height, "
            f"width, channels), one class. Received: '{text}', which takes "
            f"{shape} and answers {head.units} of task {head.task}.",
            ExitCode.INPUT,
        )
    return loaded


def _load_data(model, data, split, data_dir, image_scale):
    """Samples of a split; `""` is the usual one, `None` is none."""
    if split is None:
        return None
    from keras_earlyexit import sources

    shape = model.net.input_shape[1:]
    with mendable():
        found = sources.load(
            data,
            split or None,
            default_split="test",
            input_shape=shape,
            image_scale=image_scale,
            data_dir=data_dir,
        )
    if found.y is None or found.x.shape[1:] != shape:
        received = getattr(found.x, "shape", type(found.x).__name__)
        raise CommandError(
            f"Expected arrays of images of shape {shape}, as '{model.name}' "
            f"takes them, and labels. Received: '{data}' with {received}.",
            ExitCode.INPUT,
        )
    return found

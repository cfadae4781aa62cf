"""The command `keras-earlyexit`.

A command is a function in `COMMANDS`: it collects plain facts, prints them as
tables or, with `--json`, as they are, and returns an `ExitCode`. What the user
can mend is raised as a `CommandError` and printed without a traceback.

Nothing heavy is imported before a command needs it, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import pathlib
import platform
import sys
import tempfile
import traceback
import zipfile
from importlib import metadata
from typing import Annotated

# Annotations stay text until `_app` needs them, so that this module can be
# imported, and `main` can say what is missing, without typer.
try:
    import typer
except ModuleNotFoundError:
    typer = None

NAME = "keras-earlyexit"

REQUIRED = ("keras", "numpy", "scipy")
# Package -> the extra that brings it; None where there is none to name.
PACKAGES = {
    **dict.fromkeys(REQUIRED),
    "tensorflow": "tensorflow",
    "jax": None,
    "torch": None,
    "tensorflow-datasets": "data",
    "scikit-learn": "data",
    "matplotlib": "report",
    "keras-tuner": "tune",
    "grpcio": "split",
    "ai-edge-litert": "edge",
    "ray": "serve",
}
# Ships the data set that the demo takes if it is told no other.
DEMO_DATA = "scikit-learn"


class ExitCode(enum.IntEnum):
    """What the command's exit status means."""

    OK = 0
    PROBLEM = 1  # doctor: something that is needed is missing
    USAGE = 2  # an unknown command or option
    MISSING = 3  # a package that the command needs is not installed
    INPUT = 4  # a file that is not there or not what it should be
    FAILED = 5  # anything unexpected; --debug shows the traceback
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit status: 0 fine, 1 doctor found a problem, 2 wrong usage, 3 a package "
    "is missing, 4 a file cannot be read, 5 unexpected error, 130 interrupted."
)


class CommandError(Exception):
    """An error that the user can mend; the message says how."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def info(
    model: Annotated[
        pathlib.Path,
        typer.Argument(metavar="MODEL.keras", help="A saved Keras model."),
    ],
    every: Annotated[
        bool,
        typer.Option("--all", help="List every legal cut and every layer."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables.")
    ] = False,
):
    """Show a model's size and cost, its exits, and where exits can go."""
    facts = describe_model(model)
    if as_json:
        _print_json(facts)
    else:
        _print_model(facts, every)
    return ExitCode.OK


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables.")
    ] = False,
):
    """Check this machine, and say what to install or mend."""
    facts = examine()
    if as_json:
        _print_json(facts)
    else:
        _print_examination(facts)
    return ExitCode.PROBLEM if facts["problems"] else ExitCode.OK


COMMANDS = (info, doctor)


def main(arguments=None):
    """Runs the command; returns its exit status."""
    if typer is None:
        print(
            f"{NAME} needs the package typer. Install it with: "
            f"{_install('cli')}",
            file=sys.stderr,
        )
        return ExitCode.MISSING
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Wherever it stands: people add it to the end of the line that failed.
    debug = "--debug" in arguments
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        typer.main.get_command(_app()).main(
            args=[item for item in arguments if item != "--debug"],
            prog_name=NAME,
        )
    except SystemExit as exit_:
        return exit_.code or ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        return _report(error, debug)
    return ExitCode.OK


def _app():
    app = typer.Typer(
        name=NAME,
        help="Early exits for Keras 3.",
        epilog=EXIT_CODES,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        result_callback=_leave,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                help="Show the version.",
                is_eager=True,
                callback=_print_version,
            ),
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Show tracebacks.")
        ] = False,
    ):
        pass

    for command in COMMANDS:
        app.command(epilog=EXIT_CODES)(command)
    return app


def _leave(code, **options):
    raise typer.Exit(code)


def _print_version(wanted: bool):
    if wanted:
        print(f"{NAME} {_version('keras-earlyexit') or 'not installed'}")
        raise typer.Exit()


def _report(error, debug):
    if debug:
        traceback.print_exception(error)
    if isinstance(error, CommandError):
        _print_error(str(error))
        return error.code
    hint = "" if debug else "\nThe same command with --debug shows where."
    _print_error(f"{type(error).__name__}: {error}{hint}")
    return ExitCode.FAILED


# info


def describe_model(path):
    """Collects what `info` shows about a saved model, as plain values."""
    model = _load(path)
    import keras_earlyexit as ee

    has_exits = isinstance(model, ee.EarlyExitModel)
    net = model.net if has_exits else model
    facts = {
        "file": str(path),
        "name": model.name,
        "class": type(model).__name__,
        "inputs": _input_shapes(net),
        "outputs": _output_shapes(net),
        "layers": len(net.layers),
    }
    try:
        table = ee.cost.count(model)
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"The cost of '{path}' is unknown. {error}", ExitCode.INPUT
        ) from error
    for name in ("params", "macs", "elementwise_ops", "reliable", "uncounted"):
        facts[name] = getattr(table, name)
    facts["exits"] = _describe_exits(model) if has_exits else None
    try:
        plain = ee.strip_exits(model) if has_exits else model
        places = ee.placement.candidates(plain)
        reason = "nowhere but at its end is exactly one tensor alive."
    except (TypeError, ValueError) as error:
        places, reason = (), str(error)
    facts["no_legal_cuts"] = None if places else reason
    facts["legal_cuts"] = [
        {
            "name": place.name,
            "macs": place.macs,
            "fraction": place.fraction,
            "block_end": place.is_block_end,
        }
        for place in places
    ]
    facts["rows"] = [
        {
            "name": row.name,
            "kind": row.kind,
            "macs": row.macs,
            "params": row.params,
            "output_bytes": row.output_bytes,
        }
        for row in table.rows
    ]
    return facts


def _describe_exits(model):
    early = len(model.exit_names) - 1
    thresholds = [float(x) for x in model.policy.thresholds(early)]
    return {
        "policy": model.policy.name,
        "cost_convention": model.cost,
        "plain_macs": model.plain_macs,
        "places": [
            {
                "name": name,
                "layer": layer,
                "relative_cost": float(cost),
                "threshold": threshold,
            }
            for name, layer, cost, threshold in zip(
                model.exit_names,
                (*model.exit_layers, None),
                model.relative_costs,
                (*thresholds, None),
                strict=True,
            )
        ],
    }


def _input_shapes(net):
    return {x.name: list(x.shape) for x in getattr(net, "inputs", None) or ()}


def _output_shapes(net):
    output = getattr(net, "output", None)
    if not isinstance(output, dict):
        outputs = getattr(net, "outputs", None) or ()
        names = getattr(net, "output_names", [x.name for x in outputs])
        output = dict(zip(names, outputs, strict=True))
    return {name: list(tensor.shape) for name, tensor in output.items()}


def _load(path):
    how = "Give a file that `model.save('name.keras')` wrote."
    if not path.exists():
        raise CommandError(f"There is no file '{path}'. {how}", ExitCode.INPUT)
    if path.is_dir():
        raise CommandError(f"'{path}' is a folder. {how}", ExitCode.INPUT)
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise CommandError(
            f"'{path}' is not a Keras model in the .keras format. {how}",
            ExitCode.INPUT,
        )
    keras = _import_keras()
    try:
        with _hushed():
            return keras.models.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).partition("Full object config")[0].strip()
        raise CommandError(
            f"Keras cannot load '{path}': it may hold layers that are neither "
            "Keras' own nor keras_earlyexit's, or code, which this command "
            f"never runs.\n{type(error).__name__}: {reason}",
            ExitCode.INPUT,
        ) from error


def _print_model(facts, every):
    _print_facts(
        f"{facts['class']} {facts['name']!r}",
        {
            "file": facts["file"],
            "inputs": _shape_text(facts["inputs"]),
            "outputs": _shape_text(facts["outputs"]),
            "layers": f"{facts['layers']:,}",
            "parameters": f"{facts['params']:,}",
            "MACs": f"{facts['macs']:,}",
            "elementwise ops": f"{facts['elementwise_ops']:,}",
            "not counted": ", ".join(facts["uncounted"]) or "-",
        },
    )
    if facts["exits"]:
        exits = facts["exits"]
        _print_table(
            f"Exits, policy {exits['policy']!r}",
            ("exit", "behind", ">relative cost", ">threshold"),
            [
                (
                    place["name"],
                    place["layer"] or "the whole model",
                    f"{place['relative_cost']:.3f}",
                    "-"
                    if place["threshold"] is None
                    else f"{place['threshold']:.4g}",
                )
                for place in exits["places"]
            ],
        )
    if facts["no_legal_cuts"]:
        _print(f"No legal cut: {facts['no_legal_cuts']}")
        return
    shown = [cut for cut in facts["legal_cuts"] if every or cut["block_end"]]
    _print_table(
        "Legal cuts" if every else "Block ends, where exits are placed",
        ("behind", ">MACs up to there", ">share"),
        [
            (cut["name"], f"{cut['macs']:,}", f"{cut['fraction']:.1%}")
            for cut in shown
        ],
    )
    if every:
        _print_table(
            "Layers and operations",
            ("name", "kind", ">MACs", ">parameters", ">output bytes"),
            [
                (
                    row["name"],
                    row["kind"],
                    f"{row['macs']:,}",
                    f"{row['params']:,}",
                    f"{row['output_bytes']:,}",
                )
                for row in facts["rows"]
            ],
        )
    else:
        total = len(facts["legal_cuts"])
        _print(f"With --all: the legal cuts ({total}) and the layers.")


def _shape_text(shapes):
    return "\n".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())


# doctor


def examine():
    """Collects what `doctor` shows about this machine, as plain values."""
    problems = []
    versions = {name: _version(name) for name in PACKAGES}
    for name in (*REQUIRED, DEMO_DATA):
        if versions[name] is None:
            problems.append(f"{name} is missing: {_how_to_get(name)}")
    problems += _out_of_bounds(versions)
    backend, gpus = None, []
    if versions["keras"] is not None:
        try:
            backend = _import_keras().backend.backend()
            gpus = _gpus(backend)
        except CommandError as error:
            problems.append(str(error))
    home = _keras_home()
    folder = os.environ.get("TFDS_DATA_DIR")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": _cores(),
        "keras_earlyexit": _version(NAME),
        "backend": backend,
        "gpus": gpus,
        "packages": [
            {"name": name, "version": version, "extra": PACKAGES[name]}
            for name, version in versions.items()
        ],
        "keras_home": str(home),
        "keras_home_writable": _is_writable(home),
        "tfds_data_dir": folder,
        "data_sets": _data_sets(folder),
        "problems": problems,
    }


def _out_of_bounds(versions):
    """Says which installed versions this package does not work with."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(NAME) or ()
    except metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, lines):
        version = versions.get(requirement.name)
        if version and not requirement.specifier.contains(version, True):
            found.append(
                f"{requirement.name} {version} does not fit: "
                f'pip install "{requirement.name}{requirement.specifier}"'
            )
    return sorted(set(found))


def _gpus(backend):
    """Names of the GPUs that the backend sees."""
    with _hushed():
        if backend == "tensorflow":
            import tensorflow as tf

            return [x.name for x in tf.config.list_physical_devices("GPU")]
        if backend == "jax":
            import jax

            return [str(x) for x in jax.devices() if x.platform == "gpu"]
        if backend == "torch":
            import torch

            count = torch.cuda.device_count()
            return [torch.cuda.get_device_name(i) for i in range(count)]
    return []


def _cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _keras_home():
    """The folder of Keras' settings and downloads, as Keras finds it."""
    if "KERAS_HOME" in os.environ:
        return pathlib.Path(os.environ["KERAS_HOME"])
    home = pathlib.Path.home()
    base = home if os.access(home, os.W_OK) else tempfile.gettempdir()
    return pathlib.Path(base, ".keras")


def _is_writable(folder):
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _data_sets(folder):
    """Names and versions of the prepared data sets in a TFDS folder."""
    if not folder:
        return []
    root = pathlib.Path(folder)
    files = [
        *root.glob("*/*/dataset_info.json"),
        *root.glob("*/*/*/dataset_info.json"),
    ]
    return sorted(
        f"{file.parent.parent.relative_to(root)} {file.parent.name}"
        for file in files
    )


def _print_examination(facts):
    folder = facts["tfds_data_dir"]
    _print_facts(
        f"{NAME} {facts['keras_earlyexit'] or '(not installed)'}",
        {
            "Python": f"{facts['python']}  {facts['executable']}",
            "platform": facts["platform"],
            "cores": str(facts["cores"]),
            "Keras backend": facts["backend"] or "-",
            "GPUs": "\n".join(facts["gpus"]) or "none",
            "Keras home": facts["keras_home"]
            + ("" if facts["keras_home_writable"] else "  (not writable)"),
            "TFDS_DATA_DIR": folder or "not set",
            "data sets there": "\n".join(facts["data_sets"]) or "-",
        },
    )
    _print_table(
        "Packages",
        ("package", "version", "how to get it"),
        [
            (
                package["name"],
                package["version"] or "not installed",
                "" if package["version"] else _how_to_get(package["name"]),
            )
            for package in facts["packages"]
        ],
    )
    for problem in facts["problems"]:
        _print_error(problem)
    if not facts["problems"]:
        _print("All that the demo needs is here.")


# Shared by the commands


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _how_to_get(package):
    if package in REQUIRED:
        return f"pip install {NAME}"
    extra = PACKAGES.get(package)
    return _install(extra) if extra else f"pip install {package}"


def _install(extra):
    return f'pip install "{NAME}[{extra}]"'


def _import_keras():
    """Imports Keras with its backend, or says what is missing."""
    try:
        with _hushed():
            import keras
    except (ImportError, ValueError) as error:
        how = "Set KERAS_BACKEND to tensorflow, jax or torch."
        if isinstance(error, ModuleNotFoundError):
            how = f"Install it: {_how_to_get(error.name)}\nOr: {how}"
        raise CommandError(
            f"Keras cannot start: {error}. {how}", ExitCode.MISSING
        ) from error
    return keras


@contextlib.contextmanager
def _hushed():
    """Keeps back what TensorFlow's C++ code writes while it starts.

    It does so past Python and past TF_CPP_MIN_LOG_LEVEL, mostly to say that
    there is no GPU. After an error it is printed: it may be the reason.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            file.seek(0)
            os.write(saved, file.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _print_json(facts):
    print(json.dumps(_finite(facts), indent=2))


def _finite(value):
    """Writes infinities as text, since JSON has no number for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _print_facts(title, facts):
    """Prints a table with a name and a value in each row."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, _as_text(value))
    _print(table)


def _print_table(title, columns, rows):
    """Prints a table; a column whose name starts with `>` is set right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        is_number = name.startswith(">")
        table.add_column(
            name.lstrip(">"),
            justify="right" if is_number else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(_as_text, row))
    _print(table)


def _as_text(value):
    """Text that rich does not take for markup, such as `[extra]`."""
    from rich.text import Text

    return Text(value)


def _print(what):
    from rich.console import Console

    Console(highlight=False).print(what, markup=False)


def _print_error(message):
    print(f"{NAME}: {message}", file=sys.stderr)

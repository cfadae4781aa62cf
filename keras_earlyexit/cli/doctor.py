"""`keras-earlyexit doctor`: what this machine has, and what it lacks."""

import os
import pathlib
import platform
import sys
import tempfile
from importlib import metadata

from keras_earlyexit.cli import options
from keras_earlyexit.cli.shared import (
    NAME,
    PACKAGES,
    REQUIRED,
    CommandError,
    ExitCode,
    how_to_get,
    hushed,
    import_keras,
    print_error,
    print_facts,
    print_json,
    print_table,
    print_text,
    version_of,
)

# Ships the data set that the demo takes if it is told no other.
DEMO_DATA = "scikit-learn"
_ONEDNN = {
    None: "-",
    True: "on: answers to few rows are faster with TF_ENABLE_ONEDNN_OPTS=0",
    False: "off: training may be faster with TF_ENABLE_ONEDNN_OPTS=1",
}


def doctor(
    as_json: options.Json = False,
):
    """Check this machine, and say what to install or mend."""
    facts = examine()
    if as_json:
        print_json(facts)
    else:
        _print_examination(facts)
    return ExitCode.PROBLEM if facts["problems"] else ExitCode.OK


def examine():
    """Collects what `doctor` shows about this machine, as plain values."""
    problems = []
    versions = {name: version_of(name) for name in PACKAGES}
    for name in (*REQUIRED, DEMO_DATA):
        if versions[name] is None:
            problems.append(f"{name} is missing: {how_to_get(name)}")
    problems += _out_of_bounds(versions)
    backend, gpus, onednn = None, [], None
    if versions["keras"] is not None:
        try:
            backend = import_keras().backend.backend()
            gpus = _gpus(backend)
            onednn = _computes_with_onednn(backend)
        except CommandError as error:
            problems.append(str(error))
    home = _keras_home()
    folder = os.environ.get("TFDS_DATA_DIR")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": _cores(),
        "keras_earlyexit": version_of(NAME),
        "backend": backend,
        "gpus": gpus,
        "onednn": onednn,
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
    with hushed():
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


def _computes_with_onednn(backend):
    """Whether TensorFlow does on this processor; `None` for other backends."""
    if backend != "tensorflow":
        return None
    from keras_earlyexit.engines import onednn

    with hushed():
        return onednn.is_on()


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
    print_facts(
        f"{NAME} {facts['keras_earlyexit'] or '(not installed)'}",
        {
            "Python": f"{facts['python']}  {facts['executable']}",
            "platform": facts["platform"],
            "cores": str(facts["cores"]),
            "Keras backend": facts["backend"] or "-",
            "GPUs": "\n".join(facts["gpus"]) or "none",
            "oneDNN": _ONEDNN[facts["onednn"]],
            "Keras home": facts["keras_home"]
            + ("" if facts["keras_home_writable"] else "  (not writable)"),
            "TFDS_DATA_DIR": folder or "not set",
            "data sets there": "\n".join(facts["data_sets"]) or "-",
        },
    )
    print_table(
        "Packages",
        ("package", "version", "how to get it"),
        [
            (
                package["name"],
                package["version"] or "not installed",
                "" if package["version"] else how_to_get(package["name"]),
            )
            for package in facts["packages"]
        ],
    )
    for problem in facts["problems"]:
        print_error(problem)
    if not facts["problems"]:
        print_text("All that the demo needs is here.")

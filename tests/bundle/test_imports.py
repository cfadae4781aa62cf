"""Bundles are read without Keras and TensorFlow."""

import subprocess
import sys

HEAVY = ("keras", "tensorflow", "jax", "torch", "scipy", "grpc", "matplotlib")


def modules_after(program, *arguments):
    """Which of the heavy modules a program has imported."""
    program += "\nimport sys; print([m for m in HEAVY if m in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY}\n{program}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()[-1]


def test_import_is_light():
    modules = "answering folder litert parsing reading runtimes writing"
    imports = "import keras_earlyexit.bundle as bundle\n"
    for name in modules.split():
        imports += f"import keras_earlyexit.bundle.{name}\n"
    imports += "[getattr(bundle, name) for name in bundle.__all__]"
    assert modules_after(imports) == "[]"


def test_a_manifest_is_read_without_numpy_tools(written):
    program = (
        "import sys\nfrom keras_earlyexit.bundle import folder\n"
        "manifest, _ = folder.read_manifest(sys.argv[1])\n"
        "folder.check_files(sys.argv[1], manifest, keep=True)"
    )
    assert modules_after(program, str(written)) == "[]"

"""The command `keras-earlyexit`.

Each command has a module: it collects plain facts, prints them as tables or,
with `--json`, as they are, and returns an `ExitCode`. What the user can mend
is raised as a `CommandError` and printed without a traceback. Options that
several commands have are in `options`.

Nothing heavy is imported before a command needs it, so that `--help` is
quick.
"""

import os

from keras_earlyexit.cli import apps
from keras_earlyexit.cli.shared import EXIT_CODES, NAME, ExitCode

__all__ = ["ExitCode", "main"]


def main(arguments=None):
    """Runs the command; returns its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return apps.run(NAME, _app, arguments)


def _app():
    # Not at the top: they import typer.
    from keras_earlyexit.cli.bench import bench
    from keras_earlyexit.cli.calibrate import calibrate
    from keras_earlyexit.cli.certs import certs
    from keras_earlyexit.cli.demo import demo
    from keras_earlyexit.cli.doctor import doctor
    from keras_earlyexit.cli.export import export
    from keras_earlyexit.cli.info import info
    from keras_earlyexit.cli.merge import merge
    from keras_earlyexit.cli.plan import plan
    from keras_earlyexit.cli.report import report
    from keras_earlyexit.cli.train import train
    from keras_earlyexit.cli.tune import tune
    from keras_earlyexit.cli.widen import widen

    commands = [
        *(train, tune, calibrate, info, report, demo, bench, export),
        *(plan, merge, widen, certs, doctor),
    ]
    return apps.app(NAME, "Early exits for Keras 3.", commands, EXIT_CODES)

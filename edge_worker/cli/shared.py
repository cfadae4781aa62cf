"""What the commands share: errors and exit statuses."""

import enum

from keras_earlyexit.cli import apps

NAME = "edge-worker"


class ExitCode(enum.IntEnum):
    """What the command's exit status means."""

    OK = 0
    PROBLEM = 1  # doctor: something has to be mended
    USAGE = 2  # an unknown command or option, or settings that do not fit
    MISSING = 3  # a package that the command needs is not installed
    INPUT = 4  # a file that is not there or not what it should be
    FAILED = 5  # anything unexpected; --debug shows the traceback
    REFUSED = 6  # the cloud worker has another model, or does not let us in
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit status: 0 fine, 1 doctor found a problem, 2 wrong usage, 3 a package "
    "is missing, 4 a file, data or value is not as it should be, 5 unexpected "
    "error, 6 refused by the cloud worker, 130 interrupted."
)


def code_of(error):
    """The `ExitCode` that belongs to an exception."""
    # Known by name, as gRPC is not imported for --help.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "Refused" in names:
        return ExitCode.REFUSED
    if "BundleError" in names:
        return ExitCode.INPUT
    code = apps.code_of(error)
    if code == ExitCode.FAILED and isinstance(error, ValueError):
        return ExitCode.USAGE
    return code

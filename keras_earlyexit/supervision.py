"""Child processes that end with the one that has started them.

Who is killed can end nobody. So a child holds the reading end of a pipe, which
comes to its end as soon as its parent is gone, however that went.
"""

import contextlib
import os
import subprocess
import threading

_SUPERVISED = "KERAS_EARLYEXIT_SUPERVISED"


def start(command, env=None, **options):
    """Starts one of our programs as a child that does not outlive us.

    Args:
        command: List of texts: a program that calls `end_with_parent`, as all
            commands of this package do.
        env: Dict of environment variables; `None`: those of this process.
        **options: Further ones of `subprocess.Popen`, but `stdin`, which is
            the pipe.

    Returns:
        The `subprocess.Popen`. Its `stdin` is to be closed in the end.
    """
    return subprocess.Popen(
        command,
        env={**(os.environ if env is None else env), _SUPERVISED: "1"},
        stdin=subprocess.PIPE,
        **options,
    )


def end_with_parent():
    """Ends this process when the one that has called `start` is gone."""

    def wait():
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(1)

    # Taken out: a child of ours that has another one's pipe is no such child.
    if os.environ.pop(_SUPERVISED, None):
        threading.Thread(target=wait, daemon=True).start()

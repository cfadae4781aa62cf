"""Training that goes on where it stopped, if it is the same training."""

import json
import os
import pathlib
import shutil

from keras_earlyexit.cli.shared import CommandError, ExitCode

_SETTINGS = "settings.json"
_BACKUP = "backup"
_METADATA = "training_metadata.json"


class Checkpoints:
    """The folder of an unfinished training.

    Args:
        output: The file that is written at the end; the folder is beside it.
        settings: Dict of everything that makes it the same training.
    """

    def __init__(self, output, settings):
        self.folder = pathlib.Path(f"{output}.unfinished")
        # As JSON gives it back.
        self._settings = json.loads(json.dumps(settings, default=str))

    @property
    def epochs_done(self):
        """How many epochs are done already."""
        try:
            text = (self.folder / _BACKUP / _METADATA).read_text()
            return int(json.loads(text)["epoch"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(str(error)) from error

    def check(self):
        """Refuses to go on with a training that is another one."""
        try:
            found = json.loads((self.folder / _SETTINGS).read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise self._unusable(str(error)) from error
        names = {*found, *self._settings} if isinstance(found, dict) else ()
        differing = [
            f"--{name.replace('_', '-')} {found.get(name)}"
            for name in sorted(names)
            if found.get(name) != self._settings.get(name)
        ]
        if differing or not names:
            raise self._unusable(
                f"a training that was begun with {', '.join(differing)}"
            )

    def begin(self):
        """Makes the folder; returns the callback that writes to it."""
        import keras

        os.makedirs(self.folder, exist_ok=True)
        text = json.dumps(self._settings, indent=2)
        (self.folder / _SETTINGS).write_text(f"{text}\n")
        return keras.callbacks.BackupAndRestore(
            self.folder / _BACKUP,
            double_checkpoint=True,
            delete_checkpoint=False,
        )

    def remove(self):
        """Forgets what has been done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unusable(self, received):
        return CommandError(
            f"Expected to go on with '{self.folder}'. Received: {received}. "
            "Use the same options again, or start anew with --fresh.",
            ExitCode.INPUT,
        )

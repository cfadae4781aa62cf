"""What `keras-earlyexit tune` is given: a network, data, ranges, a folder."""

import contextlib
import json
import pathlib
import re
import shutil

from keras_earlyexit.cli.shared import CommandError, ExitCode

_LOCK = "lock"
_SETTINGS = "search.json"
_SHARES = {"train": 0.7, "calibration": 0.1, "validation": 0.1, "test": 0.1}
_FEWEST = 40
_NUMBER = r"[0-9.]+(?:e-?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?")


def splits_of(data, input_shape, data_dir=None):
    """Four parts of a data set that share no samples.

    What `--data` names by a data set's name is divided along its own splits.
    Anything else is divided at random; a split `test`, where a file or a
    folder has one, is left for the end.

    Args:
        data: What `--data` says, see `sources.load`.
        input_shape: Shape of one input of the network, or `None` if that
            depends on the data.
        data_dir: Folder of the data sets of TFDS.

    Returns:
        Dict of `(x, y)` by `"train"`, `"calibration"`, `"validation"` and
        `"test"`.
    """
    from keras_earlyexit import sources

    def load(split=None):
        x, y, _, _ = sources.load(
            data, split, input_shape=input_shape, data_dir=data_dir
        )
        return x, y

    path = pathlib.Path(data)
    is_file = path.suffix == ".npz" or path.is_dir()
    if is_file:
        try:
            test = load("test")
        except ValueError:
            return _divided(*load(), _SHARES)
        shares = {"train": 0.8, "calibration": 0.1, "validation": 0.1}
        return {**_divided(*load("train"), shares), "test": test}
    if sources.is_function(data):
        return _divided(*load(), _SHARES)
    names = {
        "train": "train[:80%]",
        "calibration": "train[80%:90%]",
        "validation": "train[90%:]",
        "test": "test",
    }
    if data == "digits":
        names |= {
            "train": "train",
            "calibration": "calibration[:50%]",
            "validation": "calibration[50%:]",
        }
    return {part: load(split) for part, split in names.items()}


def _divided(x, y, shares):
    """Parts of samples, drawn at random and always the same."""
    import numpy as np

    arrays = hasattr(x, "__len__") and hasattr(y, "__len__")
    if not arrays or len(x) != len(y) or len(x) < _FEWEST:
        received = f"x of type {type(x).__name__}"
        if arrays:
            received = f"{len(x)} samples and {len(y)} labels"
        raise CommandError(
            f"Expected arrays of at least {_FEWEST} samples, with a label "
            f"each, to divide among the trials' splits. Received: {received}.",
            ExitCode.INPUT,
        )
    x, y = np.asarray(x), np.asarray(y)
    order = np.random.default_rng(0).permutation(len(x))
    ends = np.cumsum([int(share * len(x)) for share in shares.values()])
    parts = np.split(order, ends[:-1])
    return {
        name: (x[rows], y[rows])
        for name, rows in zip(shares, parts, strict=True)
    }


def parse_range(option, text, kind=float):
    """The least and the most from text such as `1-3`, or one number."""
    match = _RANGE.fullmatch(text.strip())
    try:
        low, high = match.groups()
        return kind(low), kind(high or low)
    except (AttributeError, ValueError) as error:
        raise CommandError(
            f"Expected --{option} to be one number, or the least and the most, "
            f"such as 1-3. Received: {text!r}.",
            ExitCode.USAGE,
        ) from error


def parse_names(text):
    """Names from text such as `pool,bnpool`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@contextlib.contextmanager
def only_one(folder, shared=False):
    """Keeps a folder for this process as long as it lives.

    Args:
        folder: The folder.
        shared: Whether others of its kind may use it at the same time.
    """
    try:
        import fcntl
    except ImportError:  # Windows.
        yield
        return
    with open(folder / _LOCK, "a", encoding="utf-8") as file:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(
                f"Another process searches in '{folder}' now. Wait for it, or "
                "give another --output. Workers of other machines use --join.",
                ExitCode.INPUT,
            ) from error
        yield


def same_search(folder, settings):
    """Notes what is searched; refuses to go on with something else.

    Args:
        folder: Folder of the search.
        settings: Dict of plain values by the name of the option.

    Returns:
        Whether a search is taken up.
    """
    from keras_earlyexit import json_values

    path = folder / _SETTINGS
    try:
        before = json.loads(json_values.read(path))
    except FileNotFoundError:
        json_values.write(path, json.dumps(settings, indent=1) + "\n")
        return False
    except ValueError:
        before = {}
    changed = [
        f"--{name.replace('_', '-')} {before.get(name)}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if changed:
        raise CommandError(
            f"In '{folder}' there is a search with {', '.join(changed)}. Give "
            "the same to go on with it, another --output, or --overwrite to "
            "begin anew.",
            ExitCode.INPUT,
        )
    return True


def clear(folder):
    """Removes a search from its folder; what is none of a search stays."""
    if not (folder / _SETTINGS).is_file():
        return
    for path in folder.glob("trial_*"):
        shutil.rmtree(path)
    for path in folder.glob("*.json"):
        path.unlink()

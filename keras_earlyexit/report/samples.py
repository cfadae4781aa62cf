"""How a sample and an answer are shown: as a picture, as text, as a row.

Nothing here is HTML: the page escapes what it is given, so that a sample may
hold anything.
"""

import base64
import io
import typing

import numpy as np

_LONGEST_TEXT = 400
_MOST_VALUES = 12
_WIDEST = 192


class Shown(typing.NamedTuple):
    """A sample as the page shows it; one of these, the others are `None`.

    Args:
        image: A PNG as a data URI.
        text: A string.
        rows: A list of pairs (name, value), both text.
    """

    image: str | None = None
    text: str | None = None
    rows: list | None = None


class Samples:
    """Shows the samples of a data set by their number.

    Args:
        samples: What is shown: arrays (n, ...), strings, dicts by name, or a
            dict of arrays (n, ...), which are the columns of a table.
    """

    def __init__(self, samples):
        self._samples = samples
        self._columns = isinstance(samples, dict)
        self._low = self._high = None
        array = None if self._columns else np.asarray(samples, _kept(samples))
        if array is not None and array.ndim >= 3 and array.dtype != "uint8":
            # One range for all, so that dark samples stay dark.
            some = array[:256].astype("float64")
            self._low, self._high = np.nanmin(some), np.nanmax(some)

    def show(self, number):
        """A sample as `Shown`."""
        if self._columns:
            return Shown(
                rows=[
                    (str(name), _short(_value(values[number])))
                    for name, values in self._samples.items()
                ]
            )
        sample = self._samples[number]
        if isinstance(sample, dict):
            pairs = [(str(k), _short(_value(v))) for k, v in sample.items()]
            return Shown(rows=pairs)
        if isinstance(sample, (str, bytes)):
            return Shown(text=_short(_value(sample)))
        sample = np.asarray(sample)
        if sample.ndim in (2, 3) and sample.dtype.kind in "biuf":
            return Shown(image=self._picture(sample))
        if sample.ndim == 1 and sample.dtype.kind == "f":
            values = sample[:_MOST_VALUES]
            rows = [(f"value {k}", f"{v:.4g}") for k, v in enumerate(values)]
            if len(sample) > _MOST_VALUES:
                rows.append(("…", f"{len(sample)} values"))
            return Shown(rows=rows)
        return Shown(text=_short(_value(sample)))

    def _picture(self, sample):
        from PIL import Image

        if sample.ndim == 3 and sample.shape[-1] not in (3, 4):
            sample = sample[..., 0]
        if sample.dtype != "uint8":
            span = max(self._high - self._low, 1e-12)
            sample = np.nan_to_num((sample - self._low) / span)
            sample = np.round(255 * np.clip(sample, 0, 1)).astype("uint8")
        image = Image.fromarray(sample)
        image.thumbnail((_WIDEST, _WIDEST))
        file = io.BytesIO()
        image.save(file, "png", optimize=True)
        content = base64.b64encode(file.getvalue()).decode("ascii")
        return f"data:image/png;base64,{content}"


def names_of(head, class_names):
    """A name for each unit of a head.

    Args:
        head: A `tasks.Head`.
        class_names: Names in order, or `None` for numbers.

    Raises:
        ValueError: If there are not as many names as units.
    """
    if class_names is None:
        return [str(k) for k in range(head.units)]
    names = [str(name) for name in class_names]
    if len(names) != head.units:
        raise ValueError(
            f"Expected {head.units} names, one for each class. Received: "
            f"{len(names)} class_names."
        )
    return names


def answer_text(head, names, answer):
    """An answer, or a label, in words.

    Args:
        head: A `tasks.Head`.
        names: A name for each unit.
        answer: A class number, labels of 0 and 1, or values; with positions
            in front.
    """
    answer = np.asarray(answer)
    if head.positions:
        return f"{answer.size} positions"
    if head.task == "classification":
        return names[int(answer)]
    if head.task == "multilabel":
        on = [names[k] for k in np.flatnonzero(answer)]
        return _short(", ".join(on)) if on else "none"
    values = np.atleast_1d(answer)[:4]
    more = ", …" if answer.size > 4 else ""
    return ", ".join(f"{value:.4g}" for value in values) + more


def _kept(samples):
    """The type to look at samples in: none, or objects as they are."""
    first = samples[0] if len(samples) else 0.0
    return object if isinstance(first, (str, bytes, dict)) else None


def _value(value):
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray) and value.ndim:
        flat = value.ravel()
        if value.dtype.kind == "f":
            parts = [f"{item:.4g}" for item in flat[:_MOST_VALUES]]
        else:
            parts = [_value(item) for item in flat[:_MOST_VALUES].tolist()]
        more = " …" if flat.size > _MOST_VALUES else ""
        return " ".join(parts) + more
    return str(value)


def _short(text):
    if len(text) <= _LONGEST_TEXT:
        return text
    return text[: _LONGEST_TEXT - 1] + "…"

"""Runs the Python of the pages that people read."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EPOCHS = re.compile(r"(?<=\bepochs=)\d+")
# The same kind of network as on the pages, with as many exits, which is made
# ready for training three times as fast.
_SMALLER = (("resnet_cifar(20", "resnet_cifar(8"),)


def blocks(path):
    """The pieces of Python on a page."""
    text = path.read_text()
    for found in _BLOCK.finditer(text):
        # So that errors name the line of the page.
        yield "\n" * text.count("\n", 0, found.start(1)) + found.group(1)


def run(path, names, replaced=(), epochs=lambda count: 1):
    """Runs the Python of a page, one piece after another.

    Args:
        path: The page.
        names: The variables that are there, and what comes of them.
        replaced: Pairs of texts: a machine that readers have, and what stands
            here in its place.
        epochs: From a number of epochs to how many are enough here.
    """
    for block in blocks(path):
        for old, new in (*_SMALLER, *replaced):
            block = block.replace(old, new)
        block = _EPOCHS.sub(lambda found: str(epochs(int(found[0]))), block)
        exec(compile(block, str(path), "exec"), names)

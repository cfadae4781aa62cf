"""Runs the Python of the pages that people read."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EPOCHS = re.compile(r"\bepochs=\d+")


def blocks(path):
    """The pieces of Python on a page."""
    text = path.read_text()
    for found in _BLOCK.finditer(text):
        # So that errors name the line of the page.
        yield "\n" * text.count("\n", 0, found.start(1)) + found.group(1)


def run(path, names, replaced=(), epochs=None):
    """Runs the Python of a page, one piece after another.

    Args:
        path: The page.
        names: The variables that are there, and what comes of them.
        replaced: Pairs of texts: a machine that readers have, and what stands
            here in its place.
        epochs: What every number of epochs is made, to be quick.
    """
    for block in blocks(path):
        for old, new in replaced:
            block = block.replace(old, new)
        if epochs is not None:
            block = _EPOCHS.sub(f"epochs={epochs}", block)
        exec(compile(block, str(path), "exec"), names)

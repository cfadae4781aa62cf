"""Folders appear whole or not at all, whoever is killed when."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from keras_earlyexit.bundle import writing
from keras_earlyexit.bundle.manifest import MANIFEST

# Writes one folder after another to the same place, 20 equal files in each.
WRITER = """
import sys
from keras_earlyexit.bundle.writing import new_folder
for number in range(10**9):
    with new_folder(sys.argv[1], overwrite=True) as temporary:
        for i in range(20):
            name = f"{i}" if i else "manifest.json"
            with open(f"{temporary}/{name}", "w") as file:
                file.write(f"{number} " * 1000)
    print(number, flush=True)
"""


def fill(place, text="one"):
    os.makedirs(os.path.join(place, "inner"))
    for name in (MANIFEST, "inner/file"):
        with open(os.path.join(place, name), "w") as file:
            file.write(text)


def entries(path):
    return sorted(os.listdir(path))


def test_a_new_folder(tmp_path):
    path = tmp_path / "made"
    with writing.new_folder(path) as temporary:
        fill(temporary)
        assert not path.exists()
        assert os.path.dirname(temporary) == str(tmp_path)
    assert (path / "inner/file").read_text() == "one"
    assert entries(tmp_path) == ["made"]


def test_nothing_is_left_of_what_fails(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(KeyError), writing.new_folder(path) as temporary:
        fill(temporary)
        raise KeyError("in the middle")
    assert entries(tmp_path) == []
    with writing.new_folder(path) as temporary:
        fill(temporary, "before")
    with pytest.raises(KeyError), writing.new_folder(path, True) as temporary:
        fill(temporary, "after")
        raise KeyError("in the middle")
    assert (path / "inner/file").read_text() == "before"
    assert entries(tmp_path) == ["made"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_bundle_is_replaced(tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(writing, "_exchange", lambda *paths: False)
    path = tmp_path / "made"
    for text in ("one", "two"):
        with writing.new_folder(path, overwrite=True) as temporary:
            fill(temporary, text)
    assert (path / "inner/file").read_text() == "two"
    assert entries(tmp_path) == ["made"]


def test_segments_are_replaced(tmp_path):
    path = tmp_path / "made"
    for text in ("one", "two"):
        with writing.new_folder(path, overwrite=True) as temporary:
            fill(os.path.join(temporary, "segment_0"), text)
            fill(os.path.join(temporary, "segment_1"), text)
    assert (path / "segment_1/inner/file").read_text() == "two"


def test_what_is_there_is_not_replaced(tmp_path):
    path = tmp_path / "made"
    path.mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True to replace"):
        with writing.new_folder(path):
            pytest.fail("is not reached")
    (path / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(FileExistsError, match="replaces bundles only"):
        with writing.new_folder(path, overwrite=True):
            pytest.fail("is not reached")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FileExistsError, match="replaces bundles only"):
        with writing.new_folder(file, overwrite=True):
            pytest.fail("is not reached")
    assert (path / "thesis.tex").exists()


def test_somebody_else_was_faster(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(FileExistsError), writing.new_folder(path) as temporary:
        fill(temporary, "mine")
        fill(path, "theirs")
    assert (path / "inner/file").read_text() == "theirs"
    assert entries(tmp_path) == ["made"]


def test_no_folder_around(tmp_path):
    with pytest.raises(FileNotFoundError, match="Make it first"):
        with writing.new_folder(tmp_path / "no" / "made"):
            pytest.fail("is not reached")


def test_folders_in_use_and_of_others_stay(tmp_path):
    others = [".made.txt", ".made.0123456789abcdef.partial.txt", ".other"]
    for name in others:
        (tmp_path / name).mkdir()
    left = tmp_path / ".made.0123456789abcdef.partial"
    fill(left)
    with writing.new_folder(tmp_path / "made") as in_use:
        assert not left.exists()
        writing.remove_left_behind(tmp_path / "made")
        fill(in_use)
    assert entries(tmp_path) == sorted([*others, "made"])


def test_a_folder_that_was_moved_aside_comes_back(tmp_path):
    aside = tmp_path / ".made.0123456789abcdef.replaced"
    fill(aside, "before")
    writing.remove_left_behind(tmp_path / "made")
    assert (tmp_path / "made/inner/file").read_text() == "before"
    fill(aside, "older")
    writing.remove_left_behind(tmp_path / "made")
    assert (tmp_path / "made/inner/file").read_text() == "before"
    assert entries(tmp_path) == ["made"]


def test_kills_at_random_moments(tmp_path):
    place = tmp_path / "around"
    place.mkdir()
    moments = random.Random(0)
    left_behind = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, place / "made"],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        # What is waited for is no state: the moment is random.
        time.sleep(moments.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        files = list((place / "made").iterdir())
        contents = {file.read_text() for file in files}
        assert len(files) == 20 and len(contents) == 1
        left_behind += len(entries(place)) - 1
        writing.remove_left_behind(place / "made")
        assert entries(place) == ["made"]
    assert left_behind, "no kill has hit a folder half written"

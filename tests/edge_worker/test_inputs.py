"""Samples from files and streams."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from edge_worker.inputs import InputError, Samples
from keras_earlyexit.bundle.specs import TensorSpec

ROW = (TensorSpec("row", (None, 3), "float32"),)
IMAGE = (TensorSpec("image", (None, 4, 6, 3), "float32"),)
TWO = (
    TensorSpec("a", (None, 2), "float32"),
    TensorSpec("b", (None,), "int32"),
)


def read(source, specs=ROW, batch_size=2, **options):
    return list(Samples(source, specs, batch_size, **options))


def test_array(tmp_path):
    x = np.arange(15.0).reshape(5, 3)
    np.save(tmp_path / "x.npy", x)
    found = read(tmp_path / "x.npy")
    assert [ids for ids, _ in found] == [[0, 1], [2, 3], [4]]
    np.testing.assert_array_equal(np.concatenate([x for _, x in found]), x)


def test_pickles_are_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.save(tmp_path / "x.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("x.npy", "y.npy"):
        with pytest.raises(InputError, match="numpy.save"):
            read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_an_array_that_says_it_is_huge(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    data = (tmp_path / "x.npy").read_bytes()
    for before, after in (
        (b"(4, 3)", b"(4**9,"),
        (b"(4, 3), }" + b" " * 9, b"(4000000000, 3), }"),
    ):
        assert data.count(before) == 1
        (tmp_path / "x.npy").write_bytes(data.replace(before, after))
        with pytest.raises(InputError):
            read(tmp_path / "x.npy")


def test_images_are_fitted(tmp_path):
    for name, mode, size in (
        ("b.png", "RGB", (12, 8)),
        ("a.jpg", "L", (6, 4)),
        ("c.PNG", "RGBA", (3, 3)),
    ):
        Image.new(mode, size, 255 if mode == "L" else "white").save(
            tmp_path / name
        )
    (tmp_path / "notes.txt").write_text("no image")
    ((ids, x),) = read(tmp_path, IMAGE, 8, scale=1 / 255)
    assert ids == ["a.jpg", "b.png", "c.PNG"]
    assert x.shape == (3, 4, 6, 3) and x.dtype == np.float32
    np.testing.assert_allclose(x, 1.0, atol=0.01)
    spec = (TensorSpec("image", (None, 4, 6, 1), "uint8"),)
    ((_, x),) = read(tmp_path, spec, 8)
    assert x.dtype == np.uint8 and x.shape == (3, 4, 6, 1)
    assert x.min() == 255


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="a.png"):
        read(tmp_path, IMAGE)


def test_a_decompression_bomb(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "a.png")
    for most in (60_000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(InputError, match="a.png"):
            read(tmp_path, IMAGE)


@pytest.mark.parametrize(
    "line",
    ["[1, 2, 3]", '{"row": [1, 2, 3]}', '{"input": [1, 2, 3], "id": 0}',
     '{"input": {"row": [1, 2, 3]}}'],
)  # fmt: skip
def test_lines(line):
    ((ids, x),) = read(io.StringIO(f"{line}\n\n"))
    assert ids == [0]
    np.testing.assert_array_equal(x["row"], [[1, 2, 3]])


def test_lines_come_in_batches_with_their_ids():
    lines = [json.dumps({"id": f"n{i}", "input": [i, 0, 0]}) for i in range(5)]
    found = read(io.StringIO("\n".join(lines)))
    assert [ids for ids, _ in found] == [["n0", "n1"], ["n2", "n3"], ["n4"]]


def test_lines_for_several_inputs():
    line = json.dumps({"a": [1, 2], "b": 3})
    ((_, x),) = read(io.StringIO(line), TWO)
    np.testing.assert_array_equal(x["a"], [[1, 2]])
    np.testing.assert_array_equal(x["b"], [3])


@pytest.mark.parametrize(
    "line",
    ["{", "[1, 2]", "[[1, 2, 3]]", '["a", "b", "c"]', '{"other": 1}', "null",
     "[1, 2, [3]]", "[" * 100_000],
)  # fmt: skip
def test_lines_that_do_not_fit(line):
    with pytest.raises(InputError, match="line 2"):
        read(io.StringIO(f"[1, 2, 3]\n{line}\n"))


def test_sources_that_do_not_fit(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    with pytest.raises(InputError, match="not there"):
        read(tmp_path / "y.npy")
    with pytest.raises(InputError, match="JSON lines"):
        read(tmp_path / "x.npy", TWO)
    with pytest.raises(InputError, match="without"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty", IMAGE)
    with pytest.raises(InputError, match="fixed size"):
        Image.new("L", (3, 3)).save(tmp_path / "empty" / "a.png")
        read(tmp_path / "empty", ROW)

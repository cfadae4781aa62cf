"""What `--data` stands for: names, files, folders and functions."""

import numpy as np
import pytest

from keras_earlyexit import slices, sources
from keras_earlyexit.sources import load

X = np.arange(40, dtype="float32").reshape(10, 4)
Y = np.arange(10)


def test_a_data_set_by_name():
    x, y, weight, names = load("digits", default_split="test")
    assert x.shape == (400, 8, 8, 1) and x.dtype == "float32"
    assert x.max() == 1 and len(y) == 400 and weight is None and names is None


def test_a_file(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=X, y=Y, sample_weight=Y / 2)
    for split in (None, "train"):
        found = load(str(path), split, default_split="test")
        assert np.array_equal(found.x, X) and np.array_equal(found.y, Y)
        assert np.array_equal(found.sample_weight, Y / 2)
    assert list(load(str(path), "train[80%:]").y) == [8, 9]


def test_a_file_with_splits(tmp_path):
    path = str(tmp_path / "data.npz")
    np.savez(path, x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    assert len(load(path).y) == 10
    assert len(load(path, default_split="test").y) == 2
    assert len(load(path, "train[:4]+test").y) == 6
    assert len(load(path, default_split="calibration").y) == 12
    with pytest.raises(ValueError, match="train, test, or a slice"):
        load(path, "validation")


def damaged(folder):
    (folder / "data.npz").write_bytes(b"PK\x03\x04 and no more")


def empty(folder):
    (folder / "data.npz").touch()


def without_labels(folder):
    np.savez(folder / "data.npz", x=X)


def pickled(folder):
    objects = np.array([{}], dtype=object)
    np.savez(folder / "data.npz", x=objects, y=objects)


@pytest.mark.parametrize(
    "make", [damaged, empty, without_labels, pickled, lambda folder: None]
)
def test_files_that_hold_no_samples(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match="an .npz file with arrays x and y"):
        load(str(tmp_path / "data.npz"))


def draw(folder, shades):
    """Folders of images, each of one shade."""
    import keras

    for name, values in shades.items():
        (folder / name).mkdir(parents=True)
        for value in values:
            image = np.full((9, 9, 1), value, "uint8")
            path = folder / name / f"{value}.png"
            keras.utils.save_img(path, image, scale=False)


def test_a_folder_of_images(tmp_path):
    draw(tmp_path, {"cat": range(50), "dog": range(100, 150)})
    shape = (8, 8, 1)
    x, y, _, names = load(str(tmp_path), input_shape=shape, image_scale=0.01)
    assert x.shape == (100, 8, 8, 1) and names == ("cat", "dog")
    assert np.array_equal(y, x[:, 0, 0, 0] > 0.99)
    assert np.array_equal(x, load(tmp_path, None, input_shape=shape).x * 0.01)
    # Every slice has some of all classes.
    parts = [
        load(tmp_path, split, input_shape=shape)
        for split in ("train[:80%]", "train[80%:]")
    ]
    assert [len(part.y) for part in parts] == [80, 20]
    assert all(0.2 < part.y.mean() < 0.8 for part in parts)


def test_a_folder_with_splits(tmp_path):
    draw(tmp_path / "train", {"cat": [1, 2], "dog": [3]})
    draw(tmp_path / "test", {"dog": [4]})
    found = load(tmp_path, "test", input_shape=(9, 9, 1))
    assert list(found.y) == [1] and found.x.max() == 4
    assert len(load(tmp_path, input_shape=(9, 9, 1)).y) == 3


def test_folders_that_hold_no_images(tmp_path):
    with pytest.raises(ValueError, match="0 such folders"):
        load(tmp_path, input_shape=(8, 8, 1))
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="without any"):
        load(tmp_path, input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="a fixed size"):
        load(tmp_path, input_shape=(None, None, 3))
    (tmp_path / "cat" / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="Expected an image"):
        load(tmp_path, input_shape=(8, 8, 1))


def make_pair():
    return X, Y


def make_split(split):
    return {"train": X, "test": X[:3]}[split], Y, Y


def test_functions():
    found = load(f"{__name__}:make_pair")
    assert found.x is X and found.y is Y and found.sample_weight is None
    found = load(f"{__name__}:make_split", default_split="test")
    assert len(found.x) == 3 and found.sample_weight is Y
    assert load(f"{__name__}:make_split", "train").x is X


def test_functions_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "only_found_here.py").write_text("def f(): return 1, 2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load("only_found_here:f")[:2] == (1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no_such_module:function", "can be imported"),
        ("keras_earlyexit.sources:no_such_function", "can be imported"),
        ("keras_earlyexit.sources:_HOW", "Expected a function"),
        ("digitz", "a folder with a folder of images"),
        ("no/such/folder", "a folder with a folder of images"),
    ],
)
def test_what_is_no_source(data, message):
    with pytest.raises(ValueError, match=message):
        load(data)


def test_a_version_is_no_function():
    assert sources.is_function("module.sub:make_data")
    assert not sources.is_function("glue/sst2:2.0.0")
    assert not sources.is_function("mnist:3.0.1")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [("train", 0, 50)]),
        ("train[-10:]", [("train", 40, 50)]),
        ("train[:5] + test[50%:]", [("train", 0, 5), ("test", 10, 20)]),
        ("train[:51]", None),
        ("valid", None),
        ("train[1]", None),
    ],
)
def test_slices(split, expected):
    assert slices.ranges(split, {"train": 50, "test": 20}) == expected

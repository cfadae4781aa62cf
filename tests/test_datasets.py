import os
import sys

import numpy as np
import pytest

from keras_earlyexit import datasets

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")

# Small images of random pixels: no two crops of one are alike.
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(1, 256, (20, 32, 32, 3)).astype("uint8")
LABELS = np.arange(20) % 10
TEXTS = ["good", "schlecht, aber schön", "", "悪くない"]


def store(folder, name, features, examples, version="1.0.0", **options):
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: list(enumerate(rows)) for split, rows in examples.items()
        },
        data_dir=folder,
        disable_shuffling=True,
        **options,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of made-up data sets, written by TFDS itself."""
    folder = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(num_classes=10)
    rows = [
        {"image": image, "label": target}
        for image, target in zip(PIXELS, LABELS, strict=True)
    ]
    image = tfds.features.Image(shape=(32, 32, 3))
    store(
        folder,
        "svhn_cropped",
        {"image": image, "label": label},
        {"train": rows, "test": rows[:5]},
        # TFDS looks for the version of the data set that it knows.
        version=tfds.builder_cls("svhn_cropped").VERSION,
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    store(
        folder,
        "made_up_reviews",
        {
            "idx": tfds.features.Scalar(np.int32),
            "sentence": tfds.features.Text(),
            "label": label,
        },
        {
            "train": [
                {"idx": i, "sentence": text, "label": -1}
                for i, text in enumerate(TEXTS)
            ]
        },
    )
    store(
        folder,
        "made_up_sizes",
        {"image": tfds.features.Image(), "label": label},
        {"train": rows[:2]},
    )
    return folder


def test_digits_splits_are_disjoint_stratified_and_fixed():
    sizes = {"train": 1000, "calibration": 397, "test": 400}
    assert datasets.spec("digits").split_sizes == sizes
    everything, _ = datasets.load("digits", "train+calibration+test")
    assert len(everything) == 1797
    rows = []
    for split, size in sizes.items():
        x, y = datasets.load("digits", split)
        assert x.shape == (size, 8, 8, 1)
        assert x.dtype == np.uint8 and x.max() == 16
        assert y.dtype == np.int64
        shares = np.bincount(y, minlength=10) / size
        np.testing.assert_allclose(shares, 0.1, atol=0.005)
        rows += [image.tobytes() for image in x]
    assert rows == [image.tobytes() for image in everything]
    from sklearn.datasets import load_digits

    stored = load_digits().images.astype("uint8")
    assert sorted(rows) == sorted(image.tobytes() for image in stored)

    _, y = datasets.load("digits", "train")
    assert y[:12].tolist() == [3, 1, 5, 6, 4, 9, 7, 0, 2, 8, 3, 1]


@pytest.mark.parametrize(
    "split, start, stop",
    [
        ("train[:90%]", 0, 900),
        ("train[90%:]", 900, 1000),
        ("train[10:20]", 10, 20),
        ("train[-5:]", 995, 1000),
        ("train[:]", 0, 1000),
    ],
)
def test_digits_can_be_sliced(split, start, stop):
    whole, targets = datasets.load("digits", "train")
    x, y = datasets.load("digits", split)
    np.testing.assert_array_equal(x, whole[start:stop])
    np.testing.assert_array_equal(y, targets[start:stop])


@pytest.mark.parametrize("split", ["tarin", "train[", "test[:401]", "[:9]"])
def test_unknown_split_is_refused(split, folder):
    message = "Received split='.*' \\(str\\). Use train, "
    with pytest.raises(ValueError, match=message):
        datasets.load("digits", split)
    with pytest.raises(ValueError, match=message):
        datasets.load("svhn_cropped", split, folder)


def test_svhn_is_read_as_stored_across_shards(folder):
    assert len(list(folder.glob("svhn_cropped/*/*train*"))) == 3
    x, y = datasets.load("svhn_cropped", "train", folder)
    np.testing.assert_array_equal(x, PIXELS)
    np.testing.assert_array_equal(y, LABELS)
    assert x.dtype == np.uint8 and y.dtype == np.int64
    for split, rows in (
        ("train[:45%]", slice(0, 9)),
        ("train[45%:]", slice(9, 20)),
        ("train[3:3]", slice(3, 3)),
    ):
        x, y = datasets.load("svhn_cropped", split, folder)
        np.testing.assert_array_equal(x, PIXELS[rows])
        np.testing.assert_array_equal(y, LABELS[rows])
    assert datasets.spec("svhn_cropped", folder) == datasets.DatasetSpec(
        (32, 32, 3), 10, {"train": 20, "test": 5}
    )


def test_text_comes_as_str(folder):
    x, y = datasets.load("made_up_reviews", "train", folder)
    assert x.tolist() == TEXTS
    assert y.tolist() == [-1] * 4
    batches = datasets.pipeline(
        "made_up_reviews", "train", 3, training=True, data_dir=folder
    )
    texts = [text.decode() for x, _ in batches for text in x.numpy()]
    assert sorted(texts) == sorted(TEXTS)


def test_other_inputs_are_read_through_tfds(tmp_path):
    store(
        tmp_path,
        "made_up_numbers",
        {
            "features": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(num_classes=3),
        },
        {
            "train": [
                {"features": np.full(4, i, "float32"), "label": i % 3}
                for i in range(6)
            ]
        },
    )
    x, y = datasets.load("made_up_numbers", "train[2:]", tmp_path)
    np.testing.assert_array_equal(x[:, 0], [2, 3, 4, 5])
    np.testing.assert_array_equal(y, [2, 0, 1, 2])
    batches = datasets.pipeline(
        "made_up_numbers", "train[2:]", data_dir=tmp_path
    )
    np.testing.assert_array_equal(next(iter(batches))[0], x)


def test_environment_variable_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    x, _ = datasets.load("svhn_cropped", "test", download=False)
    assert len(x) == 5


def test_data_sets_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="one input of fixed size"):
        datasets.load("made_up_sizes", "train", folder)
    with pytest.raises(
        ValueError, match="`name` must be.*Received name='mnits"
    ):
        datasets.load("mnits", "train", folder)
    with pytest.raises(ValueError, match="Received split=None \\(NoneType\\)"):
        datasets.load("mnist", None)


def test_missing_data_says_where_it_looked_and_how_to_get_it(tmp_path):
    class MadeUpUnreachable(tfds.core.GeneratorBasedBuilder):
        """Its server cannot be reached."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(4, 4, 1)),
                        "label": tfds.features.ClassLabel(num_classes=2),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            raise ConnectionError("no route to host")

        def _generate_examples(self):
            yield from ()

    name = MadeUpUnreachable.name
    assert datasets.spec(name, tmp_path).split_sizes == {}
    with pytest.raises(FileNotFoundError) as info:
        datasets.load(name, "train", tmp_path)
    message = str(info.value)
    assert str(tmp_path / name) in message
    assert "ConnectionError" in message
    assert f"tfds build {name}" in message and "TFDS_DATA_DIR" in message
    with pytest.raises(FileNotFoundError, match="downloads are not allowed"):
        datasets.load(name, "train", tmp_path, download=False)


@pytest.mark.parametrize(
    "module, name",
    [("tensorflow_datasets", "mnist"), ("sklearn.datasets", "digits")],
)
def test_missing_package_names_the_extra(module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="keras-earlyexit\\[data\\]"):
        datasets.load(name, "train")


@pytest.mark.parametrize(
    "name, channels, expected",
    [
        ("mnist", 1, [(51 / 255 - 0.1307) / 0.3081]),
        ("fashion_mnist", 1, [(51 / 255 - 0.2860) / 0.3530]),
        (
            "cifar10:3.0.2",
            3,
            [
                (51 / 255 - 0.4914) / 0.2023,
                (51 / 255 - 0.4822) / 0.1994,
                (51 / 255 - 0.4465) / 0.2010,
            ],
        ),
        ("svhn_cropped", 3, [-0.6] * 3),
        ("tiny_imagenet20", 3, [-0.6] * 3),
        ("digits", 1, [51 / 16]),
        ("cifar100", 3, [0.2] * 3),
    ],
)
def test_normalize_and_pipeline_agree(name, channels, expected):
    x = np.full((2, 5, 4, channels), 51, "uint8")
    normalized = datasets.normalize(name, x)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized[1, 4, 3], expected, rtol=1e-5)
    np.testing.assert_array_equal(x, 51)
    batch, y = next(iter(datasets.pipeline((x, [0, 1]), recipe=name)))
    np.testing.assert_allclose(batch, normalized, rtol=1e-6)
    assert batch.dtype == tf.float32 and y.numpy().tolist() == [0, 1]


def test_normalize_takes_any_order_in_memory_and_no_images():
    whole = datasets.normalize("cifar10", PIXELS)
    view = datasets.normalize("cifar10", PIXELS[::-1, :, ::2])
    np.testing.assert_array_equal(view, whole[::-1, :, ::2])
    assert datasets.normalize("cifar10", PIXELS[:0]).shape == (
        0,
        *PIXELS.shape[1:],
    )


def test_normalize_refuses_what_is_no_stored_image():
    with pytest.raises(ValueError, match="unsigned integers.*float32"):
        datasets.normalize("mnist", np.zeros((2, 28, 28, 1), "float32"))
    with pytest.raises(ValueError, match="must have 3 channels"):
        datasets.normalize("cifar10", np.zeros((2, 32, 32, 1), "uint8"))


def test_pipeline_keeps_the_order_and_does_not_augment_unless_training():
    batches = datasets.pipeline((PIXELS, LABELS), None, 8, recipe="cifar10")
    assert batches.cardinality() == 3
    assert batches.element_spec[0].shape.as_list() == [None, 32, 32, 3]
    parts = list(batches)
    assert [len(y) for _, y in parts] == [8, 8, 4]
    np.testing.assert_allclose(
        np.concatenate([x for x, _ in parts]),
        datasets.normalize("cifar10", PIXELS),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), LABELS)


def test_training_shuffles_anew_each_epoch_and_follows_the_seed():
    def epochs(seed):
        batches = datasets.pipeline(
            (PIXELS, np.arange(20)),
            batch_size=8,
            training=True,
            recipe="cifar10",
            seed=seed,
        )
        return [
            [np.concatenate(column) for column in zip(*batches, strict=True)]
            for _ in range(2)
        ]

    first, second = epochs(1)
    assert sorted(first[1]) == list(range(20))
    assert first[1].tolist() != second[1].tolist() != list(range(20))
    for epoch, again in zip([first, second], epochs(1), strict=True):
        np.testing.assert_array_equal(epoch[0], again[0])
        np.testing.assert_array_equal(epoch[1], again[1])
    assert epochs(2)[0][1].tolist() != first[1].tolist()


@pytest.mark.parametrize(
    "recipe, padding, flips",
    [("cifar10", 4, True), ("tiny_imagenet20", 0, True), ("digits", 0, False)],
)
def test_augmentation_crops_and_flips_stored_pixels(recipe, padding, flips):
    images = PIXELS[..., :1] if recipe == "digits" else PIXELS
    x = np.repeat(images[:2], 100, axis=0)
    y = np.repeat([0, 1], 100)
    batches = datasets.pipeline(
        (x, y), batch_size=200, training=True, recipe=recipe
    )
    augmented, y = next(iter(batches))

    views, places = [], []
    for label, image in enumerate(images[:2]):
        padded = np.pad(image, [(padding,) * 2, (padding,) * 2, (0, 0)])
        for row in range(2 * padding + 1):
            for column in range(2 * padding + 1):
                crop = padded[row : row + 32, column : column + 32]
                for step in (1, -1) if flips else (1,):
                    views.append(datasets.normalize(recipe, crop[:, ::step]))
                    places.append((label, row, column, step))
    views = np.stack(views)
    seen = set()
    for image, label in zip(augmented.numpy(), y.numpy(), strict=True):
        distances = np.abs(views - image).max(axis=(1, 2, 3))
        place = places[distances.argmin()]
        assert distances.min() < 1e-4 and place[0] == label
        seen.add(place[1:])
    possible = (2 * padding + 1) ** 2 * (2 if flips else 1)
    assert len(seen) > possible / 2
    if padding:
        assert {row for row, _, _ in seen} == set(range(9))
        assert {column for _, column, _ in seen} == set(range(9))


def test_pipeline_takes_arrays_that_are_no_images():
    tokens = np.arange(12).reshape(4, 3)
    x, _ = next(iter(datasets.pipeline((tokens, np.zeros(4)))))
    np.testing.assert_array_equal(x, tokens)
    x, _ = next(iter(datasets.pipeline((tokens / 7, np.zeros(4)))))
    assert x.dtype == tf.float32
    np.testing.assert_allclose(x, tokens / 7, rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (("digits",), {}, "with a `split`.*Received data='digits' \\(str\\)"),
        (((PIXELS, LABELS), "train"), {}, "without one.*split='train'"),
        (((PIXELS, LABELS[:3]),), {}, "of the same length"),
        (("digits", "train", 0), {}, "Received batch_size=0 \\(int\\)"),
        (
            ((PIXELS / 255, LABELS),),
            {"recipe": "cifar10"},
            "unsigned integers.*need no recipe",
        ),
    ],
)
def test_pipeline_refuses_what_does_not_fit(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.pipeline(*arguments, **options)


@pytest.mark.parametrize(
    "name, split, shape, num_examples",
    [
        ("mnist", "test[:10%]", (28, 28, 1), 1000),
        ("cifar10", "test[90%:]", (32, 32, 3), 1000),
        ("tiny_imagenet20", "validation", (64, 64, 3), 1000),
        ("glue/sst2", "validation", (), 872),
    ],
)
def test_real_data(name, split, shape, num_examples):
    folder = os.environ.get("TFDS_DATA_DIR", "")
    if not os.path.isdir(os.path.join(folder, name)):
        pytest.skip(f"TFDS_DATA_DIR names no folder with {name} prepared")
    x, y = datasets.load(name, split, download=False)
    assert x.shape == (num_examples, *shape)
    spec = datasets.spec(name)
    assert spec.input_shape == shape
    assert set(np.unique(y)) == set(range(spec.num_classes))

    # The same rows as TFDS gives by itself.
    example = next(iter(tfds.load(name, split=split, download=False)))
    value = next(
        example[key] for key in ("image", "sentence") if key in example
    )
    expected = value.numpy() if shape else value.numpy().decode()
    assert np.array_equal(x[0], expected)
    assert y[0] == example["label"].numpy()

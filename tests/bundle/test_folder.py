"""Bad bundles: whatever is not as the manifest says is refused unread."""

import hashlib
import os

import pytest

import keras_earlyexit as ee
from keras_earlyexit.bundle import parsing
from keras_earlyexit.bundle.folder import check_files, describe, read_manifest
from keras_earlyexit.bundle.specs import BundleError

CASES = {}


def case(message):
    """Adds a way to spoil a bundle to the cases, with what it is to say."""

    def add(function):
        CASES[function.__name__] = function, message
        return function

    return add


@case("11 bytes. Received: 6 bytes")
def truncated(folder):
    os.truncate(folder / "stage_0.tflite", 6)


@case("with the SHA-256")
def tampered(folder):
    (folder / "stage_0.tflite").write_bytes(b"FIRST stage")


@case("Received: 13 bytes")
def longer(folder):
    with open(folder / "stage_1/saved_model.pb", "ab") as file:
        file.write(b"!")


@case(r"Missing: \['stage_0.tflite'\]")
def missing(folder):
    (folder / "stage_0.tflite").unlink()


@case(r"not in the manifest: \['stage_1/variables/more'\]")
def extra(folder):
    (folder / "stage_1/variables/more").write_bytes(b"")


@case("not in the manifest")
def many_extra(folder):
    for i in range(50):
        (folder / f"extra_{i}").write_bytes(b"")


@case("no links")
def linked_file(folder):
    (folder / "stage_0.tflite").rename(folder.parent / "elsewhere")
    (folder / "stage_0.tflite").symlink_to(folder.parent / "elsewhere")


@case("no links")
def linked_folder(folder):
    (folder / "stage_1").rename(folder.parent / "elsewhere")
    (folder / "stage_1").symlink_to(folder.parent / "elsewhere")


@case("no links")
def pipe(folder):
    (folder / "stage_0.tflite").unlink()
    os.mkfifo(folder / "stage_0.tflite")


@case("a link or a device")
def linked_manifest(folder):
    (folder / "manifest.json").rename(folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")


@case("a link or a device")
def manifest_is_a_folder(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


@case("at most 4194304 bytes")
def huge_manifest(folder):
    os.truncate(folder / "manifest.json", parsing.MAX_BYTES + 1)


@case("in JSON")
def manifest_cut_off(folder):
    os.truncate(folder / "manifest.json", 100)


@pytest.mark.parametrize("name", CASES)
def test_bad_bundles_are_refused(name, written):
    spoil, message = CASES[name]
    spoil(written)
    with pytest.raises(BundleError, match=message):
        ee.load_bundle(written)


def test_a_whole_bundle_is_read(written, manifest):
    found, sha256 = read_manifest(written)
    data = (written / "manifest.json").read_bytes()
    assert found == manifest
    assert sha256 == hashlib.sha256(data).hexdigest()
    contents = check_files(written, manifest, keep=True)
    assert contents["stage_1/saved_model.pb"] == b"second stage"
    assert check_files(written, manifest, keep=False) == {}


def test_describe_lists_what_check_files_wants(written, manifest):
    (written / "manifest.json").unlink()
    assert set(describe(written)) == set(manifest.files)


def test_every_flipped_bit_is_found(written, manifest):
    file = written / "stage_0.tflite"
    data = file.read_bytes()
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        with pytest.raises(BundleError):
            check_files(written, manifest, keep=False)


def test_the_manifest_can_be_pinned(written):
    _, sha256 = read_manifest(written)
    read_manifest(written, sha256.upper())
    with pytest.raises(BundleError, match="somebody has changed it"):
        read_manifest(written, "0" * 64)


def test_the_bundle_itself_may_be_a_link(written, manifest):
    link = written.parent / "current"
    link.symlink_to(written)
    assert read_manifest(link)[0] == manifest
    check_files(link, manifest, keep=False)


def test_no_bundle(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ee.load_bundle(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="0 entries and no manifest"):
        ee.load_bundle(tmp_path)
    (tmp_path / "segment_0").mkdir()
    with pytest.raises(FileNotFoundError, match="bundles segment_0. Load one"):
        ee.load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["num_threads", "num_calls"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_wrong_number(written, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ee.load_bundle(written, **{name: value})

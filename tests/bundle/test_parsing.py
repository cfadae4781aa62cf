"""Manifests: what is written is read again, and nothing else is."""

import dataclasses
import json
import math

import pytest

from keras_earlyexit.bundle.manifest import render
from keras_earlyexit.bundle.parsing import MAX_BYTES, parse
from keras_earlyexit.bundle.specs import BundleError


def test_round_trip(manifest):
    assert parse(render(manifest)) == manifest
    segment = dataclasses.replace(
        manifest,
        thresholds=(-math.inf,),
        class_names=None,
        segment_index=1,
        segment_count=2,
        input_structure="dict",
        stages=manifest.stages[1:],
        quantize="int8",
        raw_cut=True,
    )
    assert parse(render(segment)) == segment


def test_a_manifest_from_before_raw_cut_is_read(manifest):
    content = json.loads(render(manifest))
    del content["raw_cut"]
    assert parse(json.dumps(content).encode()).raw_cut is False


def test_the_file_is_plain_json(manifest):
    content = json.loads(render(manifest), parse_constant=pytest.fail)
    assert content["thresholds"] == ["inf"]
    assert content["stages"][0]["inputs"] == [
        {"name": "image", "shape": [None, 8, 8, 1], "dtype": "uint8"}
    ]


def test_unknown_keys_are_passed_over(manifest):
    content = json.loads(render(manifest))
    content["added_later"] = 1
    assert parse(json.dumps(content).encode()) == manifest


def changed(manifest, *path, value):
    """The bytes of a manifest with one value replaced."""
    content = json.loads(render(manifest))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("format_version",), 2, "version 2. Update keras_earlyexit"),
        (("format_version",), 0, "format version 1 to 1"),
        (("format_version",), True, "of type int"),
        (("kind",), "something else", "a 'something else' of version 1"),
        (("format",), "pickle", "one of litert, saved_model, onnx, keras"),
        (("format",), ["litert"], "of type str"),
        (("exit_names",), [], "numbers"),
        (("exit_names",), "ab", "of type list"),
        (("exit_names",), [1, 2], "values of str"),
        (("exit_names",), ["e"] * 2000, "at most 1000"),
        (("relative_costs",), [0.1], "2 numbers"),
        (("relative_costs",), [0.1, "inf"], "2 numbers"),
        (("relative_costs",), [0.1, 10**400], "2 numbers"),
        (("thresholds",), ["nan"], "1 numbers"),
        (("thresholds",), [None], "1 numbers"),
        (("thresholds",), [0.5, 0.5], "1 numbers"),
        (("input_structure",), "tuple", "one of tensor, list, dict"),
        (("raw_cut",), 1, "of type bool"),
        (("head",), KeyError, "'head' in the manifest to be of type dict"),
        (("stages",), [], "stages that follow one another"),
        (("stages", 0, "index"), 1, "stages that follow one another"),
        (("stages", 0, "index"), 2, "a number from 0 to 1"),
        (("stages", 0, "index"), -1, "a number from 0 to 1"),
        (("stages", 0, "inputs"), [], "to take at least one tensor"),
        (("stages", 0, "outputs"), [], "to return"),
        (("stages", 0), "stage_0", "values of dict"),
        (("stages", 0, "path"), "../stage_0.tflite", "inside the bundle"),
        (("stages", 0, "path"), "/etc/passwd", "inside the bundle"),
        (("stages", 0, "path"), "stage_9.tflite", "'stage_9.tflite' among"),
        (("stages", 1, "inputs", 0, "shape"), [None, 4], "the stage before"),
        (("stages", 1, "inputs", 0, "dtype"), "int8", "the stage before"),
        (("stages", 1, "inputs", 0, "dtype"), "object", "one of bool"),
        (("stages", 0, "inputs", 0, "shape"), [1, 8, 8, 1], "null for"),
        (("stages", 0, "inputs", 0, "shape"), [None, 0], "null for"),
        (("stages", 0, "inputs", 0, "shape"), [None, 2.5], "null for"),
        (("stages", 0, "inputs", 0, "shape"), [None, 2**40], "null for"),
        (("stages", 0, "inputs", 0, "shape"), [None] * 9, "null for"),
        (("stages", 0, "inputs", 0, "shape"), [], "null for"),
        (("routed",), "routed", "'routed' among the files"),
        (("files", 0, "path"), "a/../../b", "inside the bundle"),
        (("files", 0, "path"), "C:\\b", "inside the bundle"),
        (("files", 0, "path"), "a//b", "inside the bundle"),
        (("files", 0, "path"), "a\0b", "inside the bundle"),
        (("files", 0, "path"), "a" * 2000, "inside the bundle"),
        (("files", 0, "path"), "", "inside the bundle"),
        (("files", 0, "path"), "manifest.json", "every file but"),
        (("files", 1, "path"), "stage_0.tflite", "2 different ones"),
        (("files", 0, "sha256"), "0" * 63, "64 hexadecimal digits"),
        (("files", 0, "sha256"), "g" * 64, "64 hexadecimal digits"),
        (("files", 0, "size_bytes"), -1, "a number of bytes"),
        (("files", 0, "size_bytes"), 1.0, "of type int"),
    ],
)
def test_what_cannot_be_is_refused(manifest, path, value, message):
    with pytest.raises(BundleError, match=message):
        parse(changed(manifest, *path, value=value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": NaN}',
        b'{"kind": 1, "kind": 2}',
        b'{"kind": ' + b"1" * 10_000 + b"}",
        b" " * (MAX_BYTES + 1),
    ],
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(BundleError):
        parse(data)

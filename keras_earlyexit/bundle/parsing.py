"""Reads `manifest.json`.

Nothing in a manifest is trusted: every value is looked at before it is used,
and a manifest that says too much is not read.
"""

import json
import math
import reprlib

from keras_earlyexit.bundle.manifest import (
    FORMAT_VERSION,
    FORMATS,
    KIND,
    MANIFEST,
    MAX_FILES,
    STRUCTURES,
    FileEntry,
    Manifest,
    StageEntry,
)
from keras_earlyexit.bundle.specs import DTYPES, BundleError, TensorSpec

MAX_BYTES = 4 * 2**20
_MAX_STAGES = 1000
_MAX_RANK = 8
_MAX_SIZE = 2**31
_MAX_VALUES = 100_000
_MAX_PATH = 1000


def parse(data):
    """Reads the bytes of `manifest.json`.

    Args:
        data: Bytes.

    Returns:
        A `Manifest`.

    Raises:
        BundleError: If it is too large, no JSON, of an unknown version, or
            says something that cannot be.
    """
    if len(data) > MAX_BYTES:
        raise BundleError(
            f"Expected a manifest of at most {MAX_BYTES} bytes. Received: "
            f"{len(data)} bytes. The bundle is damaged: export it again."
        )
    try:
        content = json.loads(
            data, object_pairs_hook=_no_repeats, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"Expected {MANIFEST} in JSON. Received: {len(data)} bytes that "
            f"cannot be read ({error}). Export the bundle again."
        ) from error
    fields = _Fields(content, "the manifest")
    _check_version(fields)
    names = fields.each("exit_names", str, at_most=_MAX_STAGES)
    manifest = Manifest(
        format=fields.choice("format", FORMATS),
        model_name=fields.get("model_name", str),
        weights_sha256=fields.get("weights_sha256", str),
        exit_names=names,
        relative_costs=fields.numbers("relative_costs", len(names)),
        thresholds=fields.numbers("thresholds", len(names) - 1, infinite=True),
        policy=fields.get("policy", dict),
        head=fields.get("head", dict),
        class_names=fields.optional("class_names", _Fields.each, str),
        segment_index=fields.get("segment_index", int),
        segment_count=fields.get("segment_count", int),
        input_structure=fields.choice("input_structure", STRUCTURES),
        stages=tuple(
            _stage(stage, len(names))
            for stage in fields.each("stages", dict, at_most=len(names))
        ),
        files=tuple(
            _file(file)
            for file in fields.each("files", dict, at_most=MAX_FILES)
        ),
        routed=fields.optional("routed", _Fields.path),
        quantize=fields.optional("quantize", _Fields.get, str),
        raw_cut=bool(fields.optional("raw_cut", _Fields.get, bool)),
        probe=fields.get("probe", dict),
        versions=fields.get("versions", dict),
    )
    _check_stages(manifest)
    return manifest


def _check_version(fields):
    version = fields.get("format_version", int)
    if fields.get("kind", str) != KIND or not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"Expected a {KIND} of format version 1 to {FORMAT_VERSION}. "
            f"Received: a {fields.get('kind', str)!r} of version {version}. "
            "Update keras_earlyexit, or export the bundle with this version."
        )


def _check_stages(manifest):
    indices = [stage.index for stage in manifest.stages]
    if not indices or indices != list(range(indices[0], indices[-1] + 1)):
        raise BundleError(
            "Expected stages that follow one another. Received: a manifest "
            f"with the stages {indices}."
        )
    paths = [file.path for file in manifest.files]
    if len(set(paths)) < len(paths) or MANIFEST in paths:
        raise BundleError(
            f"Expected every file but {MANIFEST} once. Received: a manifest "
            f"that lists {len(paths)} files, {len(set(paths))} different ones."
        )
    for part in [*(stage.path for stage in manifest.stages), manifest.routed]:
        if part is not None and not any(
            path == part or path.startswith(f"{part}/") for path in paths
        ):
            raise BundleError(
                f"Expected '{part}' among the files of the manifest. "
                f"Received: the files {paths[:5]}."
            )
    crossing = None
    for stage in manifest.stages:
        crossing = _check_stage(manifest, stage, crossing)


def _check_stage(manifest, stage, crossing):
    """Compares a stage with the one before; returns what it hands on."""
    last = stage.index == len(manifest.exit_names) - 1
    wanted = {"prediction"} if last else {"prediction", "score", "feature"}
    outputs = {spec.name: spec for spec in stage.outputs}
    if not wanted <= set(outputs) <= wanted | {"carry"} or not stage.inputs:
        raise BundleError(
            f"Expected stage {stage.index} to take at least one tensor and to "
            f"return {sorted(wanted)}. Received: a manifest in which it takes "
            f"{len(stage.inputs)} and returns {sorted(outputs)}."
        )
    if crossing is not None and list(stage.inputs) != crossing:
        raise BundleError(
            f"Expected stage {stage.index} to take what the stage before "
            f"returns: {crossing}. Received: a manifest in which it takes "
            f"{list(stage.inputs)}."
        )
    return [outputs[key] for key in ("feature", "carry") if key in outputs]


def _stage(content, num_stages):
    fields = _Fields(content, "a stage of the manifest")
    index = fields.get("index", int)
    if not 0 <= index < num_stages:
        raise fields.wrong("index", f"a number from 0 to {num_stages - 1}")
    return StageEntry(
        index=index,
        path=fields.path("path"),
        inputs=tuple(_spec(x) for x in fields.each("inputs", dict)),
        outputs=tuple(_spec(x) for x in fields.each("outputs", dict)),
    )


def _spec(content):
    fields = _Fields(content, "a tensor of the manifest")
    shape = fields.get("shape", list)
    sizes = [size for size in shape[1:] if size is not None]
    if (
        not 1 <= len(shape) <= _MAX_RANK
        or shape[0] is not None
        or any(type(x) is not int or not 1 <= x < _MAX_SIZE for x in sizes)
    ):
        raise fields.wrong(
            "shape",
            f"null for the batch and at most {_MAX_RANK - 1} sizes of at "
            "least 1",
        )
    return TensorSpec(
        fields.get("name", str), tuple(shape), fields.choice("dtype", DTYPES)
    )


def _file(content):
    fields = _Fields(content, "a file of the manifest")
    size = fields.get("size_bytes", int)
    sha256 = fields.get("sha256", str)
    if size < 0:
        raise fields.wrong("size_bytes", "a number of bytes")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise fields.wrong("sha256", "64 hexadecimal digits")
    return FileEntry(fields.path("path"), size, sha256)


class _Fields:
    """The values of a JSON object, looked at one by one."""

    def __init__(self, content, where):
        self._where = where
        if type(content) is not dict:
            raise BundleError(
                f"Expected {where} to be a JSON object. Received: "
                f"{_shown(content)}."
            )
        self._content = content

    def get(self, key, kind):
        value = self._content.get(key)
        # `type`, because True is an int.
        if type(value) is not kind:
            raise self.wrong(key, f"of type {kind.__name__}")
        return value

    def optional(self, key, get, *args):
        if self._content.get(key) is None:
            return None
        return get(self, key, *args)

    def choice(self, key, choices):
        if self.get(key, str) not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}")
        return self._content[key]

    def each(self, key, kind, at_most=_MAX_VALUES):
        values = self.get(key, list)
        if len(values) > at_most or any(type(x) is not kind for x in values):
            raise self.wrong(
                key, f"a list of at most {at_most} values of {kind.__name__}"
            )
        return tuple(values)

    def numbers(self, key, length, infinite=False):
        values = self.get(key, list)
        if infinite:
            values = [float(x) if x in ("inf", "-inf") else x for x in values]
        if len(values) != length or not all(
            type(x) is float
            and (infinite or math.isfinite(x))
            or type(x) is int
            and abs(x) < _MAX_SIZE
            for x in values
        ):
            raise self.wrong(key, f"{length} numbers")
        return tuple(float(x) for x in values)

    def path(self, key):
        """A path that stays inside the bundle, parts joined by `/`."""
        path = self.get(key, str)
        parts = path.split("/")
        if (
            not all(parts)
            or {".", ".."} & set(parts)
            or set("\\:\0") & set(path)
            or len(path) > _MAX_PATH
        ):
            raise self.wrong(key, "a relative path inside the bundle")
        return path

    def wrong(self, key, expected):
        return BundleError(
            f"Expected '{key}' in {self._where} to be {expected}. Received: "
            f"{_shown(self._content.get(key))}. The bundle is damaged: export "
            "it again."
        )


def _shown(value):
    # Short and shallow, whatever a manifest holds.
    return f"{reprlib.repr(value)} (of type {type(value).__name__})"


def _no_repeats(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return content


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")

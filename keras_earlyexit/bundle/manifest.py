"""`manifest.json`: what a bundle is, and which files belong to it."""

import dataclasses
import json
import math

MANIFEST = "manifest.json"
KIND = "keras_earlyexit bundle"
#: A reader knows the versions up to its own; new keys do not raise it.
FORMAT_VERSION = 1
FORMATS = ("litert", "saved_model", "onnx", "keras")
STRUCTURES = ("tensor", "list", "dict")
MAX_FILES = 10_000


@dataclasses.dataclass(frozen=True)
class StageEntry:
    """A stage of a bundle.

    Args:
        index: Which of the model's stages, from 0 on; its exit has this index.
        path: Its file or folder, relative to the bundle.
        inputs: The `TensorSpec` of what goes in, in the file's order.
        outputs: The `TensorSpec` of what comes out, by name.
    """

    index: int
    path: str
    inputs: tuple
    outputs: tuple


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file of a bundle: its path, its size and its SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a bundle is; written by `ee.export`.

    Args:
        format: What the stages are written in, one of `FORMATS`.
        model_name: Name of the model.
        weights_sha256: SHA-256 over the model's weights, the same in all
            segments of one export.
        exit_names: Names of all exits of the model, `final` last: (E + 1,).
        relative_costs: Cost of each exit over the plain model's: (E + 1,).
        thresholds: Threshold of each early exit: (E,).
        policy: Name and options of the policy.
        head: Form of the answers: `units`, `activation`, `task`, `positions`.
        class_names: A name for each class, or `None`.
        segment_index: Which segment of the model this is.
        segment_count: How many segments there are; 1 if nothing was cut.
        input_structure: One of `STRUCTURES`.
        stages: A `StageEntry` for each stage in this bundle.
        files: A `FileEntry` for each file but the manifest.
        routed: Folder of the graph that routes by itself, or `None`.
        quantize: `None`, `"int8"`, `"float16"` or `"dynamic"`.
        raw_cut: Whether what the last stage hands on has met no weights: it
            is the input in another form.
        probe: How far the stages were from the model when they were written.
        versions: Versions of what wrote the bundle, by name.
    """

    format: str
    model_name: str
    weights_sha256: str
    exit_names: tuple
    relative_costs: tuple
    thresholds: tuple
    policy: dict
    head: dict
    class_names: tuple | None
    segment_index: int
    segment_count: int
    input_structure: str
    stages: tuple
    files: tuple
    routed: str | None = None
    quantize: str | None = None
    raw_cut: bool = False
    probe: dict = dataclasses.field(default_factory=dict)
    versions: dict = dataclasses.field(default_factory=dict)


def render(manifest):
    """The bytes of `manifest.json`."""
    content = dataclasses.asdict(manifest)
    # JSON has no infinity, and a threshold that lets nobody leave is one.
    content["thresholds"] = [
        value if math.isfinite(value) else str(value)
        for value in manifest.thresholds
    ]
    head = {"kind": KIND, "format_version": FORMAT_VERSION}
    text = json.dumps({**head, **content}, indent=1, allow_nan=False)
    return f"{text}\n".encode()

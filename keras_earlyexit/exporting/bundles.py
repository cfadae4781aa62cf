"""Writes a model with exits as a bundle, or as one for each segment."""

import dataclasses
import os
import tempfile

import numpy as np

from keras_earlyexit.bundle import folder, writing
from keras_earlyexit.bundle.manifest import MANIFEST, render
from keras_earlyexit.bundle.reading import load_bundle
from keras_earlyexit.bundle.specs import fit_inputs
from keras_earlyexit.exporting import (
    describing,
    formats,
    functions,
    probing,
    reports,
    saved_model,
)
from keras_earlyexit.splitting.partitioning import (
    check_has_exits,
    segment_bounds,
)
from keras_earlyexit.storage.urls import is_url

#: TensorFlow Serving looks for numbered versions in a folder.
ROUTED = "routed"
_ROUTED_VERSION = "1"
#: Samples that "int8" chooses its ranges from.
_CALIBRATION_ROWS = 256


def export(
    model,
    path,
    *,
    format="litert",
    cut=None,
    overwrite=False,
    quantize=None,
    representative=None,
    class_names=None,
):
    """Writes a model as a bundle: a folder from which it answers by itself.

    The folder holds `manifest.json` and one file, or folder, for each stage.
    It appears under its name once it is complete and flushed to the disk, and
    after every stage has been loaded from it and found to answer as the model
    does, to within 1e-4 of the largest value (2e-2 for a model that computes
    in half precision). Who is killed before leaves nothing at `path`, or what
    was there. Thresholds are written, and can be changed in a loaded bundle;
    optimizer and objective are not.

    Args:
        model: An `EarlyExitModel`.
        path: The folder to write, around which there must be one; or a URL,
            such as `s3://bucket/model`, for an object store.
        format: `"litert"` and `"onnx"` run without Keras and TensorFlow;
            `"saved_model"` has the whole route as one graph besides, for
            TensorFlow Serving; `"keras"` is written on every backend, the
            others on TensorFlow.
        cut: Names of early exits, as for `ee.partition`: writes
            `path/segment_0`, `path/segment_1`, ..., each a bundle.
        overwrite: Whether to take the place of a bundle that is there.
        quantize: For LiteRT: `"int8"`, `"float16"` or `"dynamic"`. What
            crosses between stages stays float32.
        representative: Inputs as `model.predict` takes them in arrays, or a
            tuple `(x, y)` with labels. The figures of the report are from
            these; `"int8"` chooses its ranges from the first 256 of them.
        class_names: A name for each class, to be found in the manifest.

    Returns:
        An `ExportReport`.

    Raises:
        TypeError: If `model` has no exits.
        ValueError: If an argument is wrong, or a layer cannot be converted.
        FileExistsError: If there is something at `path` already.
        ImportError: If the tool for the format is not installed.
        RuntimeError: If what was written does not answer as the model does.

    Example:

    ```python
    report = ee.export(model, "model_bundle")
    bundle = ee.load_bundle("model_bundle")
    ```
    """
    if is_url(path):
        options = dict(
            format=format,
            cut=cut,
            quantize=quantize,
            representative=representative,
            class_names=class_names,
        )
        return _export_to_store(model, path, overwrite, options)
    check_has_exits(model)
    formats.check(format, quantize)
    bounds = ((0, len(model.exit_names) - 1),)
    parts = (os.curdir,)
    if cut is not None:
        bounds = segment_bounds(model, cut)
        parts = tuple(f"segment_{i}" for i in range(len(bounds)))
    class_names = _checked_names(class_names, model.head)
    x, y = _samples(model, quantize, representative)
    quantized = quantize is not None
    tolerance = None if quantized else probing.tolerance(model)
    path = os.fspath(path)
    with writing.new_folder(path, overwrite) as temporary:
        places = [os.path.normpath(os.path.join(temporary, p)) for p in parts]
        write_stages(model, format, bounds, places, quantize, x)
        described = [
            write_manifest(
                place,
                describing.describe(
                    model,
                    format,
                    bounds,
                    segment,
                    files=folder.describe(place),
                    class_names=class_names,
                    routed=_routed(place),
                    quantize=quantize,
                    probe={"samples": len(x[0]), "tolerance": tolerance},
                ),
            )
            for segment, place in enumerate(places)
        ]
        report = reports.report(
            model,
            wanted=probing.reference(model, x),
            found=probing.exported([load_bundle(p) for p in places], x),
            y=y,
            manifests=described,
            path=path,
            bundles=tuple(
                os.path.normpath(os.path.join(path, part)) for part in parts
            ),
        )
        check_answers(
            report.largest_difference,
            report.differs_most_at,
            report.samples,
            tolerance,
        )
    return report


def _export_to_store(model, url, overwrite, options):
    """Writes a bundle here, and then to an object store."""
    from keras_earlyexit.bundle.remote import check_free, publish

    url = url.rstrip("/")
    with tempfile.TemporaryDirectory(prefix="keras_earlyexit_") as around:
        path = os.path.join(around, "bundle")
        report = export(model, path, **options)
        urls = tuple(
            url if place == path else f"{url}/{os.path.basename(place)}"
            for place in report.bundles
        )
        if not overwrite:
            # None of them, before the first one is written.
            for target in urls:
                check_free(target)
        for place, target in zip(report.bundles, urls, strict=True):
            publish(place, target, overwrite=True)
    return dataclasses.replace(report, path=url, bundles=urls)


def write_stages(model, format, bounds, places, quantize, x):
    """Writes the stages of each segment into its folder.

    Args:
        model: An `EarlyExitModel`.
        format, quantize: As in `export`.
        bounds: First and last stage of each segment.
        places: The folder of each.
        x: Tuple of inputs that "int8" chooses its ranges from.
    """
    taken = [None] * len(model.exit_names)
    if quantize == "int8":
        few = tuple(array[:_CALIBRATION_ROWS] for array in x)
        taken = probing.stage_inputs(model, few)
    for place, (first, last) in zip(places, bounds, strict=True):
        os.makedirs(place, exist_ok=True)
        for index in range(first, last + 1):
            formats.write_stage(
                model,
                index,
                format,
                os.path.join(place, formats.file_name(format, index)),
                quantize,
                taken[index],
            )
        if format == "saved_model":
            where = os.path.join(place, ROUTED, _ROUTED_VERSION)
            saved_model.write_routed(model, (first, last), where)


def _routed(place):
    return ROUTED if os.path.isdir(os.path.join(place, ROUTED)) else None


def write_manifest(place, manifest):
    """Writes a `Manifest` into the folder of its bundle; returns it."""
    content = render(manifest)
    with open(os.path.join(place, MANIFEST), "wb") as file:
        file.write(content)
    return manifest


def check_answers(difference, where, samples, tolerance):
    """Refuses what answers otherwise than the model.

    Args:
        difference, where: As `probing.largest_difference` gives them.
        samples: On how many samples that was.
        tolerance: How large it may be; `None` for any number.

    Raises:
        RuntimeError: If it is larger.
    """
    if np.isnan(difference) or (
        tolerance is not None and difference > tolerance
    ):
        limit = "numbers" if tolerance is None else f"at most {tolerance}"
        raise RuntimeError(
            "Expected what was written to answer as the model does, with a "
            f"difference of {limit}. Received: {difference:.3g} at "
            f"'{where}', on {samples} samples. Nothing was written. "
            "Try another format, or pass real inputs as `representative`."
        )


def _samples(model, quantize, representative):
    """Inputs to compare answers on, and their labels or `None`."""
    if representative is None:
        if quantize == "int8":
            raise ValueError(
                "Expected `representative` inputs for quantize='int8', to "
                "choose the ranges of all values from. Received: None. Pass "
                "some hundred training inputs: representative=x_train[:256]."
            )
        return probing.make_inputs(model), None
    x, y = representative, None
    if isinstance(x, tuple) and len(x) == 2:
        x, y = representative
    specs = functions.input_specs(model, 0)
    x = fit_inputs(x, specs, functions.input_structure(model, 0))
    if not len(x[0]):
        raise ValueError(
            "Expected at least one sample in `representative`. Received: none."
        )
    if y is not None:
        model.head.check_labels(y)
        if len(y) != len(x[0]):
            raise ValueError(
                "Expected one label for each sample in `representative`. "
                f"Received: {len(x[0])} samples and {len(y)} labels."
            )
    return x, y


def _checked_names(class_names, head):
    if class_names is None:
        return None
    names = () if isinstance(class_names, str) else tuple(class_names)
    if len(names) != head.units or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"Expected a list of {head.units} strings as `class_names`, one "
            f"for each unit of the head. Received: class_names={class_names!r} "
            f"(of type {type(class_names).__name__})."
        )
    return names

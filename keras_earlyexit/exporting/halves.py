"""Writes one segment of a model alone, where the others are on other machines.

After training on two machines neither of them has all weights, so that none
can say their hash. Both halves are told one instead, by which they know each
other.
"""

import dataclasses
import os

from keras_earlyexit.bundle import folder, writing
from keras_earlyexit.bundle.reading import load_bundle
from keras_earlyexit.exporting import bundles, describing, formats, probing
from keras_earlyexit.splitting.partitioning import segment_bounds


def export_segment(
    model, path, *, cut, segment, weights_sha256, format="litert"
):
    """Writes a segment as a bundle; takes the place of one that is there.

    Args:
        model: An `EarlyExitModel` with the segment's trained weights; the
            others are not looked at.
        path: The folder to write, as in `ee.export`.
        cut: Names of early exits, as for `ee.partition`.
        segment: Which segment, from 0 on.
        weights_sha256: What all halves call their weights, in hexadecimal.
        format: As in `ee.export`.

    Raises:
        ValueError: If an argument is wrong, or a layer cannot be converted.
        ImportError: If the tool for the format is not installed.
        RuntimeError: If what was written does not answer as the model does.
    """
    formats.check(format, None)
    bounds = segment_bounds(model, cut)
    first, last = bounds[segment]
    x = probing.make_inputs(model)
    tolerance = probing.tolerance(model)
    path = os.fspath(path)
    with writing.new_folder(path, os.path.exists(path)) as temporary:
        bundles.write_stages(
            model, format, bounds[segment : segment + 1], [temporary], None, x
        )
        manifest = describing.describe(
            model,
            format,
            bounds,
            segment,
            files=folder.describe(temporary),
            class_names=None,
            routed=None,
            quantize=None,
            probe={"samples": len(x[0]), "tolerance": tolerance},
        )
        bundles.write_manifest(
            temporary,
            dataclasses.replace(manifest, weights_sha256=weights_sha256),
        )
        answers, taken = probing.run_stages(model, x)
        found = probing.exported([load_bundle(temporary)], taken[first])
        own = model.exit_names[first : last + 1]
        wanted = {
            name: value
            for name, value in answers.items()
            if name.removesuffix("_score") in own
        }
        bundles.check_answers(
            *probing.largest_difference(found, wanted), len(x[0]), tolerance
        )

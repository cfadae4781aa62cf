"""What a process that answers costs: bundles against the model itself.

A ResNet-20 for 32x32 images with two early exits. Each row of the table is a
fresh process: seconds from the start of Python until the first answer, memory
(resident set) after answering, and milliseconds for one image that leaves at
the first exit, and for one that goes to the end.

    python benchmarks/bundle.py
    python benchmarks/bundle.py --edge-python edge/bin/python

With `--edge-python` the LiteRT bundle runs in an environment of its own, with
no more than `pip install numpy ai-edge-litert`. Without, TensorFlow's own
LiteRT serves if ai-edge-litert is missing here, and is what start-up and
memory are then of.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from _shared import write_report

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: Arguments of the export, and threads of one call, by way.
WAYS = {
    "keras": ({"format": "keras"}, None),
    "saved_model": ({"format": "saved_model"}, None),
    "onnx": ({"format": "onnx"}, None),
    "litert": ({"format": "litert"}, None),
    "litert_2_threads": ({"format": "litert"}, 2),
    "litert_int8": ({"format": "litert", "quantize": "int8"}, None),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300, help="answers timed")
    parser.add_argument("--starts", type=int, default=3, help="processes each")
    parser.add_argument("--edge-python", default=sys.executable)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child, options.runs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = write(pathlib.Path(folder))
        rows = [
            {"way": way, **measure(way, folder, options), **sizes[way]}
            for way in sizes
        ]
    columns = list(rows[0])
    print("  ".join(f"{name:>16}" for name in columns))
    for row in rows:
        cells = (
            f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in row.values()
        )
        print("  ".join(f"{cell:>16}" for cell in cells))
    write_report(options.output, rows, runs=options.runs, starts=options.starts)


def write(folder):
    """Writes the model and its bundles; bytes of each by name."""
    import keras

    import keras_earlyexit as ee

    keras.utils.set_random_seed(0)
    plain = ee.backbones.resnet_cifar(20, (32, 32, 3), 10)
    model = ee.add_exits(plain, 2)
    model.save(folder / "model.keras")
    sizes = {"model": {"bytes": (folder / "model.keras").stat().st_size}}
    for way, (arguments, _) in WAYS.items():
        if way == "onnx" and importlib.util.find_spec("tf2onnx") is None:
            continue
        if "quantize" in arguments:
            arguments = {**arguments, "representative": images(64)}
        report = ee.export(model, folder / way, **arguments)
        sizes[way] = {"bytes": report.num_bytes}
    return sizes


def measure(way, folder, options):
    """Medians over several processes."""
    is_edge = way.startswith("litert")
    python = options.edge_python if is_edge else sys.executable
    found = []
    for _ in range(options.starts):
        output = subprocess.run(
            [
                *(python, __file__, "--runs", str(options.runs)),
                *("--child", way, folder),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found.append(json.loads(output.splitlines()[-1]))
    return {
        key: value
        if isinstance(value, str)
        else statistics.median(one[key] for one in found)
        for key, value in found[0].items()
    }


def child(way, folder, runs):
    """One process that answers: its figures."""
    import numpy as np

    import keras_earlyexit as ee

    x = images(1)
    path = pathlib.Path(folder)
    if way == "model":
        import keras

        model = keras.models.load_model(path / "model.keras", compile=False)

        def answer(thresholds):
            return model.router.predict_exits(x, thresholds=thresholds)
    else:
        _, num_threads = WAYS[way]
        bundle = ee.load_bundle(path / way, num_threads=num_threads)

        def answer(thresholds):
            return bundle.route(x, thresholds)

    answer([-np.inf] * 2)
    seconds = since_start()
    figures = {"start_up_s": seconds}
    for name, thresholds in (
        ("exit_0_ms", [-np.inf, -np.inf]),
        ("final_ms", [np.inf, np.inf]),
    ):
        figures[name] = 1000 * median_seconds(answer, thresholds, runs)
    return {**figures, "resident_mb": resident_mb(), "engine": engine()}


def images(count):
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 32, 32, 3)).astype("float32")


def median_seconds(answer, thresholds, runs):
    for _ in range(20):
        answer(thresholds)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        answer(thresholds)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def since_start():
    """Seconds since this process was started, imports included."""
    ticks = float(pathlib.Path("/proc/self/stat").read_text().split()[21])
    up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    return up - ticks / os.sysconf("SC_CLK_TCK")


def resident_mb():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def engine():
    for name in ("onnxruntime", "ai_edge_litert", "tensorflow"):
        if name in sys.modules:
            return name
    return "none"


if __name__ == "__main__":
    main()

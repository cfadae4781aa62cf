"""The edge worker starts without Keras and TensorFlow, and stays small."""

import subprocess
import sys

HEAVY = ("keras", "tensorflow", "jax", "torch", "scipy", "matplotlib", "PIL")
_PROGRAM = f"""
import sys
import numpy as np
from edge_worker import AsyncEdgeWorker, EdgeWorker
import edge_worker.serving.grpc, edge_worker.serving.http
import edge_worker.cli.doctor, edge_worker.cli.infer, edge_worker.cli.serve
with EdgeWorker(sys.argv[1], sys.argv[2], insecure=True) as worker:
    result = worker.predict(np.load(sys.argv[3], allow_pickle=False))
    assert result.counts["cloud"] and not result.counts["degraded"]
print([m for m in {HEAVY} if m in sys.modules])
with open("/proc/self/status") as file:
    print(*[x.split()[1] for x in file if x.startswith("VmRSS")])
"""


def test_light_and_small(exported, cloud, rows, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", rows)
    child = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(exported.edge), cloud.address,
         str(tmp_path / "x.npy")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    modules, kilobytes = child.stdout.splitlines()[-2:]
    assert modules == "[]"
    assert int(kilobytes) < 150_000


def test_help_imports_no_grpc():
    program = (
        "import sys\nfrom edge_worker import cli\ncli.main(['--help'])\n"
        "print([m for m in ('grpc', 'keras') if m in sys.modules])"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert child.stdout.splitlines()[-1] == "[]", child.stderr

"""The two sides as processes, each on a core of its own, and the link.

The cloud's process has the product's trainer and the baselines' service; the
edge's trains in the way that it is told to, a line of JSON for each run.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from proxy import DOWN, UP, Proxy, Traffic  # noqa: E402

#: Which core each side has.
EDGE_CORE, CLOUD_CORE = 0, 1
#: For glibc: memory that is freed stays with the process. Else a step touches
#: up to 20,000 new pages, a tenth of its time and more, or none, by what ran
#: before it, and no figure of one step holds for the next.
_KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}


def cloud(folder, start, is_paced):
    """The cloud's process: serves until it is told to stop."""
    os.sched_setaffinity(0, {CLOUD_CORE})
    import keras_earlyexit as ee
    from _hierarchical import pace, setting
    from _hierarchical.baselines import Cloud
    from cloud_worker import logs
    from cloud_worker.training.serving import serve
    from protos.security import ServerSecurity

    segment = ee.split(start.model(), setting.CUT, setting.BASE)[1]
    segment.compile(setting.optimizer())
    baselines = Cloud(start.model())
    paced_profile = None
    if is_paced:
        paced_profile = pace.cloud(start.model(), baselines, segment)
    server, port = baselines.serve()
    print(json.dumps({"baselines": f"127.0.0.1:{port}"}), flush=True)

    def answer():
        _answer(lambda _: _profiled(start, paced_profile))
        # Nobody is there to be answered any more.
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=answer, daemon=True).start()
    logs.configure("warning", sys.stdout)
    asyncio.run(
        serve(
            segment,
            os.path.join(folder, "ledger"),
            "127.0.0.1:0",
            ServerSecurity(insecure=True),
            os.path.join(folder, "cloud.keras"),
        )
    )
    server.stop(0)


def edge(folder, start, is_paced, product, baselines):
    """The edge's process: a run for each line that it is told."""
    os.sched_setaffinity(0, {EDGE_CORE})
    from _hierarchical.runs import Runs

    runs = Runs(folder, start, product, baselines, is_paced)

    def answer(told):
        if told["way"] == "profile":
            return _profiled(start, runs.profile)
        return runs.run(**told)

    _answer(answer)


def _answer(function):
    for line in sys.stdin:
        found = {"answer": function(json.loads(line))}
        print(json.dumps(found), flush=True)


def _profiled(start, known):
    """The profile of this side as JSON: `known`, or measured now."""
    import keras_earlyexit as ee
    from _hierarchical import pace

    if known is None:
        known = ee.cost.profile(
            start.model(), pace.SIZES, repeats=pace.ROUNDS, training="adam"
        )
    return known.to_json()


class Side:
    """A process of the benchmark, which answers lines of JSON."""

    def __init__(self, *arguments):
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "benchmarks" / "hierarchical.py"),
                *map(str, arguments),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "OMP_NUM_THREADS": "1",
                **_KEEP_MEMORY,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def heard(self, key):
        """The next line that has a key; what it says of it."""
        for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                found = json.loads(line)
                if isinstance(found, dict) and key in found:
                    return found[key]
        raise RuntimeError("A process of the benchmark has ended.")

    def tell(self, **told):
        """Has something done; `heard("answer")` says what came of it."""
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()

    def ask(self, **told):
        """Has something done, and waits for it."""
        self.tell(**told)
        return self.heard("answer")

    def close(self):
        self._process.terminate()
        self._process.communicate(timeout=60)


class Setup:
    """Both sides, and a link that is as slow as it is set.

    Args:
        folder: Where the sides keep their state.
        start: A `setting.Start`.
        is_paced: Whether steps are paced, see `pace.Paced`.
    """

    def __init__(self, folder, start, is_paced):
        with contextlib.ExitStack() as closing:
            common = ("--folder", folder)
            if is_paced:
                common += ("--paced",)
            for name, value in dataclasses.asdict(start).items():
                if value is not None:
                    common += (f"--{name}", value)
            self.cloud = Side("cloud", *common)
            closing.callback(self.cloud.close)
            self._proxies = [
                closing.enter_context(Proxy(self.cloud.heard(key)))
                for key in ("baselines", "address")
            ]
            baselines, product = (x.address for x in self._proxies)
            self.edge = Side("edge", *common, "--targets", product, baselines)
            closing.callback(self.edge.close)
            self._closing = closing.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._closing.close()

    def set_link(self, bits_per_s=None, round_trip_s=0.0):
        """How fast the link is from now on, both ways."""
        for proxy in self._proxies:
            proxy.set(
                bytes_per_s=bits_per_s and bits_per_s / 8,
                latency_s=round_trip_s / 2,
            )

    def run(self, way, steps):
        """One run of the edge, and what the link saw of it."""
        for proxy in self._proxies:
            proxy.traffic = {UP: Traffic(), DOWN: Traffic()}
        found = self.edge.ask(way=way, steps=steps)
        used = max(self._proxies, key=lambda p: p.traffic[UP].num_bytes)
        found["wire_up"] = used.traffic[UP].num_bytes
        found["wire_down"] = used.traffic[DOWN].num_bytes
        found["wire_up_seconds"] = (
            used.traffic[UP].last - used.traffic[UP].first
        )
        return found

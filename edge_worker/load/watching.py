"""What a process on this machine uses, as Linux tells it."""

import asyncio
import os
import pathlib
import time

import numpy as np


class Process:
    """A process that is looked at from outside.

    Args:
        pid: Its number.

    Raises:
        ValueError: If there is no such process, or no Linux.
    """

    def __init__(self, pid):
        self._folder = pathlib.Path("/proc") / str(pid)
        try:
            self.processor_seconds()
        except OSError as error:
            raise ValueError(
                "Expected the number of a process on this machine, on Linux. "
                f"Received: --pid {pid}. Leave it out for a worker elsewhere."
            ) from error

    def processor_seconds(self):
        """Seconds that its threads have run so far."""
        stat = (self._folder / "stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        """Main memory that it holds now."""
        pages = (self._folder / "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Notes what a process uses while something runs; for `async with`.

    Args:
        process: A `Process`.
        every_s: How often.
    """

    def __init__(self, process, every_s=0.5):
        self._process, self._every_s = process, every_s
        self._samples = []

    async def __aenter__(self):
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        self._note()

    def facts(self):
        """What to tell, a dict of plain values.

        Memory grows by the difference of the medians of the last and the
        second quarter: the first one is the warm-up.
        """
        seconds, used, held = np.array(self._samples).T
        quarter = max(1, len(held) // 4)
        before, after = held[quarter : 2 * quarter], held[-quarter:]
        return {
            "worker_cores": (used[-1] - used[0]) / (seconds[-1] - seconds[0]),
            "worker_processor_seconds": used[-1] - used[0],
            "memory_mb": float(held[-1] / 1e6),
            "memory_peak_mb": float(held.max() / 1e6),
            "memory_growth_mb": float(
                (np.median(after) - np.median(before)) / 1e6
            )
            if len(held) >= 4
            else 0.0,
            "memory": [
                [round(at - seconds[0], 2), round(size / 1e6, 2)]
                for at, size in zip(seconds, held, strict=True)
            ],
        }

    async def _look(self):
        while True:
            self._note()
            await asyncio.sleep(self._every_s)

    def _note(self):
        self._samples.append(
            (
                time.monotonic(),
                self._process.processor_seconds(),
                self._process.resident_bytes(),
            )
        )

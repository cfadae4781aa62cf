"""What a machine tells of itself: what it is, the energy and memory it uses.

Energy comes from the counters that Linux shows under `powercap` (Intel and AMD
call them RAPL). They cover whole processor packages and their memory, so what
else runs on the machine counts too. Most systems let only root read them.

Memory is the most that the process has held (`VmHWM`), which Linux can be told
to start anew. The `ru_maxrss` of other systems never falls again, and
`tracemalloc` sees nothing of what a backend allocates.
"""

import os
import pathlib
import platform
import re
import sys

POWERCAP = "/sys/class/powercap"
PROCESS = "/proc/self"
_SOFTWARE = (
    "numpy",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "ai_edge_litert",
    "onnxruntime",
)


class EnergyMeter:
    """Reads how much energy the processors and their memory have used.

    Args:
        folder: Where the counters are.

    Example:

    ```python
    meter = EnergyMeter()
    before = meter.read()
    model.predict(x)
    print(meter.joules_since(before))  # None without readable counters
    ```

    Reference:
        The Linux kernel documentation, Power Capping Framework.
    """

    def __init__(self, folder=POWERCAP):
        # A package contains its cores, and `psys` the packages: adding these
        # would count twice. Memory is apart.
        self._zones = [
            zone
            for zone in sorted(pathlib.Path(folder).glob("intel-rapl:*"))
            if re.match("package|dram$", _text(zone / "name") or "")
        ]

    def read(self):
        """What the counters show: microjoules (Z,), or `None`."""
        found = [_number(zone / "energy_uj") for zone in self._zones]
        return tuple(found) if found and None not in found else None

    def joules_since(self, before):
        """Energy since a reading.

        Args:
            before: What `read` has returned.

        Returns:
            Joules, a float; `None` if a counter cannot be read.
        """
        now = self.read()
        if before is None or now is None:
            return None
        total = 0
        for zone, start, end in zip(self._zones, before, now, strict=True):
            if end < start:
                largest = _number(zone / "max_energy_range_uj")
                if largest is None:
                    return None
                end += largest
            total += end - start
        return total / 1e6


def start_peak(process=PROCESS):
    """Starts the record of the most memory that the process has held anew.

    Args:
        process: Folder of the process, for tests.

    Returns:
        Whether the system allows it.
    """
    try:
        pathlib.Path(process, "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes(process=PROCESS):
    """The most memory that the process has held since `start_peak`.

    Args:
        process: Folder of the process, for tests.

    Returns:
        Bytes in main memory, of the whole process, an integer; `None` where
        the system does not tell.
    """
    text = _text(pathlib.Path(process, "status")) or ""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else None


def processor():
    """Name of the processor, as far as the system knows it."""
    text = _text(pathlib.Path("/proc/cpuinfo")) or ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1) if found else platform.processor()
    return name or platform.machine()


def cpu_count():
    """Number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions():
    """Names and versions of what can run a model and is loaded: texts."""
    loaded = [(name, sys.modules.get(name)) for name in _SOFTWARE]
    return (
        f"python {platform.python_version()}",
        *(
            f"{name} {module.__version__}"
            for name, module in loaded
            if hasattr(module, "__version__")
        ),
    )


def _text(path):
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path):
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None

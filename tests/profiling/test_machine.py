"""What a machine tells: from folders like those that Linux shows."""

import pathlib

import pytest

from keras_earlyexit.profiling import machine


@pytest.fixture
def powercap(tmp_path):
    """Two packages and a memory, and what contains or is inside of them."""
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for zone, name in zones.items():
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
        (folder / "energy_uj").write_text("1000000\n")
    return tmp_path


def use(folder, zone, microjoules):
    (folder / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_and_memory_are_added_once(powercap):
    meter = machine.EnergyMeter(powercap)
    before = meter.read()
    assert len(before) == 3
    for zone in powercap.iterdir():
        use(powercap, zone.name, 3_500_000)
    assert meter.joules_since(before) == pytest.approx(3 * 2.5)


def test_counter_that_starts_again(powercap):
    meter = machine.EnergyMeter(powercap)
    before = meter.read()
    use(powercap, "intel-rapl:1", 250_000)
    assert meter.joules_since(before) == pytest.approx(9.25)


@pytest.mark.parametrize("text", ["", "-1", "many", None])
def test_one_counter_missing_is_all_missing(powercap, text):
    meter = machine.EnergyMeter(powercap)
    before = meter.read()
    path = powercap / "intel-rapl:0:1" / "energy_uj"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert meter.read() is None
    assert meter.joules_since(before) is None


def test_counter_that_starts_again_nobody_knows_where(powercap):
    meter = machine.EnergyMeter(powercap)
    before = meter.read()
    use(powercap, "intel-rapl:0", 5)
    (powercap / "intel-rapl:0" / "max_energy_range_uj").unlink()
    assert meter.joules_since(before) is None


def test_machine_without_counters(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        meter = machine.EnergyMeter(folder)
        assert meter.read() is None
        assert meter.joules_since(None) is None


def test_peak_is_read_and_started_anew(tmp_path):
    assert machine.peak_bytes(tmp_path) is None
    (tmp_path / "status").write_text("VmPeak: 9 kB\nVmHWM:\t  20 kB\nX: 1\n")
    assert machine.peak_bytes(tmp_path) == 20 * 1024
    assert machine.start_peak(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert not machine.start_peak(tmp_path / "none")


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(),
    reason="only Linux shows what a process holds",
)
def test_peak_falls_again():
    held = bytearray(2**27)
    high = machine.peak_bytes()
    del held
    assert machine.start_peak()
    assert machine.peak_bytes() < high - 2**26


def test_machine_names_itself():
    assert machine.processor()
    assert machine.cpu_count() >= 1
    assert machine.versions()[0].startswith("python 3.")

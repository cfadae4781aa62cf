import json

import pytest

from keras_earlyexit.capacity.service import Service

SERVICE = Service(
    "small", (1, 4), (0.002, 0.004), 0.001, 2, 0.003, bytes_up=100
)


def test_seconds_of_sizes_that_were_not_measured():
    assert SERVICE.seconds(1) == 0.002
    assert SERVICE.seconds(2) == pytest.approx(0.002 + 0.002 / 3)
    assert SERVICE.seconds(8) == pytest.approx(0.008)


def test_rows_of_a_core():
    # A row takes 1 ms in batches of 4, and half of a call of 1 ms.
    assert SERVICE.rows_per_core_second(4) == pytest.approx(1 / 0.0015)


def test_survives_its_file(tmp_path):
    SERVICE.save(tmp_path / "service.json")
    assert Service.load(tmp_path / "service.json") == SERVICE


@pytest.mark.parametrize(
    "change",
    [
        {"batch_sizes": [4, 1]},
        {"batch_sizes": []},
        {"stage_seconds": [0.001]},
        {"stage_seconds": [0.001, -1.0]},
        {"call_seconds": "many"},
        {"rows": 0},
        {"name": 3},
        {"further": 1},
        {"version": 7},
        {"format": "other"},
    ],
)
def test_files_that_cannot_be_are_refused(tmp_path, change):
    path = tmp_path / "service.json"
    SERVICE.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((TypeError, ValueError), match="Expected.*Received"):
        Service.load(path)

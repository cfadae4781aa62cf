"""The model of the page is trained once."""

import os

import numpy as np
import pytest

from keras_earlyexit.live import digits


@pytest.mark.long
def test_the_second_time_it_is_read(tmp_path, data):
    cache = tmp_path / "new"
    model = digits.model(cache, epochs=2)
    (path,) = cache.iterdir()
    written = path.stat().st_mtime_ns
    again = digits.model(cache, epochs=2)
    assert [x.name for x in cache.iterdir()] == [path.name]
    assert path.stat().st_mtime_ns == written
    x = data[0][0]
    np.testing.assert_array_equal(
        again.net.predict(x, verbose=0)["final"],
        model.net.predict(x, verbose=0)["final"],
    )


def test_the_cache_is_where_the_system_has_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert digits.cache_folder() == tmp_path / "keras_earlyexit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert digits.cache_folder() == tmp_path / ".cache" / "keras_earlyexit"

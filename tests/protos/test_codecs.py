"""Names of codecs."""

import pytest

from protos.codecs import NAMES, Codec


def test_every_name_comes_back():
    assert len(NAMES) == len(set(NAMES)) == 16
    for name in NAMES:
        codec = Codec.parse(name)
        assert str(codec) == name
        assert Codec.parse(codec) is codec


def test_what_a_name_says():
    assert Codec.parse("int8_channel+zstd") == Codec("int8", True, True)
    assert Codec.parse("float16") == Codec("float16", False, False)


@pytest.mark.parametrize(
    "name",
    ["", "float64", "float16_channel", "uint8+gzip", "+zstd", None, 8, "uint4"],
)
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match="Expected a codec.*float32"):
        Codec.parse(name)

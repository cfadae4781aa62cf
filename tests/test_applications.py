"""The architectures of keras.applications take exits."""

import numpy as np
import pytest
from applications import IMAGE_SIZES, build, images
from zoo import as_numpy

import keras_earlyexit as ee
from keras_earlyexit import cutting, placement, surgery

# Least number of legal cuts and of block ends.
PLACES = {
    "ResNet50": (39, 16),
    "MobileNetV2": (74, 10),
    "EfficientNetB0": (84, 16),
    "DenseNet121": (79, 58),
    "VGG16": (21, 15),
    "NASNetMobile": (5, 1),
    "ConvNeXtTiny": (27, 18),
    "Xception": (25, 12),
    "InceptionV3": (29, 11),
}


@pytest.mark.parametrize("name", IMAGE_SIZES)
def test_takes_exits_that_change_nothing(name):
    cuts, ends = PLACES[name]
    plain = build(name)
    before = plain.to_json()
    graph = surgery.trace(plain)
    places = placement.candidates(graph)
    assert len(places) == len(cutting.legal_cuts(graph)) >= cuts
    block_ends = [place for place in places if place.is_block_end]
    assert len(block_ends) >= ends
    # Never in the stem: the first block end has done some blocks' work.
    assert block_ends[0].index > 3 or name == "VGG16"

    x = images(name, 2)
    expected = as_numpy(plain(x))
    model = ee.add_exits(plain, exits=min(2, len(block_ends)))
    outputs = model(x)
    np.testing.assert_allclose(
        as_numpy(outputs["final"]), expected, rtol=0, atol=1e-6
    )
    assert np.all(np.diff(model.relative_costs) > 0)

    given = x
    for stage, exit_name in zip(model.stages, model.exit_names, strict=True):
        result = stage(given)
        np.testing.assert_allclose(
            as_numpy(result["prediction"]),
            as_numpy(outputs[exit_name]),
            rtol=0,
            atol=1e-6,
        )
        given = result.get("feature")
    stripped = ee.strip_exits(model)
    assert stripped.count_params() == plain.count_params()
    assert plain.to_json() == before


def test_nasnet_says_that_its_cells_read_two_earlier_ones():
    plain = build("NASNetMobile")
    with pytest.raises(
        ValueError,
        match=r"at most 1 exit,.*exits=2.*'stem_bn1' \(\d.*'normal_concat_12' "
        r"\(\d+\.\d+%\).*blocks read several earlier blocks",
    ):
        ee.add_exits(plain, exits=2)
    with pytest.raises(ValueError, match="cannot carry an exit: 2 tensors"):
        ee.add_exits(plain, exits=["normal_concat_5"])
    model = ee.add_exits(plain, exits=["stem_bn1"], block="conv")
    assert model.exit_layers == ("stem_bn1",)


def test_densenet_exits_stand_behind_blocks_and_transitions():
    ends = [
        place.name
        for place in placement.candidates(build("DenseNet121"))
        if place.is_block_end
    ]
    assert "conv2_block5_concat" in ends and "pool2_relu" in ends
    assert not any(name.startswith(("conv1", "pool1")) for name in ends)
